// How fast the console is, in a real browser: `cargo xtask bench ui` starts the daemon with thousands of
// machines that only pretend, and makes a report of what is written here.
//
// Times are taken inside the page, at the frame after the one in which something changed: then it was
// painted. Nothing is measured through the runner, which is slower than what is measured.

import { readFileSync, writeFileSync } from "node:fs";
import { type APIRequestContext, type CDPSession, expect, type Page, request, test } from "@playwright/test";

interface Given {
  link: string;
  token: string;
  out: string;
  vms: number;
  minutes: number;
  running: string[];
}

const given = JSON.parse(readFileSync(process.env.MUSTER_WEB_GIVEN ?? "", "utf8")) as Given;

/** What FEATURES of the console promise, in the units of the report. */
const FIRST_PAINT_MS = 1_000;
const KEYSTROKE_MS = 100;
const EVENT_MS = 200;
const FIRST_LOAD_KB = 350;
const GROWTH_PERCENT = 10;

const LOADS = 7;
const EVENTS = 30;

/** Between two changes while memory is watched, in milliseconds. */
const CHANGE_EVERY_MS = 500;

const figures: { metric: string; value: number; unit: string; target?: number }[] = [];

const sorted = (values: number[]) => [...values].sort((a, b) => a - b);
const quantile = (values: number[], part: number) => {
  const all = sorted(values);
  return all[Math.min(all.length - 1, Math.floor(part * all.length))] ?? Number.NaN;
};

declare global {
  interface Window {
    firstRows?: number;
    strokes: number[];
    shown: Record<string, number>;
  }
}

/** Notes when the first line of the list was painted. */
function noteFirstRows(): void {
  const look = () => {
    if (document.querySelector(".vm-row")) requestAnimationFrame(() => (window.firstRows = performance.now()));
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}

test("the console with thousands of machines", async ({ browser, baseURL }) => {
  test.setTimeout((given.minutes * 60 + 280) * 1_000);
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(given.link);
  await expect(page.getByRole("navigation", { name: "Pages" })).toBeVisible();
  const devtools = await context.newCDPSession(page);
  // Changes come from somebody else, with a token: not from the page, and not with its session.
  const api = await request.newContext({
    baseURL: baseURL ?? "",
    ignoreHTTPSErrors: true,
    extraHTTPHeaders: { authorization: `Bearer ${given.token}` },
  });

  await firstPaint(page, devtools);
  await keystrokes(page);
  await eventToScreen(page, api);
  await memory(page, devtools, api);
  writeFileSync(given.out, JSON.stringify(figures));
  await context.close();
});

/** From going to the list until its lines are there, with nothing in the browser's cache. */
async function firstPaint(page: Page, devtools: CDPSession): Promise<void> {
  await page.addInitScript(noteFirstRows);
  await devtools.send("Network.enable");
  await devtools.send("Network.setCacheDisabled", { cacheDisabled: true });
  const times: number[] = [];
  let bytes = 0;
  const paths = new Map<string, string>();
  devtools.on("Network.requestWillBeSent", ({ requestId, request }) => paths.set(requestId, new URL(request.url).pathname));
  devtools.on("Network.loadingFinished", ({ requestId, encodedDataLength }) => {
    if (!paths.get(requestId)?.startsWith("/v1/")) bytes += encodedDataLength;
  });
  for (let load = 0; load < LOADS; load++) {
    paths.clear();
    bytes = 0;
    await page.goto("/vms");
    await page.waitForFunction(() => window.firstRows !== undefined);
    // The first load warms the server.
    if (load > 0) times.push((await page.evaluate(() => window.firstRows)) ?? Number.NaN);
  }
  await expect(page.getByRole("grid")).toHaveAttribute("aria-rowcount", `${given.vms}`);
  await devtools.send("Network.setCacheDisabled", { cacheDisabled: false });
  const what = `${given.vms} machines: list painted, empty cache`;
  figures.push({ metric: `${what}, median of ${times.length}`, value: quantile(times, 0.5), unit: "ms", target: FIRST_PAINT_MS });
  figures.push({ metric: `${what}, worst`, value: quantile(times, 1), unit: "ms" });
  figures.push({ metric: "first load over the wire, without answers of the API", value: bytes / 1_000, unit: "kB", target: FIRST_LOAD_KB });
}

/** From a key in the search until the list that it makes is painted. */
async function keystrokes(page: Page): Promise<void> {
  await page.evaluate(() => {
    window.strokes = [];
    const count = () => document.querySelector(".vm-rows")?.getAttribute("aria-rowcount");
    document.addEventListener(
      "keydown",
      (event) => {
        const before = count();
        const look = () => {
          if (count() === before) requestAnimationFrame(look);
          else requestAnimationFrame(() => window.strokes.push(performance.now() - event.timeStamp));
        };
        requestAnimationFrame(look);
      },
      true,
    );
  });
  const box = page.getByRole("searchbox");
  await box.focus();
  let pressed = 0;
  const press = async (key: string) => {
    await page.keyboard.press(key);
    pressed += 1;
    await page.waitForFunction((pressed) => window.strokes.length === pressed, pressed);
  };
  // Every key changes how many machines match, both ways.
  for (const text of ["199", "78", "456", "55"]) {
    for (const key of text) await press(key);
    for (const _ of text) await press("Backspace");
  }
  const times = await page.evaluate(() => window.strokes);
  const what = `${given.vms} machines: key in the search to paint`;
  figures.push({ metric: `${what}, median of ${times.length}`, value: quantile(times, 0.5), unit: "ms" });
  figures.push({ metric: `${what}, p95`, value: quantile(times, 0.95), unit: "ms", target: KEYSTROKE_MS });
}

async function power(api: APIRequestContext, vm: string, verb: "pause" | "resume"): Promise<void> {
  const answer = await api.post(`/v1/vms/${vm}/${verb}`);
  expect(answer.ok(), await answer.text()).toBe(true);
}

/** From what the daemon says of when it happened until the page has painted it. */
async function eventToScreen(page: Page, api: APIRequestContext): Promise<void> {
  const [vm = ""] = given.running;
  await page.getByRole("searchbox").fill(vm);
  const badge = page.locator(".vm-row .state .badge");
  await expect(badge).toHaveText("running");
  const times: number[] = [];
  for (let n = 0; n < EVENTS; n++) {
    const [verb, word] = n % 2 === 0 ? (["pause", "paused"] as const) : (["resume", "running"] as const);
    const painted = page.evaluate(
      (word) =>
        new Promise<number>((done) => {
          const look = () => {
            if (document.querySelector(".vm-row .state .badge")?.textContent !== word) requestAnimationFrame(look);
            else requestAnimationFrame(() => done(Date.now()));
          };
          look();
        }),
      word,
    );
    await power(api, vm, verb);
    const at = await painted;
    const events = await api.get("/v1/events?limit=20");
    const told = ((await events.json()) as { kind: string; at: number; subject: { name?: string } }[]).filter(
      (event) => event.kind === "vm.power" && event.subject.name === vm,
    );
    times.push(at - (told.at(-1)?.at ?? Number.NaN));
    // The operation of this change is over before the next one is asked for.
    await expect(page.locator(".vm-row .state .quiet-text")).toHaveCount(0);
  }
  const what = `${given.vms} machines: event to paint`;
  figures.push({ metric: `${what}, median of ${times.length}`, value: quantile(times, 0.5), unit: "ms" });
  figures.push({ metric: `${what}, p95`, value: quantile(times, 0.95), unit: "ms", target: EVENT_MS });
}

/** What the page holds after minutes of events, against what it held after the first of them. */
async function memory(page: Page, devtools: CDPSession, api: APIRequestContext): Promise<void> {
  await page.getByRole("searchbox").fill("");
  const held = async () => {
    await devtools.send("HeapProfiler.collectGarbage");
    const { usedSize } = await devtools.send("Runtime.getHeapUsage");
    return usedSize / 2 ** 20;
  };
  let changes = 0;
  const busy = async (ms: number) => {
    for (const until = Date.now() + ms; Date.now() < until; changes++) {
      // All are paused in one round and go on in the next.
      const vm = given.running[changes % given.running.length] ?? "";
      const round = Math.floor(changes / given.running.length);
      await power(api, vm, round % 2 === 0 ? "pause" : "resume");
      await page.waitForTimeout(CHANGE_EVERY_MS);
    }
  };
  // What is made once is made, and most of what is kept is full.
  await busy(Math.min(60_000, given.minutes * 20_000));
  const before = await held();
  await busy(given.minutes * 60_000);
  const after = await held();
  const what = `page's memory after ${given.minutes} min of events`;
  figures.push({ metric: "page's memory at first", value: before, unit: "MiB" });
  figures.push({ metric: what, value: after, unit: "MiB" });
  figures.push({ metric: `${what}, grown`, value: (after / before - 1) * 100, unit: "%", target: GROWTH_PERCENT });
}
