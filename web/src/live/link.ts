// The page's link to its node: whether what is shown is live.
//
//   connecting --opened--> live --lost--> waiting --due--> connecting ...
//        |                  |
//        +---- refused (401): signed out ----+
//
// A page that nobody sees sleeps: browsers allow six connections to a node, for all pages together.
//
// Pure: time comes with the events, and what is to be done is returned.

/** How long the daemon may be silent: it says that it lives every 15 seconds. */
export const SILENCE_MS = 40_000;

/** Pauses between tries, in milliseconds; the last one again and again. */
const PAUSES_MS = [500, 1_000, 2_000, 4_000, 8_000];

export type LinkState =
  | { at: "connecting"; tries: number; lostSince: number | null }
  | { at: "live"; heard: number }
  | { at: "waiting"; tries: number; lostSince: number; until: number }
  | { at: "asleep" }
  | { at: "signed_out" };

export type LinkEvent =
  | { what: "opened" }
  | { what: "heard" }
  | { what: "lost" }
  | { what: "refused" }
  | { what: "tick" }
  | { what: "hidden" }
  | { what: "shown" }
  | { what: "retry" };

export const START: LinkState = { at: "connecting", tries: 0, lostSince: null };

/** The next state. Whoever holds it connects on entering `connecting`. */
export function step(state: LinkState, event: LinkEvent, now: number): LinkState {
  if (state.at === "signed_out") return state;
  switch (event.what) {
    case "refused":
      return { at: "signed_out" };
    case "hidden":
      return { at: "asleep" };
    case "shown":
      return state.at === "asleep" ? START : state;
    case "opened":
      return state.at === "connecting" ? { at: "live", heard: now } : state;
    case "heard":
      return state.at === "live" ? { at: "live", heard: now } : state;
    case "lost":
      return lost(state, now);
    case "retry":
      return state.at === "waiting" ? connecting(state) : state;
    case "tick":
      if (state.at === "live" && now - state.heard > SILENCE_MS) return lost(state, state.heard);
      return state.at === "waiting" && now >= state.until ? connecting(state) : state;
  }
}

function lost(state: LinkState, since: number): LinkState {
  if (state.at === "waiting" || state.at === "asleep" || state.at === "signed_out") return state;
  const tries = state.at === "connecting" ? state.tries + 1 : 1;
  const lostSince = state.at === "connecting" ? (state.lostSince ?? since) : since;
  const pause = PAUSES_MS[Math.min(tries, PAUSES_MS.length) - 1] ?? 0;
  return { at: "waiting", tries, lostSince, until: since + pause };
}

function connecting(state: LinkState & { at: "waiting" }): LinkState {
  return { at: "connecting", tries: state.tries, lostSince: state.lostSince };
}
