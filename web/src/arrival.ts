// What the page was opened with: a sign-in link, or the word of a session whose node fell silent.
//
// It stands behind the `#` of the address, which browsers do not send, and is taken out at once: it must
// not stay in the history.

export interface Arrival {
  /** The secret of a sign-in link. */
  link?: string;
  /** The word of a session that goes on here. */
  onward?: string;
  /** Name of the node that it comes from. */
  from?: string;
  /** The page that was open there. */
  to?: string;
}

/** Reads what stands behind the `#`. */
export function read(hash: string): Arrival {
  const text = hash.replace(/^#/, "");
  if (text === "") return {};
  if (!text.includes("=")) return { link: text };
  const given = new URLSearchParams(text);
  const onward = given.get("onward");
  if (!onward) return {};
  const to = given.get("to") ?? "";
  const from = given.get("from") ?? "";
  return {
    onward,
    // A path of this node and nothing else.
    ...(/^\/(?![/\\])/.test(to) ? { to } : {}),
    ...(/^[\w.-]{1,63}$/.test(from) ? { from } : {}),
  };
}

/** The address at which a session's page goes on. */
export function onwardTo(address: string, arrival: { onward: string; from: string; to: string }): string {
  return `https://${address}/sign-in#${new URLSearchParams({ ...arrival }).toString()}`;
}

let taken: Arrival = {};

/** What the page was opened with; out of the address as soon as anybody asks. */
export function arrival(): Arrival {
  const { pathname, hash } = window.location;
  if (pathname === "/sign-in" && hash !== "") {
    taken = read(hash);
    window.history.replaceState(null, "", taken.to ?? "/sign-in");
  }
  return taken;
}
