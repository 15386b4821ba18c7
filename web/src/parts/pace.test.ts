import { describe, expect, it } from "vitest";
import { Pace } from "./pace";

const op = (done: number, step = "copying", id = "o1") => ({ id, progress: { step, done, total: 1_000 } });

describe("what is left of an operation", () => {
  it("follows from how it went, once it was watched for a while", () => {
    const pace = new Pace();
    expect(pace.left(op(100), 0)).toBeNull();
    expect(pace.left(op(200), 1_000), "too early").toBeNull();
    expect(pace.left(op(500), 4_000)).toBe(5_000);
    // Time goes on though nothing new was heard.
    expect(pace.left(op(500), 6_000)).toBe(3_000);
    expect(pace.left(op(500), 99_000)).toBe(0);
  });

  it("begins anew with each step, and says nothing where the total is not known", () => {
    const pace = new Pace();
    pace.left(op(100), 0);
    expect(pace.left(op(10, "converting"), 5_000)).toBeNull();
    expect(pace.left(op(20, "converting"), 10_000)).toBe(490_000);
    expect(pace.left(op(5, "converting"), 11_000), "it went back").toBeNull();
    expect(pace.left({ id: "o2", progress: { step: "x", done: 1, total: 0 } }, 1)).toBeNull();
    expect(pace.left({ id: "o3", progress: null }, 1)).toBeNull();
  });

  it("remembers no more than a page can use", () => {
    const pace = new Pace();
    for (let n = 0; n < 1_000; n++) pace.left(op(1, "copying", `o${n}`), n);
    expect((pace as unknown as { seen: Map<string, unknown> }).seen.size).toBe(200);
  });
});
