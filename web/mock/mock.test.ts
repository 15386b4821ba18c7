// What the mock answers is what the committed document says, for every operation.

import { beforeAll, describe, expect, it } from "vitest";
import type { Schemas } from "../src/api/client";
import { Reader } from "../src/live/sse";
import { handle, WITHOUT_ANSWER } from "./answers";
import { document, faults, find, type Operation, operations, type Schema } from "./document";
import { Lot, make } from "./make";
import { World } from "./world";

let world: World;
beforeAll(() => {
  world = new World({ vms: 400 });
});

const ask = (path: string, init?: RequestInit) => handle(world, new Request(`http://mock${path}`, init));

/** A path of an operation with something that exists wherever the world has it. */
function pathOf(operation: Operation): string {
  const vm = [...world.vms.values()].find((vm) => !vm.op && !vm.deleted);
  const known: Record<string, string | undefined> = {
    vm: vm?.id,
    node: world.nodes[0]?.name,
    op: world.ops[0]?.id,
  };
  return operation.path.replace(/\{(\w+)\}/g, (_, name) => known[name] ?? "one");
}

function schemaOf(name: string): Schema {
  const schema = document.components.schemas[name];
  if (!schema) throw new Error(name);
  return schema;
}

describe("the mock", () => {
  it("knows every operation of the document by its path", () => {
    expect(operations.length).toBeGreaterThan(80);
    for (const operation of operations) {
      expect(find(operation.method, pathOf(operation))?.operation.id).toBe(operation.id);
    }
  });

  it("answers every operation with what its schema says", async () => {
    // One operation must exist for those that ask for one.
    const vm = [...world.vms.values()][0];
    await ask(`/v1/vms/${vm?.id}/reset`, { method: "POST" });
    for (const operation of operations) {
      if (WITHOUT_ANSWER.has(operation.id)) continue;
      const made = operation.body && (make(operation.body, new Lot(operation.id)) as object);
      // What must be new, and what must be there.
      const fresh = { VmCreate: { name: "of-this-test" }, ClusterNetworkSet: { network: "10.1.0.0/24" } }[operation.id];
      const body = made && JSON.stringify({ ...made, ...fresh });
      const answer = await ask(pathOf(operation), { method: operation.method, ...(body ? { body } : {}) });
      const what = `${operation.id}: ${answer.status}`;
      expect(answer.headers.get("content-type"), what).toContain(operation.media);
      if (operation.media === "text/event-stream") {
        await answer.body?.cancel();
        continue;
      }
      if (operation.media !== "application/json") {
        expect(answer.status, what).toBe(200);
        expect((await answer.arrayBuffer()).byteLength, what).toBeGreaterThan(20);
        continue;
      }
      const value = await answer.json();
      expect(answer.status, `${what} ${JSON.stringify(value).slice(0, 300)}`).toBe(200);
      expect(faults(operation.reply ?? {}, value), what).toEqual([]);
      world.signedIn = true;
    }
  });

  it("makes values that fit for each schema and many seeds", () => {
    for (const [name, schema] of Object.entries(document.components.schemas)) {
      for (let seed = 0; seed < 20; seed++) {
        const value = make(schema, new Lot(`${name} ${seed}`), name);
        expect(faults(schema, value), `${name}, seed ${seed}`).toEqual([]);
      }
    }
  });

  it("finds what does not fit", () => {
    const vm: Record<string, unknown> = { ...[...world.vms.values()][0] };
    expect(faults(schemaOf("VmView"), vm)).toEqual([]);
    expect(faults(schemaOf("VmView"), { ...vm, phase: "happy" })).not.toEqual([]);
    expect(faults(schemaOf("VmView"), { ...vm, id: "7" })).not.toEqual([]);
    delete vm.name;
    expect(faults(schemaOf("VmView"), vm)).not.toEqual([]);
  });

  it("shows the same fleet for the same seed, and every machine fits", () => {
    const now = () => 1_790_000_000_000;
    const one = new World({ seed: 9, vms: 50, now });
    expect(new World({ seed: 9, vms: 50, now }).list(false)).toEqual(one.list(false));
    expect(new World({ seed: 8, vms: 50, now }).list(false)).not.toEqual(one.list(false));
    for (const vm of world.vms.values()) expect(faults(schemaOf("VmView"), vm)).toEqual([]);
    for (const event of world.events) expect(faults(schemaOf("EventView"), event)).toEqual([]);
    for (const op of world.ops) expect(faults(schemaOf("OpView"), op)).toEqual([]);
  });

  it("refuses as the daemon does, with a next step", async () => {
    const refused: [string, RequestInit, number][] = [
      ["/v1/nothing", {}, 404],
      ["/v1/vms/none", {}, 404],
      ["/v1/vms?colour=red", {}, 400],
      ["/v1/vms", { method: "POST", body: "{" }, 400],
      ["/v1/vms", { method: "POST", body: '{"cpus":2}' }, 400],
      ["/v1/vms/%2F/vnc", {}, 503],
    ];
    for (const [path, init, status] of refused) {
      const answer = await ask(path, init);
      expect(answer.status, path).toBe(status);
      const told = (await answer.json()) as Schemas["ApiError"];
      expect(faults(schemaOf("ApiError"), told), path).toEqual([]);
      expect(told.hint).not.toBe("");
    }
  });

  it("does what it is asked, and tells of it on the stream", async () => {
    const vm = [...world.vms.values()].find((vm) => vm.phase === "off");
    const stream = await ask("/v1/events/stream");
    const answer = await ask(`/v1/vms/${vm?.id}/start`, { method: "POST" });
    expect(((await answer.json()) as Schemas["OpView"]).state).toBe("done");
    const shown = (await (await ask(`/v1/vms/${vm?.name}`)).json()) as Schemas["VmView"];
    expect(shown.phase).toBe("running");
    expect(shown.run).not.toBeNull();

    const reader = new Reader();
    const bytes = stream.body?.getReader();
    const kinds: string[] = [];
    while (!kinds.includes("op.done")) {
      const piece = await bytes?.read();
      for (const line of reader.push(new TextDecoder().decode(piece?.value))) {
        if (line.kind !== "event") continue;
        const event = JSON.parse(line.data) as Schemas["EventView"];
        expect(faults(schemaOf("EventView"), event)).toEqual([]);
        kinds.push(event.kind);
      }
    }
    expect(kinds).toEqual(["op.begun", "vm.power", "op.done"]);
    await bytes?.cancel();
  });

  it("lets nobody look who is signed out", async () => {
    const { session } = (await (await ask("/v1/whoami")).json()) as Schemas["SessionBegunView"];
    expect((await ask(`/v1/sessions/${session.id}`, { method: "DELETE" })).status).toBe(200);
    expect((await ask("/v1/vms")).status).toBe(401);
    expect((await ask("/v1/whoami")).status).toBe(401);
    await ask("/v1/sessions", { method: "POST", body: '{"token":"any"}' });
    expect((await ask("/v1/vms")).status).toBe(200);
  });
});
