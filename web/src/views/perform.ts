// Doing things to machines through the API.

import { api, type Schemas, value } from "../api/client";
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

/** Waits until an operation ends. Throws what it failed with. */
export async function ended(op: OpView, told?: (op: OpView) => void): Promise<OpView> {
  let now = op;
  while (now.state === "running") {
    const params = { path: { op: op.id }, query: { timeout_ms: 20_000 } };
    now = await value(api.GET("/v1/ops/{op}/wait", { params }));
    told?.(now);
  }
  return now;
}
