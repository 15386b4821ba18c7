// The mock behind Vite's own servers: `npm run dev:mock` beside the sources, `npm run mock` beside the
// built pages.

import type { IncomingMessage, ServerResponse } from "node:http";
import { Readable } from "node:stream";
import type { Connect, Plugin } from "vite";
import { handle } from "./answers";
import { World } from "./world";

/** How often something happens by itself, in milliseconds. */
const LIVE_MS = 3_000;

/** Longest body that is read, in bytes: as the daemon's. */
const BODY_BYTES_MAX = 1 << 20;

/** Answers everything below `/v1/`. `MUSTER_MOCK_VMS` and `MUSTER_MOCK_SEED` say which fleet, `MUSTER_MOCK_FRESH=1` a host of its own. */
export function mock(): Plugin {
  return {
    name: "muster-mock",
    configureServer: (server) => void server.middlewares.use(answers()),
    configurePreviewServer: (server) => void server.middlewares.use(answers()),
  };
}

function answers(): Connect.NextHandleFunction {
  const world = new World({
    ...(process.env.MUSTER_MOCK_FRESH ? { fresh: true } : { vms: Number(process.env.MUSTER_MOCK_VMS ?? 3_000) }),
    seed: Number(process.env.MUSTER_MOCK_SEED ?? 6),
    later: (what, ms) => void setTimeout(what, ms),
  });
  setInterval(() => world.live(), LIVE_MS).unref();
  return (request, response, next) => {
    if (!request.url?.startsWith("/v1/")) return next();
    void pass(world, request, response).catch(next);
  };
}

async function pass(world: World, from: IncomingMessage, to: ServerResponse): Promise<void> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of from as AsyncIterable<Buffer>) {
    size += piece.length;
    if (size > BODY_BYTES_MAX) {
      to.writeHead(413).end();
      return;
    }
    pieces.push(piece);
  }
  const body = Buffer.concat(pieces);
  const method = from.method ?? "GET";
  const request = new Request(`http://mock${from.url ?? ""}`, { method, ...(size > 0 ? { body } : {}) });
  const answer = await handle(world, request);
  to.writeHead(answer.status, Object.fromEntries(answer.headers));
  if (!answer.body) return void to.end();
  const out = Readable.fromWeb(answer.body as Parameters<typeof Readable.fromWeb>[0]);
  // A page that is closed ends its stream, and so what the stream holds.
  to.on("close", () => out.destroy());
  out.on("error", () => to.destroy());
  out.pipe(to);
}
