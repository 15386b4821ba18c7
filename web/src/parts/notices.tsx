// What was begun on this page and how it goes: told to eyes in a corner, and to readers of the screen.

import {
  createContext,
  type ReactNode,
  useCallback,
  useContext,
  useMemo,
  useRef,
  useState,
} from "react";
import { Failure, type Schemas } from "../api/client";
import { ended } from "../views/perform";
import { length } from "./format";
import { pace } from "./pace";
import { Button } from "./parts";

interface Notice {
  id: number;
  title: string;
  state: "running" | "done" | "failed";
  detail: string;
}

interface Notices {
  /** Begins something and tells how it goes; gives the operation's end, or nothing if it failed. */
  follow: (title: string, begin: () => Promise<Schemas["OpView"]>) => Promise<boolean>;
}

const Context = createContext<Notices>({ follow: () => Promise.resolve(false) });

/** How long a success is shown, in milliseconds. A failure stays until it is put away. */
const DONE_SHOWN_MS = 6_000;

/** Notices at a time; older ones make room. */
const NOTICES_MAX = 5;

export function useNotices(): Notices {
  return useContext(Context);
}

export function NoticesProvider({ children }: { children: ReactNode }) {
  const [notices, setNotices] = useState<Notice[]>([]);
  const next = useRef(0);

  const drop = useCallback((id: number) => {
    setNotices((all) => all.filter((notice) => notice.id !== id));
  }, []);

  const follow = useCallback<Notices["follow"]>(
    async (title, begin) => {
      const id = next.current++;
      const set = (state: Notice["state"], detail: string) =>
        setNotices((all) => {
          const others = all.filter((notice) => notice.id !== id);
          return [...others, { id, title, state, detail }].slice(-NOTICES_MAX);
        });
      set("running", "begun");
      try {
        const op = await ended(await begin(), (op) => set("running", progress(op)));
        const result = outcome(op);
        set(result.state, result.detail);
        // What a move took stays to be read.
        if (result.state === "done" && !op.migration?.measured) setTimeout(() => drop(id), DONE_SHOWN_MS);
        return result.state === "done";
      } catch (error) {
        const failure = Failure.of(error);
        set("failed", [failure.message, failure.hint].filter(Boolean).join(". Next: "));
        return false;
      }
    },
    [drop],
  );

  const context = useMemo(() => ({ follow }), [follow]);
  return (
    <Context value={context}>
      {children}
      <div className="notices" role="status" aria-label="What was begun here">
        {notices.map((notice) => (
          <div key={notice.id} className={`notice ${notice.state}`}>
            <p>
              <strong>{notice.title}</strong>: {notice.detail}
            </p>
            {notice.state !== "running" && (
              <Button kind="quiet" aria-label={`Put away: ${notice.title}`} onPress={() => drop(notice.id)}>
                <span aria-hidden="true">✕</span>
              </Button>
            )}
          </div>
        ))}
      </div>
    </Context>
  );
}

/** How far an operation is, in words. */
export function progress(op: Schemas["OpView"]): string {
  const now = op.progress;
  if (!now) return "under way";
  if (now.total === 0) return now.step;
  const left = pace.left(op, Date.now());
  const rest = left === null ? "" : `, about ${length(left)} left`;
  return `${now.step}, ${Math.floor((100 * now.done) / now.total)} %${rest}`;
}

/** What was expected of a migration, and what came true. */
function took(op: Schemas["OpView"]): string[] {
  const { predicted, measured } = op.migration ?? {};
  const words = (it: { total_ms: number; pause_ms: number }) =>
    `${(it.total_ms / 1000).toLocaleString(undefined, { maximumFractionDigits: 1 })} s, pause ${it.pause_ms} ms`;
  return [
    ...(predicted ? [`expected: ${words(predicted)}`] : []),
    ...(measured ? [`came true: ${words(measured)}`] : []),
  ];
}

function outcome(op: Schemas["OpView"]): { state: Notice["state"]; detail: string } {
  switch (op.state) {
    case "done":
      return { state: "done", detail: ["done", ...took(op)].join("; ") };
    case "failed":
      return { state: "failed", detail: `${op.failure.message}. Next: ${op.failure.hint}` };
    case "cancelled":
      return { state: "failed", detail: "it was stopped before its end" };
    default:
      return { state: "running", detail: progress(op) };
  }
}
