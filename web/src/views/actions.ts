// What can be done to machines: in which phase, by whom, what it may lose, and how the command line
// says it. Pure; the API decides again.

import type { Schemas, VmSummary } from "../api/client";
import { mayDo } from "../parts/format";

export type Verb = "start" | "shutdown" | "off" | "pause" | "resume" | "save" | "reset" | "delete";

export interface Action {
  verb: Verb;
  label: string;
  /** Phases in which it does something. */
  phases: Schemas["Phase"][];
  role: Schemas["Role"];
  /** What may be lost: then it is asked for first. */
  loses?: string;
}

const RUNS: Schemas["Phase"][] = ["running", "paused", "hung"];

export const ACTIONS: Action[] = [
  { verb: "start", label: "Start", phases: ["off", "saved", "failed"], role: "operator" },
  { verb: "shutdown", label: "Shut down", phases: ["running"], role: "operator" },
  { verb: "pause", label: "Pause", phases: ["running"], role: "operator" },
  { verb: "resume", label: "Resume", phases: ["paused", "saved"], role: "operator" },
  { verb: "save", label: "Save", phases: ["running", "paused"], role: "operator" },
  {
    verb: "reset",
    label: "Reset …",
    phases: RUNS,
    role: "operator",
    loses: "Whatever its guest has not written to disk is lost, as after a press of the reset button.",
  },
  {
    verb: "off",
    label: "Turn off …",
    phases: [...RUNS, "starting", "stopping"],
    role: "operator",
    loses: "Whatever its guest has not written to disk is lost, as after a power cut.",
  },
  {
    verb: "delete",
    label: "Delete …",
    phases: ["off", "saved", "failed"],
    role: "administrator",
    loses: "It goes to the recycle bin with its disks, and can be taken out of there for some days.",
  },
];

type Target = Pick<VmSummary, "phase">;

/** Why an action cannot be done to these machines now; nothing if it can, to some of them at least. */
export function whyNot(
  action: Action,
  targets: Target[],
  role: Schemas["Role"] | undefined,
): string | undefined {
  if (!mayDo(role, action.role)) {
    return `This needs the role ${action.role}; you are signed in as ${role ?? "nobody"}.`;
  }
  if (targets.length === 0) return "Choose a machine first.";
  if (fit(action, targets).length > 0) return undefined;
  const phases = [...new Set(targets.map((target) => target.phase))].join(", ");
  return `Not possible while ${targets.length === 1 ? "it is" : "they are"} ${phases}.`;
}

/** Those of the machines to which an action can be done. */
export function fit<T extends Target>(action: Action, targets: T[]): T[] {
  return targets.filter((target) => action.phases.includes(target.phase));
}

/** From this many machines on, a destructive action asks for their number to be typed. */
export const TYPED_FROM = 5;

/** The command line that does the same. */
export function command(verb: Verb, names: string[]): string {
  return `muster vm ${verb} ${names.join(" ")}`;
}

/** How long a guest may take to shut down, in seconds. */
export const PATIENCE_S = 120;
