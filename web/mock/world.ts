// The fleet that the mock shows: nodes, machines, volumes, networks and what happens to them, from a seed.
//
// What a page needs to be right (who is where, what runs) is told here; everything else of a record is
// made from its schema, so that a field that is added to the API shows up by itself.

import type { Schemas, VmSummary } from "../src/api/client";
import { summary } from "../src/live/effects";
import { document } from "./document";
import { Lot, make } from "./make";

type VmView = Schemas["VmView"];
type EventView = Schemas["EventView"];
type OpView = Schemas["OpView"];

/** Events that the mock keeps. */
const EVENTS_MAX = 1_000;

/** Operations that the mock keeps. */
const OPS_MAX = 500;

const GIB = 2 ** 30;
const SERVICES = ["web", "mail", "build", "index", "ledger", "proxy", "queue", "cache", "print", "wiki"];
const SYSTEMS = ["Debian GNU/Linux 13 (trixie)", "Debian GNU/Linux 12 (bookworm)", "Ubuntu 26.04 LTS"];
const TAGS = ["production", "test", "north", "south", "backup"];

export interface Options {
  seed?: number;
  nodes?: number;
  vms?: number;
  /** A single host as it is after its installation: no cluster, no image, no volume, no machine. */
  fresh?: boolean;
  /** The time now, in Unix milliseconds. */
  now?: () => number;
  /** Does something after so many milliseconds: at once in tests. */
  later?: (what: () => void, ms: number) => void;
}

/** A value of a named schema, with what is known of it. */
function record<Name extends keyof Schemas>(
  name: Name,
  lot: Lot,
  known: Partial<Schemas[Name]>,
): Schemas[Name] {
  const schema = document.components.schemas[name];
  if (!schema) throw new Error(`no schema ${name}`);
  return Object.assign({}, make(schema, lot, name) as Schemas[Name], known);
}

export class World {
  readonly now: () => number;
  readonly later: (what: () => void, ms: number) => void;
  readonly vms = new Map<string, VmView>();
  readonly nodes: Schemas["NodeView"][];
  cluster: Schemas["ClusterView"];
  readonly volumes: Schemas["VolumeView"][];
  readonly networks: Schemas["NetworkView"][];
  images: Schemas["ImageView"][];
  readonly hostNetworks: Schemas["ClusterNetworksView"];
  events: EventView[] = [];
  ops: OpView[] = [];
  signedIn = true;
  /** Rises with each change, for answers that depend on chance. */
  readonly lot: Lot;
  private seq = 0;
  private readonly followers = new Set<(event: EventView) => void>();

  constructor({ seed = 6, fresh = false, nodes = fresh ? 1 : 8, vms = fresh ? 0 : 3_000, now = Date.now, later }: Options = {}) {
    this.now = now;
    this.later = later ?? ((what) => what());
    const lot = new Lot(seed);
    this.lot = lot;
    this.nodes = Array.from({ length: nodes }, (_, n) => this.node(lot, n + 1));
    this.cluster = fresh ? this.singleOf() : this.clusterOf(lot);
    this.networks = this.networksOf(lot);
    this.hostNetworks = this.hostNetworksOf();
    this.images = fresh ? [] : SYSTEMS.map((_, n) => this.image(lot, `debian-${13 - n}`));
    this.volumes = (fresh ? [] : ["fast", "slow", "archive"]).map((name, n) => this.volume(lot, name, n));
    for (let n = 0; n < vms; n++) {
      const vm = this.machine(lot, n);
      this.vms.set(vm.id, vm);
    }
    for (const node of this.nodes) {
      const runs = [...this.vms.values()].filter((vm) => vm.node === node.name && vm.run);
      node.vms_running = runs.length;
      node.memory_promised = runs.reduce((sum, vm) => sum + vm.memory.size, 0);
      node.memory = Math.max(512 * GIB, Math.ceil(node.memory_promised * 1.4));
      node.memory_available = Math.floor((node.memory - node.memory_promised) * 0.9);
    }
    for (const vm of [...this.vms.values()].slice(0, 40)) this.tell(vm, "vm.power", `${vm.name} is ${vm.phase}`);
  }

  private node(lot: Lot, n: number): Schemas["NodeView"] {
    return record("NodeView", lot, {
      id: lot.uuid(),
      name: `host-${n}`,
      version: "0.1.0",
      started: this.now() - lot.whole(1, 40) * 86_400_000,
      cpus: 128,
      storage: 8_000 * GIB,
      storage_available: lot.whole(500, 7_000) * GIB,
      accelerator: "kvm",
      accelerator_reason: "the behaviour test passed",
      missing_limits: [],
      problems: n === 3 ? ["its volume slow is full: free some space"] : [],
      mode: "active",
      quarantine: null,
      load: { cpu: lot.whole(5, 70), waits_for_cpu: 0, waits_for_memory: 0, waits_for_disks: n === 3 ? 34 : 1 },
      qemu: "10.0.2",
      tls_address: `10.1.0.${n}:7443`,
      reconcilers: [],
    });
  }

  private singleOf(): Schemas["ClusterView"] {
    return {
      ...this.clusterOf(this.lot),
      id: null,
      name: this.nodes[0]?.name ?? "host-1",
      health: "single",
      words: ["this host stands alone: what it runs, runs here only"],
    };
  }

  /** Makes a cluster of the single host. */
  found(name: string): Schemas["ClusterView"] {
    this.cluster = { ...this.clusterOf(this.lot), name };
    return this.cluster;
  }

  private clusterOf(lot: Lot): Schemas["ClusterView"] {
    const voters = Math.min(7, this.nodes.length);
    const members = this.nodes.map((node, n) =>
      record("ClusterNodeView", lot, {
        id: node.id,
        name: node.name,
        part: n === 0 ? "leader" : n < voters ? "voter" : "learner",
        reachable: true,
        addresses: [`10.1.0.${n + 1}:7400`],
        version: node.version,
        behind: 0,
        problem: null,
        certificate_ends: this.now() + 80 * 86_400_000,
      } as Partial<Schemas["ClusterNodeView"]>),
    );
    return record("ClusterView", lot, {
      id: lot.uuid(),
      name: "north",
      node: this.nodes[0]?.id,
      leader: this.nodes[0]?.id,
      health: "healthy",
      words: [`host-1 leads; ${voters} of ${this.nodes.length} nodes vote, and ${Math.floor((voters - 1) / 2)} may be lost`],
      voters,
      majority: Math.floor(voters / 2) + 1,
      may_lose: Math.floor((voters - 1) / 2),
      nodes: members,
      witness: null,
    });
  }

  private networksOf(lot: Lot): Schemas["NetworkView"][] {
    const one = (name: string, kind: Partial<Schemas["NetworkView"]>) =>
      record("NetworkView", lot, {
        id: lot.uuid(),
        name,
        adapters: [],
        problem: null,
        created: this.now() - 40 * 86_400_000,
        ...kind,
      });
    return [
      { ...one("nat", {}), kind: "nat", subnet: "10.77.0.0/16" },
      { ...one("office", {}), kind: "bridge", bridge: "br-office" },
    ].map((network) => strip(network, network.kind === "nat" ? "bridge" : "subnet")) as Schemas["NetworkView"][];
  }

  private hostNetworksOf(): Schemas["ClusterNetworksView"] {
    const one = (place: number, name: string | null, without: number) => {
      const nodes = this.nodes.map((node, n) => ({ node: node.name, address: `10.${place}.0.${n + 1}` }));
      return {
        subnet: `10.${place}.0.0/24`,
        name,
        cluster: true,
        migration: name === null ? null : place,
        nodes: nodes.slice(0, nodes.length - without),
        missing: nodes.slice(nodes.length - without).map(({ node }) => node),
      };
    };
    return { strict: false, networks: [one(1, "management", 0), one(2, null, 1)] };
  }

  image(lot: Lot, name: string): Schemas["ImageView"] {
    return {
      ...record("ImageView", lot, { id: lot.uuid(), name, used_by: [], format: "qcow2" }),
      state: "ready",
      file_size: 400 << 20,
      virtual_size: 2 * GIB,
      sha256: lot.hex(64),
    } as Schemas["ImageView"];
  }

  private volume(lot: Lot, name: string, n: number): Schemas["VolumeView"] {
    const made = record("VolumeView", lot, {
      id: lot.uuid(),
      name,
      size: 20_000 * GIB,
      free: (n === 1 ? 300 : 12_000) * GIB,
      problem: n === 1 ? "nearly full: move machines away, or make it larger" : null,
      used_by: [],
      coordination: null,
    });
    const { id, created, size, free, problem, used_by } = made;
    // One lies on a LUN, which a node has no path of its own to.
    if (n === 2) {
      const since = this.now() - 600_000;
      const nodes = this.nodes.map((node, at): Schemas["VolumeNodeView"] =>
        at === 1
          ? { node: node.name, access: "block_redirected", path: false, why: "its path to the LUN does not answer", since }
          : { node: node.name, access: "direct", path: true, why: null, since: null },
      );
      const coordinator = this.nodes[0]?.name ?? null;
      const coordination: Schemas["CoordinationView"] = { epoch: 3, coordinator, wanted: null, maintenance: false, phase: "ready", nodes };
      const lun = { kind: "lun", lun: "wwn-0x5000c500a1b2c3d4", fs: "xfs", uuid: lot.uuid(), fences: true } as const;
      return { id, name, created, size, free, problem, used_by, ...lun, path: `/muster/volumes/${name}`, coordination };
    }
    return { id, name, created, size, free, problem, used_by, kind: "share", path: `/srv/${name}` } as Schemas["VolumeView"];
  }

  /** A machine by lot. */
  machine(lot: Lot, n: number): VmView {
    const name = `${SERVICES[n % SERVICES.length]}-${Math.floor(n / SERVICES.length) + 1}`;
    const draw = lot.next();
    const phase: VmView["phase"] =
      draw < 0.72 ? "running" : draw < 0.95 ? "off" : draw < 0.97 ? "paused" : draw < 0.99 ? "saved" : "failed";
    const size = lot.one([1, 2, 4, 8, 16]) * GIB;
    const node = lot.one(this.nodes);
    const vm = record("VmView", lot, {
      id: lot.uuid(),
      name,
      node: node.name,
      description: n % 7 === 0 ? "Made by the mock." : "",
      phase,
      power: phase === "failed" || phase === "off" ? "off" : (phase as VmView["power"]),
      tags: TAGS.filter(() => lot.next() < 0.25),
      cpus: { count: lot.one([1, 2, 4, 8]), max: 8 },
      memory: { size, max: size * 2 },
      note: phase === "failed" ? "QEMU ended with status 1: look at its log, then start it" : null,
      created: this.now() - lot.whole(1, 300) * 86_400_000,
      op: null,
      deleted: null,
      saved: null,
      volume: lot.one([null, "fast", "slow"]),
      nics: [this.nic(lot, n)],
      guest: this.guest(lot, name, phase === "running"),
    } as Partial<VmView>);
    vm.cpus = { count: vm.cpus.count, max: Math.max(vm.cpus.count, vm.cpus.max) };
    vm.run = phase === "running" || phase === "paused" ? this.run(lot, vm) : null;
    return vm;
  }

  private nic(lot: Lot, n: number): Schemas["NicView"] {
    const address = `10.77.${(n >> 8) & 255}.${n & 255}`;
    return record("NicView", lot, {
      name: "net0",
      network: "nat",
      reserved_address: address,
      addresses: [address],
      link_up: true,
    });
  }

  private guest(lot: Lot, name: string, runs: boolean): Schemas["GuestView"] {
    const filesystems = runs ? [{ mountpoint: "/", kind: "ext4", total: 20 * GIB, used: lot.whole(1, 19) * GIB }] : [];
    return record("GuestView", lot, {
      heartbeat: runs ? (lot.next() < 0.97 ? "ok" : "no_contact") : "off",
      hostname: runs ? name : null,
      os: runs ? lot.one(SYSTEMS) : null,
      kernel: runs ? "6.12.41" : null,
      users: [],
      frozen: false,
      filesystems,
    });
  }

  /** A run that begins now, of a machine as it is. */
  run(lot: Lot, vm: VmView): Schemas["RunView"] {
    return record("RunView", lot, {
      pid: lot.whole(1_000, 4_000_000),
      started: this.now() - lot.whole(1, 20) * 3_600_000,
      accelerator: "kvm",
      accelerator_reason: "the behaviour test passed",
      qemu: "10.0.2",
      cpus: vm.cpus.count,
      memory: vm.memory.size,
      cpu_percent: lot.whole(0, 60),
      resident: Math.floor(vm.memory.size * 0.8),
      missing_limits: [],
    });
  }

  /** A machine by id or name. */
  vm(which: string): VmView | undefined {
    return this.vms.get(which) ?? [...this.vms.values()].find((vm) => vm.name === which);
  }

  list(deleted: boolean): VmSummary[] {
    return [...this.vms.values()].filter((vm) => (vm.deleted != null) === deleted).map(summary);
  }

  tell(vm: VmView, kind: EventView["kind"], text: string, op?: string): void {
    this.seq += 1;
    const event = {
      seq: this.seq,
      at: this.now(),
      kind,
      severity: "info",
      subject: { type: "vm", id: vm.id, name: vm.name },
      actor: "user mock",
      text,
      ...(op ? { op } : {}),
    } as EventView;
    this.events = [...this.events, event].slice(-EVENTS_MAX);
    for (const follower of this.followers) follower(event);
  }

  /** Is told of all events from now on, until the answer is called. */
  follow(told: (event: EventView) => void): () => void {
    this.followers.add(told);
    return () => this.followers.delete(told);
  }

  /** Does something to a machine, as an operation that takes a while. */
  operate(vm: VmView, verb: OpView["verb"], words: string, change: () => void): OpView {
    const begun = this.now();
    const known = {
      id: this.lot.uuid(),
      verb,
      title: `${words} ${vm.name}`,
      target: vm.name,
      actor: "user mock",
      begun,
      deadline: begun + 300_000,
      vm: vm.id,
    };
    const running: OpView = { ...known, state: "running", cancel_requested: false };
    this.ops = [...this.ops, running].slice(-OPS_MAX);
    vm.op = running;
    this.tell(vm, "op.begun", known.title, known.id);
    this.later(() => {
      change();
      vm.op = null;
      const done: OpView = { ...known, state: "done", at: this.now() };
      this.ops = this.ops.map((op) => (op.id === known.id ? done : op));
      this.tell(vm, "op.done", known.title, known.id);
    }, 1_200);
    return this.ops.find((op) => op.id === known.id) ?? running;
  }

  /** Something happens by itself, as in any fleet: a machine is started, or stopped. */
  live(): void {
    if (this.vms.size === 0) return;
    const vm = this.lot.one([...this.vms.values()]);
    if (vm.op || vm.deleted) return;
    if (vm.phase === "off") this.operate(vm, "vm_start", "start", () => this.power(vm, "running"));
    else if (vm.phase === "running") this.operate(vm, "vm_pause", "pause", () => this.power(vm, "paused"));
    else if (vm.phase === "paused") this.operate(vm, "vm_resume", "resume", () => this.power(vm, "running"));
  }

  /** Brings a machine to a state, and tells of it. */
  power(vm: VmView, power: VmView["power"]): void {
    vm.power = power;
    vm.phase = power;
    vm.note = null;
    vm.run = power === "running" || power === "paused" ? (vm.run ?? this.run(this.lot, vm)) : null;
    vm.guest = this.guest(this.lot, vm.name, power === "running");
    this.tell(vm, "vm.power", `${vm.name} is ${power}`);
  }
}

function strip<T extends object>(value: T, field: string): T {
  return Object.fromEntries(Object.entries(value).filter(([name]) => name !== field)) as T;
}
