// The mock as the daemon behind a component that is tested.

import { vi } from "vitest";
import { handle } from "./answers";
import { type Options, World } from "./world";

/** Answers every request out of a small world; gives the world, and the requests that came. */
export function mocked(options: Options = {}): { world: World; came: Request[] } {
  const world = new World(options.fresh ? options : { vms: 60, nodes: 4, ...options });
  const came: Request[] = [];
  vi.stubGlobal("fetch", async (given: Request | string, init?: RequestInit) => {
    const request =
      given instanceof Request ? given : new Request(new URL(given, "http://mock"), { method: init?.method ?? "GET" });
    came.push(request.clone());
    return handle(world, request);
  });
  return { world, came };
}
