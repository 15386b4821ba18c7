// Figures and words for people, in the browser's own language of numbers and dates.

import type { Schemas } from "../api/client";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** A size: `1.5 GiB`. */
export function bytes(size: number | null | undefined): string {
  if (size === null || size === undefined) return "–";
  let rest = size;
  let unit = 0;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  const digits = Number.isInteger(rest) || rest >= 100 ? 0 : 1;
  const number = rest.toLocaleString(undefined, { maximumFractionDigits: digits });
  return `${number} ${UNITS[unit]}`;
}

/** A size as people write it (`20G`, `512M`, `1.5 GiB`) in bytes; null if it is none. */
export function parseBytes(text: string): number | null {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:iB|B)?\s*$/i.exec(text);
  if (!match) return null;
  const power = ["", "K", "M", "G", "T", "P"].indexOf((match[2] ?? "").toUpperCase());
  const size = Math.round(Number(match[1]) * 1024 ** power);
  return Number.isSafeInteger(size) && size > 0 ? size : null;
}

export function when(at: number): string {
  return new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** Today's times without the date. */
export function whenShort(at: number): string {
  const date = new Date(at);
  const today = date.toDateString() === new Date().toDateString();
  return today
    ? date.toLocaleTimeString()
    : date.toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
}

/** A length of time: `3 min 5 s`. */
export function length(ms: number): string {
  const all = Math.max(0, Math.round(ms / 1000));
  const parts: [number, string][] = [
    [Math.floor(all / 86_400), "d"],
    [Math.floor(all / 3_600) % 24, "h"],
    [Math.floor(all / 60) % 60, "min"],
    [all % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

export type Tone = "good" | "busy" | "bad" | "plain";

/** How a phase is shown; the word itself always stands beside the colour. */
export function phaseTone(phase: Schemas["Phase"]): Tone {
  switch (phase) {
    case "running":
      return "good";
    case "failed":
    case "hung":
      return "bad";
    case "off":
    case "saved":
    case "deleted":
      return "plain";
    default:
      return "busy";
  }
}

const HEARTBEATS: Record<Schemas["Heartbeat"], string> = {
  ok: "answers",
  no_contact: "no contact",
  lost: "lost",
  not_installed: "no agent heard",
  off: "–",
};

export function heartbeat(beat: Schemas["Heartbeat"]): string {
  return HEARTBEATS[beat];
}

/** A word of the API for people: `vm_start` is `start`, `no_quorum` is `no quorum`. */
export function word(text: string): string {
  return text.replace(/^vm_/, "").replaceAll("_", " ");
}

/** So many of a thing: `1 machine`, `2 machines`. */
export function counted(count: number, noun: string): string {
  return `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
}

/** One word of a command line, quoted if a shell would take it apart. */
export function shell(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Roles, each of which may do all that the one before it may. */
const ROLES: Schemas["Role"][] = ["viewer", "operator", "administrator"];

export function mayDo(role: Schemas["Role"] | undefined, needed: Schemas["Role"]): boolean {
  return role !== undefined && ROLES.indexOf(role) >= ROLES.indexOf(needed);
}
