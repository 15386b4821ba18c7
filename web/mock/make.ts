// Values made from a schema: the same ones for the same seed, and such as one sees in the field, as far as
// a field's name tells what it holds.

import { referred, type Schema } from "./document";

/** Levels of a value that are filled; below, what may be absent is absent. */
const DEPTH_MAX = 8;

/** The moment at which a made world stands still, for values that depend on nothing else. */
export const NOW = 1_790_000_000_000;

/** Numbers by lot from a seed (mulberry32): not for secrets. */
export class Lot {
  private state: number;

  constructor(seed: number | string) {
    this.state = typeof seed === "number" ? seed : hash(seed);
  }

  /** From 0 to 1, without 1. */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  }

  /** A whole number from `least` to `most`. */
  whole(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  one<T>(of: readonly T[]): T {
    const found = of[this.whole(0, of.length - 1)];
    if (found === undefined) throw new Error("a choice of nothing");
    return found;
  }

  hex(digits: number): string {
    return Array.from({ length: digits }, () => this.whole(0, 15).toString(16)).join("");
  }

  uuid(): string {
    return `01${this.hex(6)}-${this.hex(4)}-7${this.hex(3)}-8${this.hex(3)}-${this.hex(12)}`;
  }
}

function hash(text: string): number {
  let sum = 2_166_136_261;
  for (const char of text) sum = Math.imul(sum ^ (char.codePointAt(0) ?? 0), 16_777_619);
  return sum;
}

/** Any value that a schema allows. */
export function make(schema: Schema, lot: Lot, field = "", depth = 0): unknown {
  if (schema.$ref) {
    const { name, schema: meant } = referred(schema.$ref);
    return known(name, lot) ?? make(meant, lot, field || name, depth);
  }
  if (schema.allOf) {
    const { allOf, ...own } = schema;
    const parts = [...allOf, ...(own.properties ? [own] : [])];
    return Object.assign({}, ...parts.map((part) => make(part, lot, field, depth)));
  }
  const choice = schema.oneOf ?? schema.anyOf;
  if (choice) return oneOf(choice, lot, field, depth);
  if (schema.enum) return lot.one(schema.enum);
  const types = [schema.type ?? "object"].flat();
  const absent = types.includes("null") && (depth > DEPTH_MAX || lot.next() < 0.4);
  const type = absent ? "null" : types.find((it) => it !== "null");
  switch (type) {
    case "null":
      return null;
    case "boolean":
      return lot.next() < 0.5;
    case "integer":
    case "number":
      return number(schema, lot, field);
    case "string":
      return text(schema, lot, field);
    case "array": {
      const count = depth > DEPTH_MAX ? 0 : lot.whole(0, 3);
      const items = Array.from({ length: count }, () => make(schema.items ?? {}, lot, field, depth + 1));
      return schema.uniqueItems ? [...new Map(items.map((it) => [JSON.stringify(it), it])).values()] : items;
    }
    default:
      return object(schema, lot, depth);
  }
}

function oneOf(choice: Schema[], lot: Lot, field: string, depth: number): unknown {
  const filled = choice.filter((it) => it.type !== "null");
  const absent = filled.length < choice.length && (depth > DEPTH_MAX || lot.next() < 0.4);
  return absent ? null : make(lot.one(filled), lot, field, depth);
}

function object(schema: Schema, lot: Lot, depth: number): Record<string, unknown> {
  const value: Record<string, unknown> = {};
  for (const [name, part] of Object.entries(schema.properties ?? {})) {
    const needed = schema.required?.includes(name) ?? false;
    if (needed || (depth <= DEPTH_MAX && lot.next() < 0.7)) value[name] = make(part, lot, name, depth + 1);
  }
  if (typeof schema.additionalProperties === "object" && depth <= DEPTH_MAX) {
    for (let left = lot.whole(0, 2); left > 0; left--) {
      value[lot.one(WORDS)] = make(schema.additionalProperties, lot, "", depth + 1);
    }
  }
  return value;
}

const WORDS = ["web", "mail", "build", "index", "ledger", "proxy", "queue", "cache", "print", "wiki"];

/** Values of named schemas that their shape alone does not tell. */
function known(name: string, lot: Lot): unknown {
  switch (name) {
    case "Name":
      return `${lot.one(WORDS)}-${lot.whole(1, 99)}`;
    case "UnixMillis":
      return NOW - lot.whole(0, 30 * 24 * 3_600) * 1_000;
    case "Millis":
      return lot.whole(1, 600) * 100;
    case "Bytes":
      return lot.whole(1, 64) << 24;
    case "MacAddr":
      return ["52", "54", "00", lot.hex(2), lot.hex(2), lot.hex(2)].join(":");
    default:
      return undefined;
  }
}

function number(schema: Schema, lot: Lot, field: string): number {
  const most = /percent/.test(field) ? 100 : /port|_ms$|bytes|size/.test(field) ? 60_000 : 12;
  const least = schema.minimum ?? 0;
  return lot.whole(least, Math.max(least, Math.min(most, schema.maximum ?? most)));
}

function text(schema: Schema, lot: Lot, field: string): string {
  if (schema.format === "uuid") return lot.uuid();
  if (/address/.test(field)) return `10.77.${lot.whole(0, 9)}.${lot.whole(1, 254)}`;
  if (/sha256|fingerprint|digest|secret|csrf|onward|text$/.test(field)) return lot.hex(64);
  if (/path|mountpoint/.test(field)) return `/srv/${lot.one(WORDS)}`;
  if (/version|qemu/.test(field)) return `10.${lot.whole(0, 2)}.${lot.whole(0, 9)}`;
  if (/^(node|vm|host|name|host_?name|used_by|by|actor)$/.test(field)) return `${lot.one(WORDS)}-${lot.whole(1, 9)}`;
  if (/subnet/.test(field)) return `10.${lot.whole(1, 250)}.0.0/24`;
  if (/url/.test(field)) return `https://example.net/${lot.one(WORDS)}`;
  const words = `${lot.one(WORDS)} ${lot.one(WORDS)}`;
  return words.slice(0, schema.maxLength ?? words.length).padEnd(schema.minLength ?? 0, "x");
}
