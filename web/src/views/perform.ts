// Doing things to machines through the API.

import { api, Failure, type Schemas, value } from "../api/client";
import { PATIENCE_S, type Verb } from "./actions";

type OpView = Schemas["OpView"];

/** Begins an operation on a machine. */
export function perform(verb: Verb, vm: string): Promise<OpView> {
  const params = { params: { path: { vm } } };
  switch (verb) {
    case "start":
      return value(api.POST("/v1/vms/{vm}/start", params));
    case "shutdown": {
      const body = { patience_s: PATIENCE_S, then_off: false };
      return value(api.POST("/v1/vms/{vm}/shutdown", { ...params, body }));
    }
    case "off":
      return value(api.POST("/v1/vms/{vm}/off", params));
    case "pause":
      return value(api.POST("/v1/vms/{vm}/pause", params));
    case "resume":
      return value(api.POST("/v1/vms/{vm}/resume", params));
    case "save":
      return value(api.POST("/v1/vms/{vm}/save", params));
    case "reset":
      return value(api.POST("/v1/vms/{vm}/reset", params));
    case "delete":
      return value(
        api.DELETE("/v1/vms/{vm}", { params: { path: { vm }, query: { purge: false } } }),
      );
  }
}

/** How often a silent node is asked again how an operation goes, and the pause between, in milliseconds. */
const TRIES_MAX = 60;
const PAUSE_MS = 1_000;

/** Waits until an operation ends; a node that is silent for a while does not end it. */
export async function ended(op: OpView, told?: (op: OpView) => void): Promise<OpView> {
  let now = op;
  let tries = 0;
  while (now.state === "running") {
    try {
      const params = { path: { op: op.id }, query: { timeout_ms: 20_000 } };
      now = await value(api.GET("/v1/ops/{op}/wait", { params }));
      tries = 0;
      told?.(now);
    } catch (error) {
      const { status } = Failure.of(error);
      if (status !== 0 && status !== 503) throw error;
      tries += 1;
      if (tries > TRIES_MAX) throw unknownEnd();
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
  return now;
}

function unknownEnd(): Failure {
  return new Failure(
    0,
    "outcome_unknown",
    "how it ended is not known: this node does not answer",
    "look at the page Operations when it does",
  );
}
