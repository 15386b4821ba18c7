// The fleet at a glance: every node with its load, and its machines inside. From far it is a picture of
// colours; a node that is chosen shows its machines by name, and a machine leads to its page.

import { useQuery } from "@tanstack/react-query";
import { createLazyRoute, Link } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import type { Schemas, VmSummary } from "../api/client";
import { cluster, nodes, vms } from "../api/queries";
import { bytes, counted, phaseTone } from "../parts/format";
import { Badge, Meter, Trouble, Waiting } from "../parts/parts";
import { Charts } from "./Charts";

export const route = createLazyRoute("/map")({ component: Fleet });

/** With more machines than this on a node they are a picture; by name they are shown when it is chosen. */
const NAMED_MAX = 40;

/** Machines of each node, the busiest first. */
export function byNode(list: VmSummary[]): Map<string, VmSummary[]> {
  const found = new Map<string, VmSummary[]>();
  for (const vm of list) {
    const there = found.get(vm.node);
    if (there) there.push(vm);
    else found.set(vm.node, [vm]);
  }
  for (const there of found.values()) {
    there.sort((a, b) => b.cpu_percent - a.cpu_percent || (a.name < b.name ? -1 : 1));
  }
  return found;
}

export type Order = "name" | "load" | "pressure";

/** From how much waiting on it is said, in percent of the time. */
const PRESSED = 10;

/** What a node waits for, the most first. */
export function waits(load: Schemas["NodeLoadView"]): [what: string, percent: number][] {
  const all: [string, number][] = [
    ["processors", load.waits_for_cpu],
    ["memory", load.waits_for_memory],
    ["disks", load.waits_for_disks],
  ];
  return all.sort((a, b) => b[1] - a[1]);
}

/** Nodes in an order; those of which nothing is known come last. */
export function arranged(nodes: Schemas["NodeView"][], order: Order): Schemas["NodeView"][] {
  const of = ({ load }: Schemas["NodeView"]) => {
    if (order === "name") return 0;
    if (!load) return -1;
    return order === "load" ? load.cpu : (waits(load)[0]?.[1] ?? 0);
  };
  return [...nodes].sort((a, b) => of(b) - of(a) || (a.name < b.name ? -1 : 1));
}

function Fleet() {
  const { node: chosen } = route.useSearch();
  const hosts = useQuery(nodes);
  const machines = useQuery(vms);
  const members = useQuery(cluster);
  const inside = useMemo(() => byNode(machines.data ?? []), [machines.data]);
  const away = new Set(members.data?.nodes.filter((node) => !node.reachable).map((node) => node.name));
  const error = hosts.error ?? machines.error;
  const [order, setOrder] = useState<Order>("name");
  const shown = arranged(hosts.data ?? [], order).filter((node) => !chosen || node.name === chosen);
  return (
    <>
      <div className="page-head">
        <h1>{chosen ?? "Map"}</h1>
        {chosen ? (
          <Link to="/map">All nodes</Link>
        ) : (
          <label>
            Nodes by{" "}
            <select value={order} onChange={(event) => setOrder(event.target.value as Order)}>
              <option value="name">name</option>
              <option value="load">load</option>
              <option value="pressure">pressure</option>
            </select>
          </label>
        )}
      </div>
      {error && <Trouble error={error} />}
      {!hosts.data && !error && <Waiting what="nodes" />}
      <div className={chosen ? "fleet one" : "fleet"}>
        {shown.map((node) => (
          <Host
            key={node.id}
            node={node}
            away={away.has(node.name)}
            machines={inside.get(node.name) ?? []}
            whole={chosen !== undefined}
          />
        ))}
      </div>
      {chosen && shown.map(({ id, name }) => <Charts key={id} of={{ what: "node", id: name, name, runs: !away.has(name) }} />)}
      <p className="legend">
        <Badge tone="good">running</Badge> <Badge tone="busy">on its way</Badge>{" "}
        <Badge tone="bad">in trouble</Badge> <Badge tone="plain">off</Badge>
      </p>
    </>
  );
}

/** Whether work waits there: load alone does not hurt, waiting does. */
function Pressure({ load }: { load: Schemas["NodeLoadView"] }) {
  const pressed = waits(load).filter(([, percent]) => percent >= PRESSED);
  if (pressed.length === 0) return <p className="quiet-text">no pressure</p>;
  return (
    <p>
      <Badge tone="busy">pressure</Badge> waits for{" "}
      {pressed.map(([what, percent]) => `${what} ${percent} % of the time`).join(", ")}
    </p>
  );
}

function Host({ node, away, machines, whole }: {
  node: Schemas["NodeView"];
  away: boolean;
  machines: VmSummary[];
  whole: boolean;
}) {
  const running = machines.filter((vm) => vm.phase === "running");
  const busy = running.reduce((sum, vm) => sum + vm.cpu_percent, 0);
  const named = whole || machines.length <= NAMED_MAX;
  const used = node.memory - node.memory_available;
  return (
    <section className={away ? "card away" : "card"} aria-label={`Node ${node.name}`}>
      <div className="card-head">
        <h2>
          <Link to="/map" search={{ node: node.name }}>
            {node.name}
          </Link>
        </h2>
        {away && <Badge tone="bad">does not answer</Badge>}
        <span className="quiet-text">
          {counted(machines.length, "machine")}, {running.length} running
        </span>
      </div>
      {!away && (
        <>
          <Meter
            label={`Processors of ${node.name}`}
            part={node.load ? node.load.cpu : busy}
            whole={node.load ? 100 : node.cpus * 100}
            text={`${node.load ? `processors ${node.load.cpu} % busy, ` : ""}machines use ${Math.round(busy) / 100} of ${counted(node.cpus, "processor")}`}
          />
          <Meter
            label={`Memory of ${node.name}`}
            part={used}
            whole={node.memory}
            text={`memory ${bytes(used)} of ${bytes(node.memory)}`}
          />
          {node.load && <Pressure load={node.load} />}
        </>
      )}
      {named ? (
        <ul className="tiles named">
          {machines.map((vm) => (
            <li key={vm.id}>
              <Link className={`tile ${phaseTone(vm.phase)}`} to="/vms/$vm" params={{ vm: vm.id }}>
                {vm.name} <span className="unseen">{vm.phase}</span>
              </Link>
            </li>
          ))}
        </ul>
      ) : (
        // Its words stand above; to go through hundreds of squares by keys helps nobody.
        <div className="tiles" aria-hidden="true">
          {machines.map((vm) => (
            <span key={vm.id} className={`tile ${phaseTone(vm.phase)}`} title={`${vm.name}: ${vm.phase}`} />
          ))}
        </div>
      )}
    </section>
  );
}
