// Which other nodes a page could go on at, and whether the browser reaches them.

import type { Schemas } from "../api/client";

/** A node with a console. */
export interface Other {
  name: string;
  address: string;
}

/** The page moves after its node has been silent for so long, in milliseconds. */
export const MOVES_AFTER_MS = 10_000;

/** How long a node may take to be reached, in milliseconds. */
const REACH_MS = 3_000;

/** Those that answered when the page last knew, but the one that it comes from. */
export function others(nodes: Schemas["NodeView"][], host: string): Other[] {
  return nodes.flatMap(({ name, tls_address: address }) =>
    address && address !== host ? [{ name, address }] : [],
  );
}

/** The first that the browser reaches, with a certificate that it takes; it asks nobody for that. */
export async function reached(all: Other[]): Promise<Other | null> {
  const tries = all.map(async (other) => {
    await fetch(`https://${other.address}/icon.svg`, {
      mode: "no-cors",
      credentials: "omit",
      cache: "no-store",
      signal: AbortSignal.timeout(REACH_MS),
    });
    return other;
  });
  return Promise.any(tries).catch(() => null);
}
