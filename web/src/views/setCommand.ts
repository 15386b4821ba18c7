// A change of a machine's settings, as the command line says it. Pure.

import type { Schemas } from "../api/client";
import { shell } from "../parts/format";

type Change = Schemas["VmChange"];

/** A size in the largest unit that shows it exactly. */
export function exact(size: number): string {
  for (const [unit, power] of [["G", 3], ["M", 2], ["K", 1]] as const) {
    if (size > 0 && size % 1024 ** power === 0) return `${size / 1024 ** power}${unit}`;
  }
  return String(size);
}

const plain = (value: string | number): string => shell(String(value));
const word = (value: string): string => value.replaceAll("_", "-");
const onOff = (on: boolean): string => (on ? "on" : "off");
const seconds = (ms: number): string => `${Math.round(ms / 1000)}s`;
const millis = (ms: number): string => `${ms}ms`;

/** Options of `muster vm set` that make the change, in the order of its help. */
export function options(change: Change): string[] {
  const all: string[] = [];
  const one = <T>(flag: string, value: T | null | undefined, told: (value: T) => string): void => {
    if (value !== null && value !== undefined) all.push(`--${flag} ${told(value)}`);
  };
  const many = (flag: string, none: string, values: string[] | null | undefined): void => {
    if (!values) return;
    all.push(...(values.length > 0 ? values.map((value) => `--${flag} ${shell(value)}`) : [`--${none}`]));
  };
  one("name", change.name, plain);
  one("cpus", change.cpus, plain);
  one("cpus-max", change.cpus_max, plain);
  one("cpu-weight", change.cpu_weight, plain);
  one("cpu-cap", change.cpu_cap_percent, plain);
  one("cpu-compat", change.cpu_compat, word);
  one("memory", change.memory, exact);
  one("memory-max", change.memory_max, exact);
  one("balloon", change.balloon, exact);
  one("firmware", change.firmware, word);
  one("profile", change.profile, word);
  for (const [service, on] of Object.entries(change.services ?? {})) {
    one("service", on as boolean | null, (on) => `${word(service)}=${onOff(on)}`);
  }
  one("on-crash", change.on_crash, word);
  const { ha, migration } = change;
  one("failover", ha?.enabled, onOff);
  one("priority", ha?.priority, word);
  many("prefer", "prefer-none", ha?.preferred);
  many("only-on", "anywhere", ha?.possible);
  one("failback", ha?.failback, onOff);
  many("after", "after-none", ha?.after);
  one("takeovers-max", ha?.failures_max, plain);
  one("takeover-period", ha?.failure_period, seconds);
  one("restart-hung", ha?.restart_hung, onOff);
  one("hung-after", ha?.hung_after, seconds);
  one("migrate-max-pause", migration?.max_pause, millis);
  one("migrate-throttle", migration?.throttle, onOff);
  one("migrate-at-limit", migration?.at_limit, word);
  one("migrate-bandwidth", migration?.bandwidth, exact);
  one("description", change.description, shell);
  many("tag", "no-tags", change.tags);
  return all;
}
