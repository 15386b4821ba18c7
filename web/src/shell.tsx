// The frame of all pages: who is signed in, where one can go, and whether what is shown is live.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, Outlet, useRouterState } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { api, Failure, onStale, setCsrf, value } from "./api/client";
import { keys, me as meQuery, nodes as nodesQuery } from "./api/queries";
import { arrival, onwardTo } from "./arrival";
import { MOVES_AFTER_MS, type Other, others, reached } from "./live/elsewhere";
import { follow, presence } from "./live/idle";
import type { LinkState } from "./live/link";
import { useLive } from "./live/useLive";
import { NoticesProvider } from "./parts/notices";
import { Button, Trouble, Waiting } from "./parts/parts";
import { length, whenShort } from "./parts/format";
import { Me } from "./session";
import { SignIn } from "./views/SignIn";

const PAGES = [
  { to: "/", label: "Cluster" },
  { to: "/map", label: "Map" },
  { to: "/vms", label: "Machines" },
  { to: "/images", label: "Images" },
  { to: "/bin", label: "Recycle bin" },
  { to: "/operations", label: "Operations" },
  { to: "/events", label: "Events" },
  { to: "/setup", label: "Set-up" },
  { to: "/sessions", label: "Sessions" },
] as const;

/** Pages that others lead to. */
const FURTHER: Record<string, string> = { "/validation": "Validation", "/new": "New machine", "/start": "First machine" };

export function Shell() {
  const me = useQuery(meQuery);
  if (me.isPending) return <Waiting what="this session" />;
  if (me.error) {
    const failure = Failure.of(me.error);
    if (failure.signedOut) return <SignIn ended={failure.code === "session_ended"} />;
    return (
      <main className="alone">
        <h1>Muster</h1>
        <Trouble error={failure} />
        <Button kind="main" onPress={() => void me.refetch()}>
          Try again
        </Button>
      </main>
    );
  }
  setCsrf(me.data.session?.csrf ?? "");
  return (
    <Me value={me.data}>
      <NoticesProvider>
        <Frame />
      </NoticesProvider>
    </Me>
  );
}

function Frame() {
  const client = useQueryClient();
  const { link, retry } = useLive();
  const me = client.getQueryData(meQuery.queryKey);
  const [error, setError] = useState<unknown>(null);
  const idle = useIdle(me?.session?.idle_s ?? 0);
  useArrival();
  useEffect(() => {
    // The daemon no longer knows this session: ask who we are, and so come to the sign-in page.
    if (link.at === "signed_out") void client.resetQueries({ queryKey: keys.me });
  }, [link.at, client]);

  const signOut = async () => {
    const id = me?.session?.id;
    try {
      if (id) await value(api.DELETE("/v1/sessions/{session}", { params: { path: { session: id } } }));
    } catch (error) {
      // Nobody is called signed out who is not.
      if (!Failure.of(error).signedOut) return setError(error);
    }
    setCsrf("");
    client.clear();
    window.location.assign("/sign-in");
  };

  return (
    <div className="frame">
      <a className="skip" href="#content">
        To the content
      </a>
      <header className="top">
        <span className="brand">Muster</span>
        <nav aria-label="Pages">
          {PAGES.map((page) => (
            <Link key={page.to} to={page.to} activeOptions={{ exact: page.to === "/" }}>
              {page.label}
            </Link>
          ))}
        </nav>
        <div className="who">
          <Liveness link={link} />
          <span className="me" title={me?.session ? `until ${whenShort(me.session.expires)}` : ""}>
            {me?.actor} ({me?.role})
          </span>
          <Button kind="quiet" onPress={() => void signOut()}>
            Sign out
          </Button>
        </div>
      </header>
      <CameFrom />
      {idle !== "used" && (
        <div className="lost" role="alert">
          <p>Nobody has used this page for long: its session ends in a minute.</p>
          <Button onPress={() => void api.GET("/v1/whoami").catch(() => null)}>I am here</Button>
        </div>
      )}
      <Lost link={link} retry={retry} word={me?.session?.onward} />
      <Stale />
      <main id="content" tabIndex={-1}>
        {error !== null && <Trouble error={error} what="Still signed in" />}
        <Outlet />
      </main>
    </div>
  );
}

/** Between two looks at whether anybody is here, in milliseconds. */
const LOOK_MS = 1_000;

/** Tells the daemon that somebody is here, and the page when nobody was for long. */
function useIdle(limitS: number): "used" | "warned" | "over" {
  const client = useQueryClient();
  const [state, setState] = useState<"used" | "warned" | "over">("used");
  useEffect(() => {
    const unfollow = follow();
    const look = setInterval(() => {
      const now = Date.now();
      if (presence.mustTell(now)) void api.GET("/v1/whoami").catch(() => null);
      setState(presence.state(now, limitS));
    }, LOOK_MS);
    return () => {
      unfollow();
      clearInterval(look);
    };
  }, [limitS]);
  // The daemon ends it some seconds later; its stream ends with it, and the page is told so there.
  // Where the stream is away, the page asks.
  useEffect(() => {
    if (state === "over") void client.invalidateQueries({ queryKey: keys.me });
  }, [state, client]);
  return state;
}

/** Whoever goes to another page is there: in the title, and with the focus. */
function useArrival(): void {
  const path = useRouterState({ select: (state) => state.location.pathname });
  const before = useRef(path);
  useEffect(() => {
    const label = PAGES.find((page) => page.to === path)?.label ?? FURTHER[path];
    document.title = label ? `${label} · Muster` : "Muster";
    if (before.current !== path) document.getElementById("content")?.focus();
    before.current = path;
  }, [path]);
}

function Liveness({ link }: { link: LinkState }) {
  const live = link.at === "live";
  return (
    <span className={live ? "liveness on" : "liveness off"} role="status">
      {live ? "live" : link.at === "waiting" ? "not live" : "connecting"}
    </span>
  );
}

/** How long the node has to be silent until the whole page says so, in milliseconds. */
const SAID_AFTER_MS = 2_000;

/**
 * Says since when nothing new has come, and what is being done about it: after a while the page goes on
 * at another node, if the browser reaches one whose certificate it takes.
 */
function Lost({ link, retry, word }: {
  link: LinkState;
  retry: () => void;
  word: string | undefined;
}) {
  // Asked for while there is somebody to ask.
  const known = useQuery({ ...nodesQuery, refetchInterval: false });
  const [now, setNow] = useState(Date.now());
  const [tried, setTried] = useState(false);
  const lostSince = link.at === "waiting" || link.at === "connecting" ? link.lostSince : null;
  const silent = lostSince === null ? 0 : Math.max(0, now - lostSince);
  const all = others(known.data ?? [], window.location.host);
  useEffect(() => {
    if (lostSince === null) return setTried(false);
    const timer = setInterval(() => setNow(Date.now()), 1_000);
    return () => clearInterval(timer);
  }, [lostSince]);
  const from = known.data?.find((node) => node.tls_address === window.location.host)?.name ?? "the node";
  const address = (other: Other) =>
    onwardTo(other.address, { onward: word ?? "", from, to: window.location.pathname });
  const due = silent >= MOVES_AFTER_MS && !tried && word !== undefined && all.length > 0;
  useEffect(() => {
    if (!due) return;
    setTried(true);
    void reached(all).then((found) => {
      // Its node may have come back meanwhile; two pages of one session would end one another.
      if (found && lostSince !== null) window.location.assign(address(found));
    });
  }, [due]);
  // What is over in a moment is said beside the name only.
  if (lostSince === null || silent < SAID_AFTER_MS) return null;
  return (
    <div className="lost" role="alert">
      <p>
        This node has not answered for {length(silent)}: what is shown is as old as that. The page tries
        again by itself. Machines do not depend on it.{" "}
        {all.length > 0 && !tried && "In a moment it goes on at another node."}
        {tried && "No other node was reached without a question of your browser's; go on by hand:"}
      </p>
      {tried &&
        word &&
        all.map((other) => (
          <a key={other.name} className="button" href={address(other)}>
            Go on at {other.name}
          </a>
        ))}
      <Button onPress={retry}>Try now</Button>
    </div>
  );
}

/** Whoever was taken from another node is told so. */
function CameFrom() {
  const [from, setFrom] = useState(arrival().from);
  if (!from) return null;
  return (
    <div className="lost" role="status">
      <p>{from} did not answer, so this page goes on at {window.location.host}.</p>
      <Button onPress={() => setFrom(undefined)}>Good</Button>
    </div>
  );
}

/** Says that there is no majority, and what that means. */
function Stale() {
  const [stale, setStale] = useState(false);
  useEffect(() => {
    onStale(setStale);
    return () => onStale(() => {});
  }, []);
  if (!stale) return null;
  return (
    <div className="lost" role="alert">
      <p>
        No majority of the cluster answers: machines go on, nothing can be changed, and what is shown
        is what this node last knew. Who is missing stands on the page Cluster.
      </p>
    </div>
  );
}
