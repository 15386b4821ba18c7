// Rules of placement: machines of a tag together, or apart.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, known, type Schemas, value } from "../../api/client";
import { keys } from "../../api/queries";
import { shell } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Button, Field, Section, Table, Trouble } from "../../parts/parts";

const rules = queryOptions({
  queryKey: keys.rules,
  queryFn: () => known((query) => api.GET("/v1/rules", { params: { query } })),
});

export function Rules({ why }: { why: string | undefined }) {
  const client = useQueryClient();
  const asked = useQuery(rules);
  const [making, setMaking] = useState(false);
  const [leaving, setLeaving] = useState<Schemas["RuleView"] | null>(null);
  const again = () => client.invalidateQueries({ queryKey: keys.rules });
  return (
    <Section
      title="Rules of placement"
      beside={
        <Button why={why} onPress={() => setMaking(true)}>
          Make a rule …
        </Button>
      }
    >
      {asked.error && <Trouble error={asked.error} />}
      {asked.data?.length === 0 && <p>None: every machine may be on every node that has room.</p>}
      {asked.data && asked.data.length > 0 && (
        <Table label="Rules" head={["Name", "Says", "Machines now", "Do"]}>
          {asked.data.map((rule) => (
            <tr key={rule.id}>
              <th scope="row">{rule.name}</th>
              <td>
                {rule.tag} {rule.kind === "together" ? "on one node" : "on different nodes"}
                {rule.hard ? ", always" : ", where possible"}
              </td>
              <td>{rule.vms.length === 0 ? "–" : rule.vms.join(", ")}</td>
              <td>
                <Button kind="danger" aria-label={`Delete ${rule.name}`} why={why} onPress={() => setLeaving(rule)}>
                  Delete …
                </Button>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {making && <Make onClose={() => setMaking(false)} again={again} />}
      {leaving && (
        <FormDialog
          title={`Delete ${leaving.name}?`}
          label="Delete"
          ready
          danger
          command={`muster rule delete ${shell(leaving.name)}`}
          call={`DELETE /v1/rules/${leaving.id}`}
          onClose={() => setLeaving(null)}
          onSubmit={async () => {
            await value(api.DELETE("/v1/rules/{rule}", { params: { path: { rule: leaving.id } } }));
            await again();
          }}
        >
          <p>No machine moves for it; the next plans do not look at it any more.</p>
        </FormDialog>
      )}
    </Section>
  );
}

function Make({ onClose, again }: { onClose: () => void; again: () => Promise<void> }) {
  const [name, setName] = useState("");
  const [tag, setTag] = useState("");
  const [kind, setKind] = useState<Schemas["RuleKind"]>("apart");
  const [hard, setHard] = useState(false);
  const body: Schemas["RuleCreateBody"] = { name, tag, kind, hard };
  return (
    <FormDialog
      title="Make a rule"
      label="Make"
      ready={name !== "" && tag !== ""}
      command={`muster rule create ${shell(name || "NAME")} --tag ${shell(tag || "TAG")} --${kind}${hard ? " --hard" : ""}`}
      call={`POST /v1/rules\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/rules", { body }));
        await again();
      }}
    >
      <Field label="Name">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="Tag" hint="Machines with this tag">
        {(ids) => <input {...ids} autoComplete="off" value={tag} onChange={(event) => setTag(event.target.value)} />}
      </Field>
      <Field label="Where">
        {(ids) => (
          <select {...ids} value={kind} onChange={(event) => setKind(event.target.value as Schemas["RuleKind"])}>
            <option value="apart">on different nodes</option>
            <option value="together">on the same node</option>
          </select>
        )}
      </Field>
      <label className="check">
        <input type="checkbox" checked={hard} onChange={(event) => setHard(event.target.checked)} />
        Never break it, even if a machine stays off for it
      </label>
    </FormDialog>
  );
}
