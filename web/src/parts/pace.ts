// How long an operation will still take, from how it went so far. The API says how much is done of how
// much; what is left follows from watching it, as the command line's bar does.

import type { Schemas } from "../api/client";

type Op = Pick<Schemas["OpView"], "id" | "progress">;

/** A step as it was seen first and last. */
interface Seen {
  step: string;
  total: number;
  first: { done: number; at: number };
  last: { done: number; at: number };
}

/** How long a step must have been watched before anything is said of its end, in milliseconds. */
const WATCHED_MS = 3_000;

/** Operations that are remembered; the oldest make room. */
const SEEN_MAX = 200;

export class Pace {
  private readonly seen = new Map<string, Seen>();

  /** What is left of the present step, in milliseconds; null where that cannot be said. */
  left(op: Op, now: number): number | null {
    const { progress } = op;
    if (!progress || progress.total <= 0) return null;
    const { step, total, done } = progress;
    const before = this.seen.get(op.id);
    const goesOn = before && before.step === step && before.total === total && done >= before.last.done;
    if (!goesOn) {
      this.seen.delete(op.id);
      const [oldest] = this.seen.keys();
      if (this.seen.size >= SEEN_MAX && oldest !== undefined) this.seen.delete(oldest);
      this.seen.set(op.id, { step, total, first: { done, at: now }, last: { done, at: now } });
      return null;
    }
    // Looking again at the same answer says nothing new.
    if (done > before.last.done) before.last = { done, at: now };
    const time = before.last.at - before.first.at;
    const grown = before.last.done - before.first.done;
    if (time < WATCHED_MS || grown <= 0) return null;
    const end = before.last.at + ((total - before.last.done) * time) / grown;
    return Math.max(0, end - now);
  }
}

/** That of this page. */
export const pace = new Pace();
