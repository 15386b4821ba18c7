// The cluster: whether it can decide, what it may lose, its nodes, and what is going on.

import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Schemas } from "../api/client";
import { capacity, cluster, networks, nodes, ops, vms, volumes } from "../api/queries";
import { bytes, counted, type Tone, whenShort, word } from "../parts/format";
import { Badge, Facts, Meter, Section, Table, Trouble, Waiting } from "../parts/parts";
import { EventLines } from "./Events";
import { NodeModes } from "./NodeModes";
import { OpLines } from "./Operations";
import { where } from "./setup/place";

const HEALTH: Record<Schemas["ClusterHealth"], Tone> = {
  single: "plain",
  healthy: "good",
  degraded: "busy",
  no_quorum: "bad",
  gone: "bad",
};

export function Cluster() {
  const asked = useQuery(cluster);
  const view = asked.data;
  return (
    <>
      <div className="page-head">
        <h1>{view?.name ?? "This host"}</h1>
        {view && <Badge tone={HEALTH[view.health]}>{word(view.health)}</Badge>}
      </div>
      {asked.error && <Trouble error={asked.error} />}
      {asked.isPending && !asked.error && <Waiting what="the cluster" />}
      <First />
      {view && <Quorum view={view} />}
      <Nodes members={view?.nodes ?? []} />
      <Losses />
      <Under />
      <Volumes />
      <Networks />
      <Section title="Last events" beside={<Link to="/events">All events</Link>}>
        <EventLines most={12} />
      </Section>
    </>
  );
}

/** Where there is no machine yet, the way to the first one. */
function First() {
  const asked = useQuery(vms);
  if (!asked.data || asked.data.length > 0) return null;
  return (
    <Section title="Nothing runs here yet">
      <p>
        <Link to="/start" className="button main">
          The first machine, in three steps
        </Link>
      </p>
    </Section>
  );
}

function Quorum({ view }: { view: Schemas["ClusterView"] }) {
  const { witness } = view;
  return (
    <Section title="Who decides">
      {view.words.map((words) => (
        <p key={words}>{words}</p>
      ))}
      {view.id && (
        <Facts
          facts={[
            ["Voters", `${view.voters}; ${view.majority} must agree to a change`],
            ["May be lost now", String(view.may_lose)],
            ["Election", String(view.term)],
            ["Witness", witness ? <Witness view={witness} /> : "none"],
          ]}
        />
      )}
    </Section>
  );
}

function Witness({ view }: { view: Schemas["WitnessView"] }) {
  const state = view.retired ? "being removed" : view.votes ? "votes" : "in reserve";
  return (
    <>
      {where(view.place)} ({state}){" "}
      {!view.reachable && <Badge tone="bad">not reached: {view.problem ?? "no answer"}</Badge>}
    </>
  );
}

function Nodes({ members }: { members: Schemas["ClusterNodeView"][] }) {
  const asked = useQuery(nodes);
  const part = new Map(members.map((node) => [node.id, node]));
  return (
    <Section title="Nodes">
      {asked.error && <Trouble error={asked.error} />}
      <div className="cards">
        {asked.data?.map((node) => (
          <Node key={node.id} node={node} member={part.get(node.id)} />
        ))}
      </div>
    </Section>
  );
}

function Node({ node, member }: {
  node: Schemas["NodeView"];
  member: Schemas["ClusterNodeView"] | undefined;
}) {
  const away = member !== undefined && !member.reachable;
  const used = node.memory - node.memory_available;
  const storage = node.storage - node.storage_available;
  const found = [...node.problems, ...(member?.problem ? [member.problem] : [])];
  // One reason is enough for a node that is silent.
  const problems = away ? found.slice(0, 1) : found;
  return (
    <article className={away ? "card away" : "card"} aria-label={`Node ${node.name}`}>
      <div className="card-head">
        <h3>{node.name}</h3>
        {member && <Badge tone={away ? "bad" : "plain"}>{away ? "does not answer" : member.part}</Badge>}
        {node.mode && node.mode !== "active" && <Badge tone="busy">{word(node.mode)}</Badge>}
        {node.quarantine && <Badge tone="busy">not trusted until {whenShort(node.quarantine)}</Badge>}
      </div>
      {away ? (
        <p className="quiet-text">How full it is, is not known: it does not tell.</p>
      ) : (
        <>
          <Meter
            label={`Memory of ${node.name}`}
            part={used}
            whole={node.memory}
            text={`memory ${bytes(used)} of ${bytes(node.memory)}, ${bytes(node.memory_promised)} promised`}
          />
          <Meter
            label={`Storage of ${node.name}`}
            part={storage}
            whole={node.storage}
            text={`storage ${bytes(storage)} of ${bytes(node.storage)}`}
          />
          <p className="quiet-text">
            <Link to="/vms" search={{ node: node.name }}>
              {counted(node.vms_running, "machine")} with a process
            </Link>
            , {counted(node.cpus, "processor")}, {node.accelerator.toUpperCase()},{" "}
            {node.qemu ?? "QEMU cannot be used"}
          </p>
        </>
      )}
      {member && <NodeModes node={node} />}
      {problems.map((problem) => (
        <p key={problem} className="problem">
          {problem}
        </p>
      ))}
    </article>
  );
}

/** What would not run if a node died now. */
function Losses() {
  const asked = useQuery(capacity);
  const bad = asked.data?.filter((loss) => loss.unplaced.length + loss.local.length > 0) ?? [];
  return (
    <Section title="If a node died now">
      {asked.error && <Trouble error={asked.error} />}
      {asked.data && bad.length === 0 && (
        <p>Every running machine would be started on another node.</p>
      )}
      {bad.map((loss) => (
        <div key={loss.node}>
          <p>
            Without <strong>{loss.node}</strong>: {loss.restarted} would be started elsewhere,{" "}
            {loss.unplaced.length + loss.local.length} would not run:
          </p>
          <ul className="plain-list">
            {loss.unplaced.slice(0, LOSSES_MAX).map((one) => (
              <li key={one.vm}>
                <strong>{one.vm}</strong>: {one.why}
              </li>
            ))}
            {loss.local.length > 0 && (
              <li>
                on its own disks, down until it is back: {loss.local.slice(0, LOSSES_MAX).join(", ")}
                {loss.local.length > LOSSES_MAX && ` and ${loss.local.length - LOSSES_MAX} more`}
              </li>
            )}
          </ul>
        </div>
      ))}
    </Section>
  );
}

/** Machines that are named for one node; the command line shows all: muster cluster capacity. */
const LOSSES_MAX = 20;

function Under() {
  const asked = useQuery(ops);
  return (
    <Section title="Under way" beside={<Link to="/operations">All operations</Link>}>
      {asked.error && <Trouble error={asked.error} />}
      {asked.data && <OpLines ops={asked.data} none="Nothing is under way." />}
    </Section>
  );
}

function Volumes() {
  const asked = useQuery(volumes);
  return (
    <Section title="Volumes">
      {asked.error && <Trouble error={asked.error} />}
      {asked.data?.length === 0 && <p>None. Machines lie on the disks of their nodes.</p>}
      {asked.data && asked.data.length > 0 && (
        <Table label="Volumes" head={["Name", "Path", "Free", "Used by", "How nodes reach it"]}>
          {asked.data.map((volume) => (
            <tr key={volume.id}>
              <th scope="row">{volume.name}</th>
              <td>{volume.path}</td>
              <td>
                {volume.problem ? (
                  <span className="problem">{volume.problem}</span>
                ) : (
                  `${bytes(volume.free)} of ${bytes(volume.size)}`
                )}
              </td>
              <td>{volume.used_by.length}</td>
              <td className="long">
                <Reached volume={volume} />
              </td>
            </tr>
          ))}
        </Table>
      )}
    </Section>
  );
}

const ACCESS: Record<Schemas["VolumeAccess"], [string, Tone]> = {
  direct: ["direct", "good"],
  block_redirected: ["redirected, block by block", "busy"],
  file_redirected: ["redirected, file by file", "busy"],
  waiting: ["waits for a coordinator", "bad"],
  none: ["not mounted", "plain"],
  unknown: ["not known", "plain"],
};

/** Nodes that are named of those whose way is straight. */
const DIRECT_NAMED_MAX = 3;

/** Each node's way to a volume; where it is not the straight one, since when and why. */
function Reached({ volume }: { volume: Schemas["VolumeView"] }) {
  const { coordination } = volume;
  if (!coordination) return <>a directory that each node mounts itself</>;
  const { coordinator, nodes } = coordination;
  const straight = nodes.filter((node) => node.access === "direct").map((node) => node.node);
  const further = straight.length - DIRECT_NAMED_MAX;
  return (
    <ul className="bare-list">
      <li>{coordinator ? `${coordinator} coordinates` : "no node coordinates it"}</li>
      {straight.length > 0 && (
        <li>
          <Badge tone="good">direct</Badge> {straight.slice(0, DIRECT_NAMED_MAX).join(", ")}
          {further > 0 && ` and ${further} more`}
        </li>
      )}
      {nodes
        .filter((node) => node.access !== "direct")
        .map((node) => {
          const [access, tone] = ACCESS[node.access];
          return (
            <li key={node.node}>
              <Badge tone={tone}>{access}</Badge> {node.node}
              {node.since && ` since ${whenShort(node.since)}`}
              {node.why && <span className="hint">: {node.why}</span>}
            </li>
          );
        })}
    </ul>
  );
}

function Networks() {
  const asked = useQuery(networks);
  return (
    <Section title="Networks">
      {asked.error && <Trouble error={asked.error} />}
      {asked.data && (
        <Table label="Networks" head={["Name", "Kind", "Adapters", "On this node"]}>
          {asked.data.map((network) => (
            <tr key={network.id}>
              <th scope="row">{network.name}</th>
              <td>{word(network.kind)}</td>
              <td>{network.adapters.length}</td>
              <td>{network.problem ? <Badge tone="bad">{network.problem}</Badge> : "works"}</td>
            </tr>
          ))}
        </Table>
      )}
    </Section>
  );
}
