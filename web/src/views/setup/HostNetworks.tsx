// Networks of the hosts themselves: their names, and over which of them the memory of moving machines goes.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, known, type Schemas, value } from "../../api/client";
import { shell } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Badge, Button, Field, Section, Table, Trouble } from "../../parts/parts";

type Network = Schemas["ClusterNetworkView"];

/** Places in the order of preference. */
const PLACES = [1, 2, 3, 4, 5, 6, 7, 8, 9];

const KEY = ["host networks"];

const hostNetworks = queryOptions({
  queryKey: KEY,
  queryFn: () => known((query) => api.GET("/v1/cluster/networks", { params: { query } })),
});

export function HostNetworks({ why }: { why: string | undefined }) {
  const asked = useQuery(hostNetworks);
  const [changing, setChanging] = useState<Network | null>(null);
  const [strict, setStrict] = useState(false);
  const view = asked.data;
  return (
    <Section title="Networks of the hosts">
      {asked.error && <Trouble error={asked.error} />}
      {view?.networks.length === 0 && <p>None that two nodes share.</p>}
      {view && view.networks.length > 0 && (
        <>
          <Table label="Networks of the hosts" head={["Network", "Nodes", "Heartbeats", "Moving machines", "Do"]}>
            {view.networks.map((network) => (
              <tr key={network.subnet}>
                <th scope="row">
                  {network.name ? `${network.name} (${network.subnet})` : network.subnet}
                </th>
                <td>
                  {network.nodes.map(({ node }) => node).join(", ")}
                  {network.missing.length > 0 && (
                    <>
                      {" "}
                      <Badge tone="busy">not: {network.missing.join(", ")}</Badge>
                    </>
                  )}
                </td>
                <td>{network.cluster ? "yes" : "no"}</td>
                <td>{network.migration ? `place ${network.migration}` : "no role"}</td>
                <td>
                  <Button why={why} aria-label={`Change ${network.name ?? network.subnet}`} onPress={() => setChanging(network)}>
                    Change …
                  </Button>
                </td>
              </tr>
            ))}
          </Table>
          <p>
            {view.strict
              ? "Machines move over networks with a place only; where none works, they do not move."
              : "Where no network with a place works, machines move over any other."}{" "}
            <Button kind="quiet" why={why} onPress={() => setStrict(true)}>
              {view.strict ? "Allow others …" : "Forbid others …"}
            </Button>
          </p>
        </>
      )}
      {changing && <Change network={changing} onClose={() => setChanging(null)} />}
      {strict && view && <Strict now={view.strict} onClose={() => setStrict(false)} />}
    </Section>
  );
}

function Change({ network, onClose }: { network: Network; onClose: () => void }) {
  const client = useQueryClient();
  const [name, setName] = useState(network.name ?? "");
  const [place, setPlace] = useState(network.migration ?? 0);
  const renamed = name !== (network.name ?? "") && name !== "";
  const moved = place !== (network.migration ?? 0);
  const body: Schemas["ClusterNetworkSetBody"] = {
    network: network.subnet,
    ...(renamed ? { name } : {}),
    ...(moved ? { migration: place } : {}),
  };
  const words = [
    `muster cluster network set ${network.subnet}`,
    ...(renamed ? [`--name ${shell(name)}`] : []),
    ...(moved ? [`--migration ${place === 0 ? "off" : place}`] : []),
  ];
  return (
    <FormDialog
      title={`Network ${network.subnet}`}
      label="Change"
      ready={renamed || moved}
      command={words.join(" ")}
      call={`POST /v1/cluster/networks\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        client.setQueryData(KEY, await value(api.POST("/v1/cluster/networks", { body })));
      }}
    >
      <Field label="Name">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="Moving machines" hint="1 is tried first">
        {(ids) => (
          <select {...ids} value={place} onChange={(event) => setPlace(Number(event.target.value))}>
            <option value={0}>no role</option>
            {PLACES.map((place) => (
              <option key={place} value={place}>
                place {place}
              </option>
            ))}
          </select>
        )}
      </Field>
    </FormDialog>
  );
}

function Strict({ now, onClose }: { now: boolean; onClose: () => void }) {
  const client = useQueryClient();
  const body = { strict: !now };
  return (
    <FormDialog
      title={now ? "Allow other networks?" : "Forbid other networks?"}
      label={now ? "Allow" : "Forbid"}
      ready
      command={`muster cluster network strict ${now ? "off" : "on"}`}
      call={`POST /v1/cluster/migration-strict\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        client.setQueryData(KEY, await value(api.POST("/v1/cluster/migration-strict", { body })));
      }}
    >
      <p>
        {now
          ? "Machines then move over other networks where those with a place do not work: slower, perhaps, and beside your other traffic."
          : "Machines then do not move at all while no network with a place works; a drain waits, too."}
      </p>
    </FormDialog>
  );
}
