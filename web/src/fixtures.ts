// Machines and answers for tests.

import { vi } from "vitest";
import type { Schemas, VmSummary } from "./api/client";

export function summaryOf(change: Partial<VmSummary> = {}): VmSummary {
  return {
    id: "01970000-0000-7000-8000-000000000001",
    name: "web-1",
    phase: "running",
    heartbeat: "ok",
    cpus: 2,
    memory: 1 << 30,
    cpu_percent: 12,
    addresses: ["10.77.0.10"],
    node: "host-1",
    tags: ["web"],
    busy: null,
    ...change,
  };
}

export function many(count: number): VmSummary[] {
  return Array.from({ length: count }, (_, n) =>
    summaryOf({
      id: `01970000-0000-7000-8000-${String(n).padStart(12, "0")}`,
      name: `vm-${n}`,
      node: `host-${n % 8}`,
      phase: n % 3 === 0 ? "off" : "running",
      addresses: [`10.0.${Math.floor(n / 250)}.${n % 250}`],
      tags: n % 2 === 0 ? ["even"] : [],
    }),
  );
}

export function eventOf(change: Partial<Schemas["EventView"]> = {}): Schemas["EventView"] {
  return {
    seq: 1,
    at: 1_760_000_000_000,
    kind: "vm.power",
    severity: "info",
    subject: { type: "vm", id: "01970000-0000-7000-8000-000000000001", name: "web-1" },
    text: "web-1 runs",
    actor: "user root",
    ...change,
  } as Schemas["EventView"];
}

/** Answers requests by path, as the daemon would; gives all requests that came. */
export function answer(answers: Record<string, (request: Request) => unknown>): Request[] {
  const came: Request[] = [];
  vi.stubGlobal("fetch", async (given: Request | string) => {
    const request = given instanceof Request ? given : new Request(new URL(given, "https://h1"));
    came.push(request.clone() as Request);
    const { pathname } = new URL(request.url);
    const found = answers[`${request.method} ${pathname}`];
    if (!found) throw new Error(`no answer was prepared for ${request.method} ${pathname}`);
    const body = found(request);
    if (body instanceof Response) return body;
    return new Response(JSON.stringify(body), {
      status: 200,
      headers: { "content-type": "application/json" },
    });
  });
  return came;
}

export function refusal(status: number, code: string, message: string, hint: string): Response {
  const body = JSON.stringify({ kind: "conflict", code, message, hint });
  return new Response(body, { status, headers: { "content-type": "application/json" } });
}
