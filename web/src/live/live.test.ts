import { describe, expect, it } from "vitest";
import { eventOf, many, summaryOf } from "../fixtures";
import type { Schemas } from "../api/client";
import { batchMs, effects, ONE_BY_ONE_MAX, patched } from "./effects";
import { type LinkState, SILENCE_MS, START, step } from "./link";
import { Reader } from "./sse";

describe("the stream's reader", () => {
  it("puts lines together, however the pieces fall", () => {
    const text = ': muster\n\nid: 7\ndata: {"seq":7}\n\n: alive\r\n\ndata: a\ndata: b\n\n';
    const whole = new Reader().push(text);
    expect(whole).toEqual([
      { kind: "alive" },
      { kind: "event", data: '{"seq":7}' },
      { kind: "alive" },
      { kind: "event", data: "a\nb" },
    ]);
    for (let size = 1; size < 9; size++) {
      const reader = new Reader();
      const lines = [];
      for (let at = 0; at < text.length; at += size) {
        lines.push(...reader.push(text.slice(at, at + size)));
      }
      expect(lines).toEqual(whole);
    }
  });

  it("gives up on a line without an end", () => {
    const reader = new Reader();
    const endless = () => {
      for (let n = 0; n < 40; n++) reader.push("x".repeat(100_000));
    };
    expect(endless).toThrow("no end");
  });
});

describe("the link to the node", () => {
  const run = (events: [Parameters<typeof step>[1]["what"], number][]): LinkState =>
    events.reduce<LinkState>((state, [what, at]) => step(state, { what }, at), START);

  it("is live once it is open, and not live when the node is silent too long", () => {
    expect(run([["opened", 10]])).toEqual({ at: "live", heard: 10 });
    const silent = run([["opened", 10], ["heard", 500], ["tick", 501 + SILENCE_MS]]);
    expect(silent).toMatchObject({ at: "waiting", lostSince: 500 });
    const spoke = run([["opened", 10], ["heard", 30_000], ["tick", 45_000]]);
    expect(spoke.at).toBe("live");
  });

  it("tries again after longer and longer pauses, and remembers since when it is lost", () => {
    let state = run([["opened", 0], ["lost", 1_000]]);
    const pauses = [];
    for (let now = 1_000; pauses.length < 7; ) {
      if (state.at !== "waiting") throw new Error(state.at);
      expect(state.lostSince).toBe(1_000);
      pauses.push(state.until - now);
      now = state.until;
      state = step(step(state, { what: "tick" }, now), { what: "lost" }, now);
    }
    expect(pauses).toEqual([500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
  });

  it("sleeps while nobody looks, and wakes with a new connection", () => {
    const asleep = run([["opened", 0], ["hidden", 5]]);
    expect(asleep.at).toBe("asleep");
    expect(step(asleep, { what: "lost" }, 6)).toBe(asleep);
    expect(step(asleep, { what: "tick" }, 99_000)).toBe(asleep);
    expect(step(asleep, { what: "shown" }, 99_000)).toEqual(START);
    const live = run([["opened", 0]]);
    expect(step(live, { what: "shown" }, 5)).toBe(live);
  });

  it("stops for good when it is refused", () => {
    const refused = run([["refused", 5]]);
    expect(refused.at).toBe("signed_out");
    expect(step(refused, { what: "retry" }, 6)).toBe(refused);
    expect(step(refused, { what: "opened" }, 6)).toBe(refused);
  });
});

describe("what events mean", () => {
  it("names the machines and the answers that are old", () => {
    const node = { type: "node", id: "n", name: "host-1" } as const;
    const found = effects([
      eventOf({ kind: "op.done" }),
      eventOf({ kind: "node.fenced", subject: node }),
    ]);
    expect([...found.vms]).toEqual([summaryOf().id]);
    expect([...found.stale].sort()).toEqual(["capacity", "cluster", "nodes", "ops"]);
  });

  it("shows what happens to few at once, and takes together what happens to many", () => {
    // An event is on the screen within 200 ms: the way there and the painting need most of it.
    expect(batchMs(0)).toBeLessThan(100);
    expect(batchMs(ONE_BY_ONE_MAX)).toBeLessThan(100);
    expect(batchMs(ONE_BY_ONE_MAX + 1)).toBeGreaterThanOrEqual(500);
  });

  it("changes one line of the list and leaves the others the same objects", () => {
    const list = many(100);
    const changed = list[40];
    if (!changed) throw new Error("there are 100");
    const vm = viewOf({ id: changed.id, name: changed.name, phase: "paused" });
    const after = patched(list, changed.id, vm);
    expect(after[40]).toMatchObject({ phase: "paused", cpus: 1 });
    expect(after.filter((line, n) => line !== list[n])).toHaveLength(1);
    expect(patched(after, changed.id, null)).toHaveLength(99);
    expect(patched(after, changed.id, { ...vm, phase: "deleted" })).toHaveLength(99);
    const added = viewOf({ id: "new", name: "a-first" });
    expect(patched(after, "new", added)[0]?.name).toBe("a-first");
  });
});

function viewOf(change: Partial<Schemas["VmView"]>): Schemas["VmView"] {
  return {
    nics: [],
    guest: { heartbeat: "ok" },
    cpus: { count: 1, max: 1 },
    memory: { size: 1 << 20, max: 1 << 20 },
    tags: [],
    node: "host-1",
    phase: "running",
    ...change,
  } as unknown as Schemas["VmView"];
}
