// The recycle bin: machines that were deleted, and the way back.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, known, type VmSummary, value } from "../api/client";
import { keys } from "../api/queries";
import { bytes, mayDo } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Button, Dialog, Field, Same, Table, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";

const deleted = queryOptions({
  queryKey: [...keys.vms, "deleted"],
  queryFn: () =>
    known((query) => api.GET("/v1/vms", { params: { query: { deleted: true, ...query } } })),
});

export function Bin() {
  const asked = useQuery(deleted);
  return (
    <>
      <div className="page-head">
        <h1>Recycle bin</h1>
      </div>
      <p>Machines stay here with their disks for some days (seven, unless the nodes are set otherwise).</p>
      {asked.error && <Trouble error={asked.error} />}
      {asked.isPending && !asked.error && <Waiting what="the recycle bin" />}
      {asked.data?.length === 0 && <p>It is empty.</p>}
      {asked.data && asked.data.length > 0 && (
        <Table label="Deleted machines" head={["Name", "Node", "Memory", "Tags", "What to do"]}>
          {asked.data.map((vm) => (
            <Line key={vm.id} vm={vm} />
          ))}
        </Table>
      )}
    </>
  );
}

function Line({ vm }: { vm: VmSummary }) {
  const client = useQueryClient();
  const role = useRole();
  const { follow } = useNotices();
  const [asking, setAsking] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const why = mayDo(role, "administrator") ? undefined : "This needs the role administrator.";
  const back = async () => {
    setError(null);
    try {
      const params = { path: { vm: vm.id } };
      await value(api.POST("/v1/vms/{vm}/undelete", { params, body: {} }));
      await client.invalidateQueries({ queryKey: keys.vms });
    } catch (error) {
      setError(error);
    }
  };
  const purge = () => {
    setAsking(false);
    const params = { path: { vm: vm.id }, query: { purge: true } };
    void follow(`Remove ${vm.name} for good`, () => value(api.DELETE("/v1/vms/{vm}", { params }))).then(
      () => client.invalidateQueries({ queryKey: keys.vms }),
    );
  };
  return (
    <tr>
      <th scope="row">{vm.name}</th>
      <td>{vm.node}</td>
      <td>{bytes(vm.memory)}</td>
      <td>{vm.tags.join(", ")}</td>
      <td>
        <div className="actions">
          <Button why={why} aria-label={`Take back ${vm.name}`} onPress={() => void back()}>
            Take back
          </Button>
          <Button
            kind="danger"
            why={why}
            aria-label={`Remove for good … ${vm.name}`}
            onPress={() => setAsking(true)}
          >
            Remove for good …
          </Button>
        </div>
        {error !== null && <Trouble error={error} what="Not taken back" />}
        {asking && <Purge vm={vm} onClose={() => setAsking(false)} onYes={purge} />}
      </td>
    </tr>
  );
}

/** There is no way back from this: its name has to be typed. */
function Purge({ vm, onClose, onYes }: { vm: VmSummary; onClose: () => void; onYes: () => void }) {
  const [typed, setTyped] = useState("");
  return (
    <Dialog title={`Remove ${vm.name} for good?`} onClose={onClose} alert>
      <p>Its disks are deleted with everything on them. Nothing brings them back.</p>
      <Field label={`Type ${vm.name} to say that you mean it`}>
        {(ids) => <input {...ids} value={typed} onChange={(event) => setTyped(event.target.value)} />}
      </Field>
      <Same
        command={`muster vm delete ${vm.id} --purge`}
        call={`DELETE /v1/vms/${vm.id}?purge=true`}
      />
      <div className="dialog-buttons">
        <Button onPress={onClose}>Leave it</Button>
        <Button kind="danger" isDisabled={typed !== vm.name} onPress={onYes}>
          Remove for good
        </Button>
      </div>
    </Dialog>
  );
}
