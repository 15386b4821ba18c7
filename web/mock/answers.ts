// What the mock answers: the operations that a page lives from, out of the world; all others made from
// their schema. Refusals are the API's own form of error.

import { deflateSync, crc32 } from "node:zlib";
import type { Schemas } from "../src/api/client";
import { faults, find, type Operation } from "./document";
import { Lot, make } from "./make";
import type { World } from "./world";

type VmView = Schemas["VmView"];

/** Something that the mock refuses. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly kind: Schemas["ErrorKind"],
    readonly code: string,
    message: string,
    readonly hint: string,
  ) {
    super(message);
  }
}

/** A request, taken apart. */
interface Call {
  world: World;
  parts: string[];
  query: URLSearchParams;
  body: Record<string, unknown>;
}

type Handler = (call: Call) => unknown;

/** Operations that the mock has no answer for: they need a machine behind them. */
export const WITHOUT_ANSWER = new Set(["VmSerial", "VmVnc"]);

const power =
  (verb: Schemas["Verb"], words: string, to: VmView["power"]): Handler =>
  (call) => {
    const vm = machine(call);
    if (vm.op) throw new Refusal(409, "conflict", "busy", `${vm.op.title} is under way`, "wait for it, or cancel it");
    return call.world.operate(vm, verb, words, () => call.world.power(vm, to));
  };

const HANDLERS: Record<string, Handler> = {
  WhoAmI: ({ world }) => whoAmI(world),
  SessionBegin: ({ world }) => {
    world.signedIn = true;
    return whoAmI(world);
  },
  SessionEnd: ({ world }) => {
    world.signedIn = false;
    return {};
  },
  Version: () => ({ version: "0.1.0", api: "v1" }),
  ClusterShow: ({ world }) => world.cluster,
  NodeList: ({ world }) => world.nodes,
  NodeShow: ({ world, parts }) =>
    world.nodes.find((node) => node.name === parts[0] || node.id === parts[0]) ?? nothing("node", parts[0]),
  ClusterNetworkList: ({ world }) => world.hostNetworks,
  ClusterNetworkSet: ({ world, body }) => {
    const { network, name, migration } = body as Schemas["ClusterNetworkSetBody"];
    const found = world.hostNetworks.networks.find((it) => it.subnet === network || it.name === network);
    if (!found) return nothing("network of hosts", network);
    if (name != null) found.name = name;
    if (migration != null) found.migration = migration === 0 ? null : migration;
    return world.hostNetworks;
  },
  MigrationStrict: ({ world, body }) => {
    world.hostNetworks.strict = body.strict === true;
    return world.hostNetworks;
  },
  VolumeList: ({ world }) => world.volumes,
  NetworkList: ({ world }) => world.networks,
  ImageList: ({ world }) => world.images,
  Capacity: ({ world }) => world.nodes.map(({ name, vms_running }) => ({ node: name, restarted: vms_running, unplaced: [], local: [] })),
  OpList: ({ world, query }) =>
    query.get("all") === "true" ? world.ops : world.ops.filter((op) => op.state === "running"),
  OpShow: operation,
  OpWait: operation,
  EventList: ({ world, query }) => {
    const after = Number(query.get("after") ?? 0);
    const limit = Math.min(1_000, Number(query.get("limit") ?? 100));
    return world.events.filter((event) => event.seq > after).slice(-limit);
  },
  VmList: ({ world, query }) => {
    const tag = query.get("tag");
    return world.list(query.get("deleted") === "true").filter((vm) => !tag || vm.tags.includes(tag));
  },
  VmShow: machine,
  VmMetrics: (call) => metrics(call, machine(call)),
  NodeMetrics: (call) => metrics(call, HANDLERS.NodeShow?.(call) as Schemas["NodeView"]),
  VmStart: power("vm_start", "start", "running"),
  VmShutdown: power("vm_shutdown", "shut down", "off"),
  VmOff: power("vm_off", "turn off", "off"),
  VmPause: power("vm_pause", "pause", "paused"),
  VmResume: power("vm_resume", "resume", "running"),
  VmSave: power("vm_save", "save", "saved"),
  VmReset: power("vm_reset", "reset", "running"),
  VmDelete: (call) => {
    const vm = machine(call);
    return call.world.operate(vm, "vm_delete", "delete", () => {
      call.world.power(vm, "off");
      vm.phase = "deleted";
      vm.deleted = call.world.now();
      call.world.tell(vm, "vm.deleted", `${vm.name} is in the recycle bin`);
    });
  },
  VmUndelete: (call) => {
    const vm = machine(call);
    vm.deleted = null;
    call.world.power(vm, "off");
    call.world.tell(vm, "vm.undeleted", `${vm.name} is back`);
    return vm;
  },
  VmSet: (call) => {
    const vm = machine(call);
    return call.world.operate(vm, "vm_set", "change", () => change(call.world, vm, call.body));
  },
  ClusterCreate: ({ world, body }) => world.found(String(body.name ?? world.nodes[0]?.name)),
  ImageImport: ({ world, body }) => {
    const image = world.image(world.lot, String(body.name));
    world.images = [...world.images, image];
    const begun = world.now();
    const op = { id: world.lot.uuid(), verb: "image_import", title: `import ${image.name}`, target: image.name, image: image.id };
    const done = { ...op, actor: "user mock", begun, deadline: begun + 300_000, state: "done", at: begun } as Schemas["OpView"];
    world.ops = [...world.ops, done];
    return done;
  },
  VmFirstBoot: ({ body }) => {
    const config = body.cloud_init as Schemas["CloudInit"] | null | undefined;
    if (!config) return { files: [] };
    const user = JSON.stringify({ hostname: config.hostname ?? body.name, users: [{ name: config.user }] });
    return {
      files: [
        { name: "meta-data", text: JSON.stringify({ "local-hostname": body.name }) },
        { name: "user-data", text: config.user_data ?? `#cloud-config\n${user}` },
      ],
    };
  },
  VmCreate: ({ world, body }) => {
    const name = String(body.name);
    if (world.vm(name)) throw new Refusal(409, "conflict", "name_taken", `there is a machine ${name}`, "choose another name");
    const model = [...world.vms.values()][0] ?? world.machine(world.lot, 0);
    const vm: VmView = {
      ...structuredClone(model),
      id: world.lot.uuid(),
      name,
      created: world.now(),
      deleted: null,
      op: null,
      run: null,
    };
    change(world, vm, body);
    world.power(vm, "off");
    world.vms.set(vm.id, vm);
    world.tell(vm, "vm.created", `${name} was created`);
    return world.operate(vm, "vm_create", "create", () => undefined);
  },
};

function change(world: World, vm: VmView, body: Record<string, unknown>): void {
  const given = body as Schemas["VmChange"];
  if (given.name) vm.name = given.name;
  if (given.description != null) vm.description = given.description;
  if (given.tags) vm.tags = given.tags;
  const count = given.cpus ?? vm.cpus.count;
  vm.cpus = { ...vm.cpus, count, max: Math.max(count, given.cpus_max ?? vm.cpus.max) };
  const size = given.memory ?? vm.memory.size;
  vm.memory = { ...vm.memory, size, max: Math.max(size, given.memory_max ?? vm.memory.max) };
  vm.revision += 1;
  world.tell(vm, "vm.changed", `${vm.name} was changed`);
}

function whoAmI(world: World): Schemas["SessionBegunView"] {
  if (!world.signedIn) throw new Refusal(401, "unauthenticated", "signed_out", "nobody is signed in", "sign in with any token");
  const session = { id: new Lot("session").uuid(), csrf: "mock", onward: "mock", expires: world.now() + 3_600_000 };
  return { actor: "user mock", role: "administrator", session };
}

function machine({ world, parts }: Call): VmView {
  return world.vm(parts[0] ?? "") ?? nothing("vm", parts[0]);
}

const STEPS = [1, 10, 60, 600, 3_600];
const LEVELS = [600, 7_200, 2 * 86_400, 30 * 86_400, 366 * 86_400];

/** Figures that go up and down through minutes and days, each object in its own way. */
function metrics({ world, query }: Call, of: { id: string; memory: number | Schemas["MemorySpec"] }): Schemas["MetricsView"] {
  const to = Math.min(Number(query.get("to") ?? world.now()), world.now());
  const from = Number(query.get("from") ?? to - 600_000);
  if (from >= to) throw new Refusal(400, "bad_request", "bad_time", "`from` is not before `to`", "leave it out");
  const given = query.get("resolution_s");
  const span = (to - from) / 1_000;
  const found = STEPS.findIndex((step, level) => span <= (LEVELS[level] ?? 0) && span / step <= 1_500);
  const step = (given ? Number(given) : (STEPS[found] ?? 3_600)) * 1_000;
  const first = Math.floor(from / step);
  const points = Math.floor(to / step) + 1 - first;
  const phase = new Lot(of.id).next() * 6;
  const size = typeof of.memory === "number" ? of.memory : of.memory.size;
  const series = (figure: Schemas["Figure"], most: number, turn: number) => {
    const at = (n: number) => {
      const seconds = ((first + n) * step) / 1_000;
      const day = 0.5 + 0.3 * Math.sin(seconds / 13_751 + phase + turn);
      return Math.round(most * (day + 0.15 * Math.sin(seconds / 7 + turn) + 0.05 * Math.sin(seconds * turn)));
    };
    const mean = Array.from({ length: points }, (_, n) => at(n));
    return { figure, mean, peak: mean.map((value) => (step === 1_000 ? value : Math.round(value * 1.3))) };
  };
  return {
    from: first * step,
    resolution_s: step / 1_000,
    points,
    series: [
      series("cpu_percent", 180, 1),
      series("memory", size * 0.9, 0.2),
      series("memory_demand", size * 0.7, 0.3),
      series("disk_read", 9e6, 3),
      series("disk_written", 3e7, 5),
      series("net_received", 1e6, 7),
      series("net_sent", 5e6, 11),
      series("cpu_pressure", 20, 13),
    ],
  };
}

function operation({ world, parts }: Call): Schemas["OpView"] {
  return world.ops.find((op) => op.id === parts[0]) ?? nothing("operation", parts[0]);
}

function nothing(what: string, which: string | undefined): never {
  throw new Refusal(404, "not_found", "not_found", `there is no ${what} ${which}`, "look at the list");
}

/** Answers a request as a daemon would whose fleet is this world. */
export async function handle(world: World, request: Request): Promise<Response> {
  try {
    const url = new URL(request.url);
    const found = find(request.method, url.pathname);
    if (!found) return failure(new Refusal(404, "not_found", "no_such_path", "there is no such path", "see openapi/"));
    const { operation, parts } = found;
    if (WITHOUT_ANSWER.has(operation.id)) {
      throw new Refusal(503, "unavailable", "no_console", "the mock has no consoles", "use a real daemon");
    }
    if (!world.signedIn && !["Version", "WhoAmI", "SessionBegin", "OpenApi"].includes(operation.id)) whoAmI(world);
    refuseQuery(operation, url.searchParams);
    const body = await bodyOf(operation, request);
    return answer(operation, { world, parts, query: url.searchParams, body });
  } catch (error) {
    if (error instanceof Refusal) return failure(error);
    throw error;
  }
}

function answer(operation: Operation, call: Call): Response {
  const type = operation.media ?? "application/json";
  const headers = { "content-type": type };
  if (type === "text/event-stream") return new Response(stream(call.world), { headers });
  if (type === "image/png") return new Response(picture(machine(call).name), { headers });
  if (type === "application/openmetrics-text") {
    const text = `# TYPE muster_node_vms_running gauge\nmuster_node_vms_running ${call.world.list(false).length}\n# EOF\n`;
    return new Response(text, { headers });
  }
  const handler = HANDLERS[operation.id];
  // The same question has the same answer, as long as nothing changes.
  const value = handler
    ? handler(call)
    : make(operation.reply ?? {}, new Lot([operation.id, ...call.parts].join("/")), operation.id);
  return new Response(JSON.stringify(value), { headers });
}

async function bodyOf(operation: Operation, request: Request): Promise<Record<string, unknown>> {
  if (!operation.body) return {};
  const text = await request.text();
  if (text === "" && !operation.bodyRequired) return {};
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Refusal(400, "bad_request", "bad_body", "the body is not JSON", "see openapi/");
  }
  const wrong = faults(operation.body, body);
  if (wrong.length > 0) throw new Refusal(400, "bad_request", "bad_body", wrong.join("; "), "see openapi/");
  return body as Record<string, unknown>;
}

/** Refuses parameters that the document has not: the daemon would, too. */
function refuseQuery(operation: Operation, query: URLSearchParams): void {
  const known = new Set(operation.query.map(({ name }) => name));
  for (const name of query.keys()) {
    if (!known.has(name)) {
      throw new Refusal(400, "bad_request", "bad_query", `${operation.id} takes no ${name}`, "see openapi/");
    }
  }
}

function failure({ status, kind, code, message, hint }: Refusal): Response {
  return new Response(JSON.stringify({ kind, code, message, hint }), {
    status,
    headers: { "content-type": "application/json" },
  });
}

/** How often the stream says that it lives, in milliseconds: as the daemon does. */
const ALIVE_MS = 15_000;

function stream(world: World): ReadableStream<Uint8Array> {
  const text = new TextEncoder();
  let end = () => {};
  return new ReadableStream({
    start(out) {
      out.enqueue(text.encode(": muster\n\n"));
      const unfollow = world.follow((event) =>
        out.enqueue(text.encode(`id: ${event.seq}\ndata: ${JSON.stringify(event)}\n\n`)),
      );
      const alive = setInterval(() => out.enqueue(text.encode(": alive\n\n")), ALIVE_MS);
      end = () => {
        unfollow();
        clearInterval(alive);
      };
    },
    cancel: () => end(),
  });
}

const WIDTH = 160;
const HEIGHT = 100;

/** A picture of a screen: a slope of greys, another one for each name. */
function picture(name: string): Uint8Array<ArrayBuffer> {
  const base = new Lot(name).whole(0, 120);
  const rows = Buffer.alloc((WIDTH + 1) * HEIGHT);
  for (let y = 0; y < HEIGHT; y++) {
    for (let x = 0; x < WIDTH; x++) rows[y * (WIDTH + 1) + x + 1] = (base + x / 2 + y / 2) & 255;
  }
  const head = Buffer.alloc(13);
  head.writeUInt32BE(WIDTH, 0);
  head.writeUInt32BE(HEIGHT, 4);
  // Eight bits of grey, no interlace.
  head.set([8, 0, 0, 0, 0], 8);
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const parts = [signature, chunk("IHDR", head), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))];
  return new Uint8Array(Buffer.concat(parts));
}

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, "ascii"), data]);
  const whole = Buffer.alloc(body.length + 8);
  whole.writeUInt32BE(data.length, 0);
  body.copy(whole, 4);
  whole.writeUInt32BE(crc32(body) >>> 0, body.length + 4);
  return whole;
}
