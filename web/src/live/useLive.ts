// The thin shell around `link` and `effects`: one connection for the page, and what it brings goes
// into the answers that the page holds.

import { type QueryClient, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { api, Failure, type Schemas, value, type VmSummary } from "../api/client";
import { keys } from "../api/queries";
import { batchMs, effects, ONE_BY_ONE_MAX, patched } from "./effects";
import { type LinkEvent, type LinkState, START, step } from "./link";
import { Reader } from "./sse";

type EventView = Schemas["EventView"];

/** How long a page is hidden before it sleeps, in milliseconds: people go back and forth. */
const SLEEPS_AFTER_MS = 30_000;

/** Events that the page keeps. */
const EVENTS_MAX = 1_000;

class Live {
  private state: LinkState = START;
  private stop = new AbortController();
  private last: number | null = null;
  private batch: EventView[] = [];
  /** Which question about a machine is the last one: an older answer may come later. */
  private readonly asked = new Map<string, number>();
  private questions = 0;
  /** Of how many machines the last batch told. */
  private lastMachines = 0;
  private batchTimer: ReturnType<typeof setTimeout> | null = null;
  private readonly ticks: ReturnType<typeof setInterval>;

  constructor(
    private readonly client: QueryClient,
    private readonly told: (state: LinkState) => void,
  ) {
    this.ticks = setInterval(() => this.take({ what: "tick" }), 1_000);
    document.addEventListener("visibilitychange", this.looked);
    void this.connect(false);
  }

  private sleep: ReturnType<typeof setTimeout> | null = null;

  private looked = (): void => {
    if (this.sleep) clearTimeout(this.sleep);
    this.sleep = null;
    if (document.hidden) this.sleep = setTimeout(() => this.take({ what: "hidden" }), SLEEPS_AFTER_MS);
    else this.take({ what: "shown" });
  };

  take = (event: LinkEvent): void => {
    const before = this.state;
    this.state = step(before, event, Date.now());
    if (this.state === before) return;
    if (this.state.at !== before.at) this.told(this.state);
    const connected = before.at === "live" || before.at === "connecting";
    if (connected && this.state.at !== "live" && this.state.at !== "connecting") this.stop.abort();
    if (this.state.at === "connecting" && before.at !== "connecting") void this.connect(true);
  };

  end(): void {
    clearInterval(this.ticks);
    if (this.batchTimer) clearTimeout(this.batchTimer);
    if (this.sleep) clearTimeout(this.sleep);
    document.removeEventListener("visibilitychange", this.looked);
    this.state = { at: "signed_out" };
    this.stop.abort();
  }

  private async connect(again: boolean): Promise<void> {
    const stop = new AbortController();
    this.stop = stop;
    const after = this.last === null ? "" : `?after=${this.last}`;
    try {
      const response = await fetch(`/v1/events/stream${after}`, {
        credentials: "same-origin",
        signal: stop.signal,
      });
      if (response.status === 401) return this.take({ what: "refused" });
      if (!response.ok || !response.body) return this.take({ what: "lost" });
      this.take({ what: "opened" });
      // What happened meanwhile was in part seen by nobody.
      if (again) void this.client.invalidateQueries();
      await this.read(response.body);
    } catch {
      // Ended, by this side or the other; what to do is the same.
    }
    if (!stop.signal.aborted) this.take({ what: "lost" });
  }

  private async read(body: ReadableStream<Uint8Array>): Promise<void> {
    const reader = new Reader();
    const bytes = body.getReader();
    const text = new TextDecoder();
    for (;;) {
      const { done, value: piece } = await bytes.read();
      if (done) return;
      this.take({ what: "heard" });
      for (const line of reader.push(text.decode(piece, { stream: true }))) {
        if (line.kind === "event") this.note(JSON.parse(line.data) as EventView);
      }
    }
  }

  private note(event: EventView): void {
    if (event.seq > 0) this.last = event.seq;
    this.batch.push(event);
    this.batchTimer ??= setTimeout(() => {
      this.batchTimer = null;
      const batch = this.batch;
      this.batch = [];
      void this.apply(batch);
    }, batchMs(this.lastMachines));
  }

  private async apply(batch: EventView[]): Promise<void> {
    const { client } = this;
    client.setQueryData<EventView[]>(keys.events, (known) => {
      if (!known) return known;
      const newest = known.at(-1)?.seq ?? 0;
      const more = batch.filter((event) => event.seq > newest || isWarning(event));
      return more.length === 0 ? known : [...known, ...more].slice(-EVENTS_MAX);
    });
    const { vms, stale } = effects(batch);
    this.lastMachines = vms.size;
    for (const key of stale) void client.invalidateQueries({ queryKey: [key] });
    if (vms.size > ONE_BY_ONE_MAX) {
      void client.invalidateQueries({ queryKey: keys.vms });
      for (const id of vms) void client.invalidateQueries({ queryKey: keys.vm(id) });
      return;
    }
    await Promise.all([...vms].map((id) => this.look(id)));
  }

  /** Asks for one machine and puts it where it is shown. */
  private async look(id: string): Promise<void> {
    const { client } = this;
    const shown = client.getQueryData(keys.vms) || client.getQueryData(keys.vm(id));
    if (!shown) return;
    this.questions += 1;
    const question = this.questions;
    this.asked.set(id, question);
    let vm: Schemas["VmView"] | null;
    try {
      vm = await value(api.GET("/v1/vms/{vm}", { params: { path: { vm: id } } }));
    } catch (error) {
      // Anything but "there is no such machine" says nothing of it; the list is asked later.
      if (Failure.of(error).status !== 404) return;
      vm = null;
    }
    if (this.asked.get(id) !== question) return;
    this.asked.delete(id);
    client.setQueryData<VmSummary[]>(keys.vms, (list) => list && patched(list, id, vm));
    if (vm) client.setQueryData(keys.vm(id), vm);
    else void client.invalidateQueries({ queryKey: keys.vm(id) });
  }
}

/** Observations are not kept; of these only what went wrong is shown in the list. */
function isWarning(event: EventView): boolean {
  return event.seq === 0 && event.severity !== "info";
}

/** Keeps the page live while it is shown. */
export function useLive(): { link: LinkState; retry: () => void } {
  const client = useQueryClient();
  const [link, setLink] = useState<LinkState>(START);
  const [live, setLive] = useState<Live | null>(null);
  useEffect(() => {
    const live = new Live(client, setLink);
    setLive(live);
    return () => live.end();
  }, [client]);
  return { link, retry: () => live?.take({ what: "retry" }) };
}
