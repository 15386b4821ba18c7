// What was changed in a machine's settings, by whom, and the way back.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, known, type Schemas, type SettingsChange as Change, value } from "../api/client";
import { keys } from "../api/queries";
import { mayDo, shell, when, whenShort } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Button, Dialog, Same, Section, Table, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";
import { options } from "./setCommand";

type VmView = Schemas["VmView"];
type Field = Schemas["FieldChange"];

/** Changes that are shown before anybody asks for all. */
const SHOWN_FIRST = 5;

/** Asked again whenever the configuration has another revision: its number is in the key. */
const history = (vm: VmView) =>
  queryOptions({
    queryKey: [...keys.vm(vm.id), "history", vm.revision],
    queryFn: () =>
      known((query) => api.GET("/v1/vms/{vm}/history", { params: { path: { vm: vm.id }, query } })),
  });

export function History({ vm }: { vm: VmView }) {
  const asked = useQuery(history(vm));
  const [all, setAll] = useState(false);
  const [back, setBack] = useState<Change | null>(null);
  const changes = asked.data ?? [];
  const shown = all ? changes : changes.slice(0, SHOWN_FIRST);
  return (
    <Section title="Changes of settings">
      {asked.error && <Trouble error={asked.error} />}
      {asked.isPending && !asked.error && <Waiting what="its changes" />}
      {asked.data && changes.length === 0 && <p>Nothing was changed since it was created.</p>}
      {shown.length > 0 && (
        <Table label="Changes of settings" head={["When", "Who", "Setting", "Before", "After", "Undo"]}>
          {shown.map((change) => (
            <Lines key={change.revision} change={change} onBack={() => setBack(change)} />
          ))}
        </Table>
      )}
      {!all && changes.length > SHOWN_FIRST && (
        <Button kind="quiet" onPress={() => setAll(true)}>
          Show all {changes.length} changes
        </Button>
      )}
      {back && <SetBack vm={vm} change={back} onClose={() => setBack(null)} />}
    </Section>
  );
}

/** The lines of one change: one for each setting, the first with who and when. */
function Lines({ change, onBack }: { change: Change; onBack: () => void }) {
  const role = useRole();
  const why = !mayDo(role, "operator")
    ? "This needs the role operator."
    : change.back
      ? undefined
      : "Only devices changed, or what is not kept because it may be secret.";
  return change.fields.map((field, at) => (
    <tr key={field.field}>
      {at === 0 && (
        <>
          <th scope="row" rowSpan={change.fields.length} title={when(change.at)}>
            {whenShort(change.at)}
          </th>
          <td rowSpan={change.fields.length}>{change.by}</td>
        </>
      )}
      <td>{field.field}</td>
      <td>{told(field, field.old)}</td>
      <td>{told(field, field.new)}</td>
      {at === 0 && (
        <td rowSpan={change.fields.length}>
          <Button why={why} aria-label={`Set back revision ${change.revision} …`} onPress={onBack}>
            Set back …
          </Button>
        </td>
      )}
    </tr>
  ));
}

function told(field: Field, value: string | null | undefined): string {
  if (field.withheld) return "not kept";
  return value === "" ? "(empty)" : (value ?? "–");
}

/** An ordinary change, to the values of before. */
function SetBack({ vm, change, onClose }: { vm: VmView; change: Change; onClose: () => void }) {
  const client = useQueryClient();
  const { follow } = useNotices();
  // The revision that the person has seen: a change that somebody else made meanwhile is not lost.
  const [revision] = useState(vm.revision);
  const body = change.back ?? {};
  const lost = change.fields.filter((field) => field.withheld).map((field) => field.field);
  const go = () => {
    onClose();
    const params = { path: { vm: vm.id }, query: { if_revision: revision } };
    void follow(`Set back ${vm.name}`, () => value(api.PATCH("/v1/vms/{vm}", { params, body }))).then(
      () => client.invalidateQueries({ queryKey: keys.vm(vm.id) }),
    );
  };
  return (
    <Dialog title={`Set ${vm.name} back?`} onClose={onClose}>
      <p>
        What {change.by} changed on {when(change.at)} becomes what it was before; later changes of
        other settings stay.
      </p>
      <ul>
        {change.fields
          .filter((field) => !field.withheld && field.old !== null && field.old !== undefined)
          .map((field) => (
            <li key={field.field}>
              {field.field}: <strong>{told(field, field.old)}</strong>
            </li>
          ))}
      </ul>
      {lost.length > 0 && <p>Not set back, since it is not kept: {lost.join(", ")}.</p>}
      <Same
        command={`muster vm set ${shell(vm.name)} ${options(body).join(" ")} --if-revision ${revision}`}
        call={`PATCH /v1/vms/${vm.id}?if_revision=${revision}\n${JSON.stringify(body)}`}
      />
      <div className="dialog-buttons">
        <Button onPress={onClose}>Leave it</Button>
        <Button kind="main" onPress={go}>
          Set back
        </Button>
      </div>
    </Dialog>
  );
}
