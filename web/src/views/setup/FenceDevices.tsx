// Fence devices: what switches a lost node off, so that its machines may be started elsewhere at once.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, known, type Schemas, value } from "../../api/client";
import { shell } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Badge, Button, Dialog, Field, Section, Table, Trouble, Waiting } from "../../parts/parts";
import { options } from "./Witness";

type Device = Schemas["FenceDeviceView"];

const KEY = ["fence devices"];

const devices = queryOptions({
  queryKey: KEY,
  queryFn: () => known((query) => api.GET("/v1/fence-devices", { params: { query } })),
});

/** Lines `node` or `node=plug`; null where there is none. */
export function plugs(text: string): Record<string, string | null> | null {
  const found: Record<string, string | null> = {};
  for (const line of text.split("\n").map((line) => line.trim()).filter(Boolean)) {
    const [node = "", ...plug] = line.split("=");
    if (node.trim() === "") return null;
    found[node.trim()] = plug.length > 0 ? plug.join("=").trim() : null;
  }
  return Object.keys(found).length > 0 ? found : null;
}

export function FenceDevices({ why }: { why: string | undefined }) {
  const asked = useQuery(devices);
  const [adding, setAdding] = useState(false);
  const [leaving, setLeaving] = useState<Device | null>(null);
  const [asking, setAsking] = useState<Device | null>(null);
  return (
    <Section
      title="Fence devices"
      beside={
        <Button why={why} onPress={() => setAdding(true)}>
          Add a device …
        </Button>
      }
    >
      {asked.error && <Trouble error={asked.error} />}
      {asked.data?.length === 0 && (
        <p>None. A lost node is then waited for, until it must have stopped its machines by itself.</p>
      )}
      {asked.data && asked.data.length > 0 && (
        <Table label="Fence devices" head={["Name", "Program", "Level", "Switches", "Do"]}>
          {asked.data.map((device) => (
            <tr key={device.id}>
              <th scope="row">{device.name}</th>
              <td>{device.agent}</td>
              <td>{device.level}</td>
              <td>{Object.keys(device.nodes).join(", ")}</td>
              <td>
                <span className="actions">
                  <Button why={why} aria-label={`Ask ${device.name}`} onPress={() => setAsking(device)}>
                    Ask it
                  </Button>
                  <Button kind="danger" why={why} aria-label={`Remove ${device.name}`} onPress={() => setLeaving(device)}>
                    Remove …
                  </Button>
                </span>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {adding && <Add onClose={() => setAdding(false)} />}
      {asking && <Ask device={asking} onClose={() => setAsking(null)} />}
      {leaving && <Remove device={leaving} onClose={() => setLeaving(null)} />}
    </Section>
  );
}

/** Asks a device for the power of its nodes; nothing is switched. */
function Ask({ device, onClose }: { device: Device; onClose: () => void }) {
  const asked = useQuery({
    queryKey: [...KEY, device.id],
    queryFn: () => value(api.POST("/v1/fence-devices/{device}/test", { params: { path: { device: device.id } } })),
    retry: false,
    gcTime: 0,
    staleTime: Infinity,
  });
  return (
    <Dialog title={`What ${device.name} says`} onClose={onClose}>
      {asked.error && <Trouble error={asked.error} />}
      {asked.isPending && <Waiting what="the device" />}
      {asked.data?.map((said) => (
        <div key={said.node}>
          <p>
            <strong>{said.node}</strong> <Badge tone={said.ok ? "good" : "bad"}>{said.says}</Badge>{" "}
            <span className="quiet-text">{said.took_ms.toLocaleString()} ms</span>
          </p>
          {!said.ok && said.output !== "" && <pre>{said.output}</pre>}
        </div>
      ))}
      <p className="quiet-text">Nothing was switched. The same: muster fence device test {shell(device.name)}</p>
      <div className="dialog-buttons">
        <Button onPress={onClose}>Close</Button>
      </div>
    </Dialog>
  );
}

function Add({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  const [name, setName] = useState("");
  const [agent, setAgent] = useState("fence_ipmilan");
  const [nodes, setNodes] = useState("");
  const [plain, setPlain] = useState("");
  const [secret, setSecret] = useState("");
  const [level, setLevel] = useState(1);
  const [switched, given, hidden] = [plugs(nodes), options(plain), options(secret)];
  const ready = name !== "" && agent !== "" && switched !== null && given !== null && hidden !== null;
  const body: Schemas["FenceDeviceAddBody"] = {
    name,
    agent,
    nodes: switched ?? {},
    options: given ?? {},
    secrets: hidden ?? {},
    level,
  };
  // Secrets stand in no command line and on no screen.
  const shown = { ...body, secrets: Object.fromEntries(Object.keys(body.secrets ?? {}).map((name) => [name, "…"])) };
  const command = [
    `muster fence device add ${shell(name || "NAME")} --agent ${shell(agent || "AGENT")}`,
    ...Object.entries(switched ?? { NODE: null }).map(([node, plug]) => `--node ${shell(plug === null ? node : `${node}=${plug}`)}`),
    ...Object.entries(given ?? {}).map(([name, text]) => `--option ${shell(`${name}=${text}`)}`),
    ...Object.keys(hidden ?? {}).map((name) => `--secret-file ${shell(name)}=FILE`),
    ...(level === 1 ? [] : [`--level ${level}`]),
  ].join(" ");
  return (
    <FormDialog
      title="Add a fence device"
      label="Add"
      ready={ready}
      command={command}
      call={`POST /v1/fence-devices\n${JSON.stringify(shown)}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/fence-devices", { body }));
        await client.invalidateQueries({ queryKey: KEY });
      }}
    >
      <Field label="Name">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="Program" hint="Of the package fence-agents, such as fence_ipmilan or fence_redfish">
        {(ids) => <input {...ids} autoComplete="off" value={agent} onChange={(event) => setAgent(event.target.value)} />}
      </Field>
      <Field label="Nodes" hint="One a line: its name, and =PLUG where the device has several">
        {(ids) => <textarea {...ids} rows={2} value={nodes} onChange={(event) => setNodes(event.target.value)} />}
      </Field>
      <Field label="Options" hint="One a line: name=value, such as ip=10.0.0.9">
        {(ids) => <textarea {...ids} rows={2} value={plain} onChange={(event) => setPlain(event.target.value)} />}
      </Field>
      <Field label="Secrets" hint="One a line: name=value; never shown again">
        {(ids) => <textarea {...ids} rows={2} value={secret} onChange={(event) => setSecret(event.target.value)} />}
      </Field>
      <Field label="Level" hint="Levels are tried in order; all devices of a level must succeed">
        {(ids) => (
          <input {...ids} type="number" min={1} max={9} value={level} onChange={(event) => setLevel(Number(event.target.value))} />
        )}
      </Field>
    </FormDialog>
  );
}

function Remove({ device, onClose }: { device: Device; onClose: () => void }) {
  const client = useQueryClient();
  return (
    <FormDialog
      title={`Remove ${device.name}?`}
      label="Remove"
      ready
      danger
      command={`muster fence device remove ${shell(device.name)} --yes`}
      call={`DELETE /v1/fence-devices/${device.id}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.DELETE("/v1/fence-devices/{device}", { params: { path: { device: device.id } } }));
        await client.invalidateQueries({ queryKey: KEY });
      }}
    >
      <p>
        Without another device, machines of {Object.keys(device.nodes).join(", ")} start elsewhere only after the time in
        which a lost node stops them by itself.
      </p>
    </FormDialog>
  );
}
