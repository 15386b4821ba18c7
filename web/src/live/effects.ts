// What an event means for what the page knows: which answers are old, and which machines changed.

import type { Schemas, VmSummary } from "../api/client";
import { keys } from "../api/queries";

type EventView = Schemas["EventView"];

/** What a batch of events asks for. */
export interface Effects {
  /** Ids of machines of which something changed. */
  vms: Set<string>;
  /** Keys of answers that are old now. */
  stale: Set<string>;
}

export function effects(events: EventView[]): Effects {
  const vms = new Set<string>();
  const stale = new Set<string>();
  for (const event of events) {
    const [noun] = event.kind.split(".");
    if (event.subject.type === "vm") vms.add(event.subject.id);
    if (noun === "op") stale.add(keys.ops[0]);
    if (BINNED.has(event.kind)) stale.add(keys.vms[0]);
    for (const key of BY_NOUN[noun ?? ""] ?? []) stale.add(key);
    if (TAKES_PLACE.has(event.kind)) stale.add(keys.capacity[0]);
  }
  return { vms, stale };
}

/** Machines that are asked for one by one; when more change at once, the list is asked for. */
export const ONE_BY_ONE_MAX = 8;

/** How long events are taken together, in milliseconds: when few come, and when a cluster tells many at once. */
const CALM_MS = 40;
const BUSY_MS = 500;

/** How long to wait for more events after the first, given how many machines the last batch was about. */
export function batchMs(lastMachines: number): number {
  return lastMachines > ONE_BY_ONE_MAX ? BUSY_MS : CALM_MS;
}

const BY_NOUN: Record<string, string[]> = {
  image: [keys.images[0]],
  network: [keys.networks[0]],
  volume: [keys.volumes[0], keys.capacity[0]],
  node: [keys.nodes[0], keys.cluster[0], keys.capacity[0]],
  cluster: [keys.nodes[0], keys.cluster[0]],
  session: [keys.sessions[0]],
  token: [keys.sessions[0]],
  rule: [keys.rules[0]],
  validation: [keys.validation[0]],
};

/** Events that move machines in and out of the recycle bin: both lists are others then. */
const BINNED = new Set(["vm.deleted", "vm.undeleted", "vm.purged", "vm.forgotten", "vm.registered"]);

/** Events after which other machines may or may not find room. */
const TAKES_PLACE = new Set([
  "vm.created",
  "vm.power",
  "vm.changed",
  "vm.taken_over",
  "vm.moved",
  "vm.deleted",
  "rule.changed",
]);

/** A machine's line of the list, out of all that is known of it. */
export function summary(vm: Schemas["VmView"]): VmSummary {
  const addresses = [
    ...vm.nics.flatMap((nic) => (nic.reserved_address ? [nic.reserved_address] : [])),
    ...vm.nics.flatMap((nic) => nic.addresses),
  ];
  return {
    id: vm.id,
    name: vm.name,
    phase: vm.phase,
    heartbeat: vm.guest.heartbeat,
    cpus: vm.cpus.count,
    memory: vm.memory.size,
    cpu_percent: vm.run?.cpu_percent ?? 0,
    addresses: [...new Set(addresses)],
    node: vm.node,
    tags: vm.tags,
    busy: vm.op?.verb ?? null,
  };
}

/** The list with one machine's line made new; without it if it is gone. */
export function patched(
  list: VmSummary[],
  id: string,
  vm: Schemas["VmView"] | null,
): VmSummary[] {
  const place = list.findIndex((other) => other.id === id);
  if (vm === null || vm.phase === "deleted") {
    return place < 0 ? list : list.filter((other) => other.id !== id);
  }
  const line = summary(vm);
  if (place >= 0) return list.map((other, index) => (index === place ? line : other));
  return [...list, line].sort((a, b) => (a.name < b.name ? -1 : 1));
}
