// The fleet at a glance: every node with its load, and its machines inside. From far it is a picture of
// colours; a node that is chosen shows its machines by name, and a machine leads to its page.

import { useQuery } from "@tanstack/react-query";
import { createLazyRoute, Link } from "@tanstack/react-router";
import { useMemo } from "react";
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

function Fleet() {
  const { node: chosen } = route.useSearch();
  const hosts = useQuery(nodes);
  const machines = useQuery(vms);
  const members = useQuery(cluster);
  const inside = useMemo(() => byNode(machines.data ?? []), [machines.data]);
  const away = new Set(members.data?.nodes.filter((node) => !node.reachable).map((node) => node.name));
  const error = hosts.error ?? machines.error;
  const shown = hosts.data?.filter((node) => !chosen || node.name === chosen) ?? [];
  return (
    <>
      <div className="page-head">
        <h1>{chosen ?? "Map"}</h1>
        {chosen && <Link to="/map">All nodes</Link>}
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
            part={busy}
            whole={node.cpus * 100}
            text={`machines use ${Math.round(busy) / 100} of ${counted(node.cpus, "processor")}`}
          />
          <Meter
            label={`Memory of ${node.name}`}
            part={used}
            whole={node.memory}
            text={`memory ${bytes(used)} of ${bytes(node.memory)}`}
          />
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
