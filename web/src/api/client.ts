// The way to the API: typed by the committed OpenAPI document, with the session's word on everything
// that changes something, and one form of failure.

import createClient, { type Middleware } from "openapi-fetch";
import { IDLE_HEADER, presence } from "../live/idle";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];

/** What a path answers to somebody who looks. */
type Reply<Path extends keyof paths> = paths[Path] extends {
  get: { responses: { 200: { content: { "application/json": infer Answer } } } };
}
  ? Answer
  : never;

/** One line of the list of machines. */
export type VmSummary = Reply<"/v1/vms">[number];

/** One change of a machine's settings. */
export type SettingsChange = Reply<"/v1/vms/{vm}/history">[number];

/** One line of the list of sessions. */
export type SessionView = Reply<"/v1/sessions">[number];

/** What went wrong, with a next step: the API's own error, or that nobody answered. */
export class Failure extends Error {
  readonly status: number;
  readonly code: string;
  readonly hint: string;

  constructor(status: number, code: string, message: string, hint: string) {
    super(message);
    this.name = "Failure";
    this.status = status;
    this.code = code;
    this.hint = hint;
  }

  /** Whether nobody is signed in (any more). */
  get signedOut(): boolean {
    return this.status === 401;
  }

  static of(error: unknown): Failure {
    if (error instanceof Failure) return error;
    return new Failure(
      0,
      "unreachable",
      "this node does not answer",
      "check the network, or open the console of another node",
    );
  }
}

/** Header in which the page shows its session's word. */
const CSRF_HEADER = "x-muster-csrf";

let csrf = "";

/** The word of the session that is open; empty if there is none. */
export function setCsrf(word: string): void {
  csrf = word;
}

const showOurselves: Middleware = {
  onRequest({ request }) {
    if (request.method !== "GET" && csrf !== "") request.headers.set(CSRF_HEADER, csrf);
    request.headers.set(IDLE_HEADER, String(presence.idleS(Date.now())));
    return request;
  },
};

export const api = createClient<paths>({
  baseUrl: globalThis.location?.origin ?? "",
  credentials: "same-origin",
  // Looked up at each call, so that tests can put another one in its place.
  fetch: (request) => globalThis.fetch(request),
});
api.use(showOurselves);

interface Answered<T> {
  data?: T | undefined;
  error?: unknown;
  response: Response;
}

/** The answer's value, or a [`Failure`]. */
export async function value<T>(asked: Promise<Answered<T>>): Promise<NonNullable<T>> {
  let answer: Answered<T>;
  try {
    answer = await asked;
  } catch (error) {
    throw Failure.of(error);
  }
  const { data, error, response } = answer;
  if (response.ok && data !== undefined && data !== null) return data as NonNullable<T>;
  const told = (error ?? {}) as Partial<Schemas["ApiError"]>;
  throw new Failure(
    response.status,
    told.code ?? "bad_reply",
    told.message ?? `the node answered with status ${response.status}`,
    told.hint ?? "look at the daemon's log: journalctl -u muster",
  );
}

type Told = (stale: boolean) => void;

let toldOfStale: Told = () => {};

/** Who is told whether the last answer was what the node last knew, without a majority. */
export function onStale(told: Told): void {
  toldOfStale = told;
}

/**
 * Asks for something that follows from the cluster's state. Without a majority there is only what this
 * node last knew: then that is asked for, and the page says so.
 */
export async function known<T>(
  ask: (query: { stale?: boolean }) => Promise<Answered<T>>,
): Promise<NonNullable<T>> {
  try {
    const answer = await value(ask({}));
    toldOfStale(false);
    return answer;
  } catch (error) {
    if (Failure.of(error).code !== "no_majority") throw error;
    const answer = await value(ask({ stale: true }));
    toldOfStale(true);
    return answer;
  }
}
