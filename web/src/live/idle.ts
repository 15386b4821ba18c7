// Whether anybody is at this page: a session that nobody uses ends (the daemon's `session_idle_s`).
//
// What a page asks for by itself is no use of a session, so each request says for how many seconds there
// was no key, no click and no touch; the daemon counts that. The page counts too, to say so beforehand.

/** Header in which the page says how long nobody has touched it. */
export const IDLE_HEADER = "x-muster-idle";

/** How long before the end the page says so, in milliseconds. */
export const WARNED_MS = 60_000;

/** At least so often a page that is used tells so, though it asks for nothing: in milliseconds. */
const TOLD_MS = 60_000;

export class Presence {
  private last: number;
  private told: number;

  constructor(now: number) {
    this.last = now;
    this.told = now;
  }

  /** A key, a click or a touch. */
  touched(now: number): void {
    this.last = now;
  }

  /** For how many whole seconds there was none; a request is told so, and with it the daemon. */
  idleS(now: number): number {
    this.told = now;
    return Math.floor((now - this.last) / 1000);
  }

  /** Whether the daemon has to be told that somebody is here, since nothing else was asked. */
  mustTell(now: number): boolean {
    return this.last > this.told && now - this.told >= TOLD_MS;
  }

  /** How the session stands with that limit in seconds; 0 is none. */
  state(now: number, limitS: number): "used" | "warned" | "over" {
    if (limitS === 0) return "used";
    const rest = limitS * 1000 - (now - this.last);
    if (rest <= 0) return "over";
    return rest <= Math.min(WARNED_MS, limitS * 500) ? "warned" : "used";
  }
}

export const presence = new Presence(Date.now());

/** What counts as somebody: not the pointer alone, which a table that shakes moves, too. */
const SIGNS = ["keydown", "pointerdown", "touchstart", "wheel"] as const;

/** Follows keys, clicks and touches, those that go to a console as well; gives the end of it. */
export function follow(target: EventTarget = window): () => void {
  const touched = (): void => presence.touched(Date.now());
  for (const sign of SIGNS) target.addEventListener(sign, touched, { capture: true, passive: true });
  return () => {
    for (const sign of SIGNS) target.removeEventListener(sign, touched, { capture: true });
  };
}
