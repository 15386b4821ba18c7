// Networks that machines are plugged into.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../../api/client";
import { keys, networks } from "../../api/queries";
import { shell } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Badge, Button, Field, Section, Table, Trouble } from "../../parts/parts";

export function Networks({ why }: { why: string | undefined }) {
  const client = useQueryClient();
  const asked = useQuery(networks);
  const [making, setMaking] = useState(false);
  const [leaving, setLeaving] = useState<Schemas["NetworkView"] | null>(null);
  const again = () => client.invalidateQueries({ queryKey: keys.networks });
  return (
    <Section
      title="Networks"
      beside={
        <Button why={why} onPress={() => setMaking(true)}>
          Make a network …
        </Button>
      }
    >
      {asked.error && <Trouble error={asked.error} />}
      {asked.data && (
        <Table label="Networks" head={["Name", "Made of", "Adapters", "On this node", "Do"]}>
          {asked.data.map((network) => (
            <tr key={network.id}>
              <th scope="row">{network.name}</th>
              <td>{network.kind === "nat" ? network.subnet : `bridge ${network.bridge}`}</td>
              <td>{network.adapters.length}</td>
              <td>{network.problem ? <Badge tone="bad">{network.problem}</Badge> : "works"}</td>
              <td>
                <Button
                  kind="danger"
                  aria-label={`Delete ${network.name}`}
                  why={why ?? (network.adapters.length > 0 ? `In use by ${network.adapters.slice(0, 3).join(", ")}.` : undefined)}
                  onPress={() => setLeaving(network)}
                >
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
          command={`muster network delete ${shell(leaving.name)}`}
          call={`DELETE /v1/networks/${leaving.id}`}
          onClose={() => setLeaving(null)}
          onSubmit={async () => {
            await value(api.DELETE("/v1/networks/{network}", { params: { path: { network: leaving.id } } }));
            await again();
          }}
        >
          <p>No machine is on it. A bridge of the host's own stays as it is.</p>
        </FormDialog>
      )}
    </Section>
  );
}

function Make({ onClose, again }: { onClose: () => void; again: () => Promise<void> }) {
  const [name, setName] = useState("");
  const [kind, setKind] = useState<"nat" | "bridge">("nat");
  const [of, setOf] = useState("");
  const body: Schemas["NetworkCreateBody"] =
    kind === "nat" ? { kind, name, subnet: of } : { kind, name, bridge: of };
  return (
    <FormDialog
      title="Make a network"
      label="Make"
      ready={name !== "" && of !== ""}
      command={`muster network create ${shell(name || "NAME")} --${kind === "nat" ? "subnet" : "bridge"} ${shell(of || "…")}`}
      call={`POST /v1/networks\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/networks", { body }));
        await again();
      }}
    >
      <Field label="Name">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="What it is">
        {(ids) => (
          <select {...ids} value={kind} onChange={(event) => setKind(event.target.value as "nat" | "bridge")}>
            <option value="nat">a network of each host's own, with DHCP, DNS and a way out</option>
            <option value="bridge">the host's network, through a bridge that is there</option>
          </select>
        )}
      </Field>
      <Field
        label={kind === "nat" ? "Addresses" : "Bridge"}
        hint={kind === "nat" ? "Such as 10.78.0.0/24; the first one is the host's" : "Its device, such as br0, on every node"}
      >
        {(ids) => <input {...ids} autoComplete="off" value={of} onChange={(event) => setOf(event.target.value)} />}
      </Field>
    </FormDialog>
  );
}
