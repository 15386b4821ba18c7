// What an administrator does on a first day, in a real browser, with a real machine.
//
// The daemon, its image `tiny`, the secrets and the files by which it is killed and started again come
// from `tests/e2e/tests/web.rs`.

import { readFileSync, writeFileSync } from "node:fs";
import { type BrowserContext, expect, type Page, test } from "@playwright/test";
import { accessible, faults, picture, watch } from "./helpers";

interface Given {
  link: string;
  viewer: string;
  brief: string;
  /** Signs in as an operator. */
  certificate: { cert: string; key: string };
  kill: string;
  restart: string;
}

const given = JSON.parse(readFileSync(process.env.MUSTER_WEB_GIVEN ?? "", "utf8")) as Given;

test.describe.configure({ mode: "serial" });

let context: BrowserContext;
let page: Page;
test.beforeAll(async ({ browser, baseURL }) => {
  context = await browser.newContext();
  page = await context.newPage();
  watch(page, baseURL ?? "");
});

test.afterAll(async () => {
  await context.close();
});

test("a wrong token is refused, and the page says what to do", async () => {
  await page.goto("/");
  await expect(page.getByRole("heading", { name: "Muster" })).toBeVisible();
  await accessible(page, "signing in");
  await page.getByLabel("Token").fill("wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await expect(page.getByRole("alert")).toContainText("muster token create");
  await expect(page.getByRole("navigation")).toHaveCount(0);
});

test("a link signs in once", async ({ browser }) => {
  await page.goto(given.link);
  await expect(page.getByRole("navigation", { name: "Pages" })).toBeVisible();
  await expect(page.getByText("live", { exact: true })).toBeVisible();
  expect(page.url(), "the secret is out of the address").not.toContain("#");
  const [cookie] = await context.cookies();
  expect(cookie).toMatchObject({ httpOnly: true, secure: true, sameSite: "Strict" });
  expect(await page.evaluate(() => document.cookie), "no script reads it").toBe("");

  const other = await browser.newContext();
  const second = await other.newPage();
  await second.goto(given.link);
  await expect(second.getByRole("alert")).toContainText("has been used");
  await other.close();
});

test("a machine is created and runs, and its console answers", async () => {
  await page.getByRole("link", { name: "Machines", exact: true }).click();
  await page.getByRole("link", { name: "Create a machine" }).click();
  await page.getByRole("button", { name: "Create", exact: true }).click();
  await expect(page.getByRole("alert")).toContainText("mend the marked fields");
  await page.getByLabel("Name", { exact: true }).fill("story");
  await page.getByLabel("Image", { exact: true }).selectOption("tiny");
  await page.getByLabel("Memory", { exact: true }).fill("128M");
  await page.getByLabel("Tags", { exact: true }).fill("told");
  await expect(page.getByLabel("Command line", { exact: true })).toContainText(
    "muster vm create story --image tiny --cpus 1 --memory 128M --network nat --tag told --start",
  );
  await accessible(page, "creating");
  await picture(page, "create");
  await page.getByRole("button", { name: "Create", exact: true }).click();
  await expect(page.getByRole("heading", { name: "story" })).toBeVisible();
  // Nothing is loaded again: what changes comes by itself.
  await expect(page.locator(".page-head .badge")).toHaveText("running", { timeout: 60_000 });

  await page.getByRole("button", { name: "Console", exact: true }).click();
  await expect(page.getByText("connected", { exact: true })).toBeVisible();
  const screen = page.locator(".console-screen");
  await screen.click();
  await expect(async () => {
    await page.keyboard.type("echo he''llo-$((40+2))\n");
    await expect(screen).toContainText("hello-42", { timeout: 3_000 });
  }).toPass({ timeout: 90_000 });
  await expect(page.locator("dd", { hasText: /^answers$/ })).toBeVisible({ timeout: 60_000 });
  await accessible(page, "a machine with its console");
  await picture(page, "machine");
  await page.getByRole("button", { name: "Close console" }).click();
});

test("its screen shows what the machine draws, and keys leave it again", async () => {
  await page.getByRole("button", { name: "Screen", exact: true }).click();
  await expect(page.getByText("connected", { exact: true })).toBeVisible();
  const canvas = page.locator(".screen canvas").first();
  // Something is drawn: not all of it is of one colour.
  const colours = () =>
    canvas.evaluate((it: HTMLCanvasElement) => {
      const { data } = it.getContext("2d")?.getImageData(0, 0, it.width, it.height) ?? { data: [] };
      return new Set(Array.from({ length: data.length / 4 }, (_, n) => data.slice(4 * n, 4 * n + 3).join())).size;
    });
  await expect.poll(colours, { timeout: 30_000 }).toBeGreaterThan(1);
  await accessible(page, "a machine with its screen");
  await canvas.click();
  await page.keyboard.press("Control+Alt+Escape");
  await expect(page.getByRole("button", { name: "Ctrl+Alt+Del" })).toBeFocused();
  const saved = page.waitForEvent("download");
  await page.getByRole("link", { name: "Picture", exact: true }).click();
  expect((await saved).suggestedFilename()).toBe("story.png");
  await page.getByRole("button", { name: "Close screen" }).click();
});

/**
 * Keys as people press them: what the browser says of the place (`code`) and of the sign (`key`), and what
 * the guest must hear of it (numbers of Linux' input events). AltGr stands for a level of its own.
 */
const LAYOUTS: { layout: string; keys: [code: string, key: string, place: number, altGr?: true][] }[] = [
  {
    layout: "German",
    keys: [
      ["KeyQ", "@", 16, true],
      ["KeyE", "€", 18, true],
      ["Digit7", "{", 8, true],
      ["Digit0", "}", 11, true],
      ["Minus", "\\", 12, true],
      ["IntlBackslash", "|", 86, true],
      ["KeyY", "z", 21],
      ["Semicolon", "ö", 39],
    ],
  },
  {
    layout: "Norwegian",
    keys: [
      ["Digit2", "@", 3, true],
      ["Digit7", "{", 8, true],
      ["Digit0", "}", 11, true],
      ["Equal", "\\", 13],
      ["BracketLeft", "å", 26],
      ["Quote", "æ", 40],
    ],
  },
];

/** The right Alt key, as the guest hears it. */
const ALT_GR = 100;

test("keys mean in the guest what they mean on the keyboard, with AltGr", async () => {
  // The guest notes what it hears of its keyboard: places of keys, pressed (1) and let go (0).
  await page.getByRole("button", { name: "Console", exact: true }).click();
  await expect(page.getByText("connected", { exact: true })).toBeVisible();
  const terminal = page.locator(".console-screen");
  const note =
    "k=$(grep -A5 'AT Translated' /proc/bus/input/devices | grep -o 'event[0-9]*' | head -n1); " +
    "cat /dev/input/$k > /run/keys & echo note''s-$k\n";
  await terminal.click();
  await page.keyboard.type(note);
  await expect(terminal).toContainText(/notes-event\d/);
  await page.getByRole("button", { name: "Close console" }).click();

  await page.getByRole("button", { name: "Screen", exact: true }).click();
  await expect(page.getByText("connected", { exact: true })).toBeVisible();
  await page.locator(".screen canvas").first().click();
  const browser = await page.context().newCDPSession(page);
  const send = (type: "keyDown" | "keyUp", code: string, key: string, location = 0) =>
    browser.send("Input.dispatchKeyEvent", { type, code, key, location });
  // On Windows AltGr is two keys at one moment: a left Ctrl that nobody pressed, and the right Alt.
  const altGr = async (type: "keyDown" | "keyUp", windows: boolean) => {
    const both = windows ? [send(type, "ControlLeft", "Control", 1)] : [];
    await Promise.all([...both, send(type, "AltRight", "AltGraph", 2)]);
  };
  const expected: string[] = [];
  const { userAgent, platform } = await page.evaluate(() => ({ userAgent: navigator.userAgent, platform: navigator.platform }));
  for (const windows of [false, true]) {
    await browser.send("Emulation.setUserAgentOverride", { userAgent, platform: windows ? "Win32" : platform });
    expect(await page.evaluate(() => navigator.platform)).toBe(windows ? "Win32" : platform);
    for (const [code, key, place, third] of LAYOUTS.flatMap(({ keys }) => keys)) {
      if (third) await altGr("keyDown", windows);
      await send("keyDown", code, key);
      await send("keyUp", code, key);
      if (third) await altGr("keyUp", windows);
      const alt = (state: number) => (third ? [`${ALT_GR}:${state}`] : []);
      expected.push(...alt(1), `${place}:1`, `${place}:0`, ...alt(0));
    }
  }
  await browser.detach();
  await page.getByRole("button", { name: "Close screen" }).click();

  await page.getByRole("button", { name: "Console", exact: true }).click();
  await expect(page.getByText("connected", { exact: true })).toBeVisible();
  await terminal.click();
  // An event has 24 bytes, here in twos: time, type (1 is a key), number, and whether it is pressed.
  await page.keyboard.type(
    `clear; hexdump -v -e '12/2 "%d " "\\n"' /run/keys | awk '$9==1{print $10":"$11}' | xargs -n 6; echo en''d\n`,
  );
  await expect(terminal).toContainText("end");
  const heard = (await terminal.innerText()).match(/\d+:[01]\b/g)?.join(" ");
  expect(heard).toContain(expected.join(" "));
  await page.getByRole("button", { name: "Close console" }).click();
});

test("what it uses is charted, second by second", async () => {
  const cpu = page.getByRole("slider", { name: /^Processors/ });
  await expect(cpu).toHaveAttribute("aria-valuetext", /used [\d.,]+ %$/, { timeout: 30_000 });
  // Live: the last second is a later one, and nobody has to do anything for it.
  const first = await cpu.getAttribute("aria-valuetext");
  await expect(cpu).not.toHaveAttribute("aria-valuetext", first ?? "", { timeout: 10_000 });
  const memory = page.getByRole("slider", { name: /^Memory/ });
  await expect(memory).toHaveAttribute("aria-valuetext", /taken [\d.,]+ MiB/);
  await memory.focus();
  await page.keyboard.press("Home");
  await accessible(page, "a machine with its charts");
  await picture(page, "charts");
  await page.getByRole("button", { name: "As a table" }).click();
  await expect(page.getByRole("region", { name: "Use over time" })).toContainText("MiB");
  await page.getByRole("button", { name: "As charts" }).click();
});

test("a disk is added while it runs, grows, and goes", async () => {
  await page.getByRole("button", { name: "Add a disk …" }).click();
  await page.getByLabel("Name", { exact: true }).fill("extra");
  await page.getByLabel("Size", { exact: true }).fill("8M");
  await accessible(page, "adding a disk");
  await page.getByRole("button", { name: "Add", exact: true }).click();
  const row = page.getByRole("row", { name: /^extra/ });
  await expect(row).toContainText("8 MiB");
  await page.getByRole("button", { name: "Grow extra" }).click();
  await page.getByLabel("New size").fill("16M");
  await page.getByRole("button", { name: "Grow", exact: true }).click();
  await expect(row).toContainText("16 MiB");
  await page.getByRole("button", { name: "Remove extra" }).click();
  await page.getByRole("alertdialog").getByRole("button", { name: "Remove", exact: true }).click();
  await expect(row).toHaveCount(0, { timeout: 60_000 });
});

test("a change of settings is told with who made it, and is set back", async () => {
  await page.getByRole("button", { name: "Change …" }).click();
  await page.getByLabel("Description", { exact: true }).fill("changed once");
  await page.getByRole("button", { name: "Change", exact: true }).click();
  const changes = page.getByRole("region", { name: "Changes of settings" }).last();
  const row = changes.getByRole("row").filter({ hasText: "description" });
  await expect(row).toHaveCount(1);
  await expect(row).toContainText("changed once");
  await row.getByRole("button", { name: /^Set back/ }).click();
  const dialog = page.getByRole("dialog");
  await expect(dialog).toContainText("muster vm set story --description ''");
  await accessible(page, "setting a change back");
  await dialog.getByRole("button", { name: "Set back", exact: true }).click();
  // The way back is a change, too, and stands above.
  await expect(row).toHaveCount(2);
  await expect(page.getByText("changed once", { exact: true })).toHaveCount(2);
});

test("a certificate signs in without a word", async ({ browser, baseURL }) => {
  const origin = baseURL ?? "";
  const { cert, key } = given.certificate;
  const certified = await browser.newContext({
    clientCertificates: [{ origin, cert: Buffer.from(cert), key: Buffer.from(key) }],
  });
  const second = await certified.newPage();
  await second.goto("/");
  await second.getByRole("button", { name: "Use this browser's certificate" }).click();
  await expect(second.getByText("certificate anna (operator)")).toBeVisible();
  await certified.close();
  const other = await browser.newContext();
  const third = await other.newPage();
  await third.goto("/");
  await third.getByRole("button", { name: "Use this browser's certificate" }).click();
  await expect(third.getByRole("alert")).toContainText("showed no certificate");
  await other.close();
});

test("a network is made and deleted, and the host is validated", async () => {
  await page.getByRole("link", { name: "Set-up", exact: true }).click();
  await page.getByRole("button", { name: "Make a network …" }).click();
  await page.getByLabel("Name", { exact: true }).fill("lab");
  await page.getByLabel("Addresses", { exact: true }).fill("nonsense");
  await page.getByRole("button", { name: "Make", exact: true }).click();
  await expect(page.getByRole("dialog").getByRole("alert")).toContainText("Next:");
  await page.getByLabel("Addresses", { exact: true }).fill("10.88.0.0/24");
  await accessible(page, "making a network");
  await page.getByRole("button", { name: "Make", exact: true }).click();
  await expect(page.getByRole("row", { name: /^lab/ })).toContainText("10.88.0.0/24");
  await page.getByRole("button", { name: "Delete lab" }).click();
  await page.getByRole("alertdialog").getByRole("button", { name: "Delete", exact: true }).click();
  await expect(page.getByRole("row", { name: /^lab/ })).toHaveCount(0);
  faults.splice(0, faults.length, ...faults.filter((fault) => !fault.includes("status of 4")));

  await page.getByRole("link", { name: "Does it all fit together?" }).click();
  await page.getByRole("button", { name: "Validate now" }).click();
  await expect(page.getByRole("region", { name: "Findings" })).toBeVisible({ timeout: 90_000 });
  await expect(page.getByText(/\d+ passed/)).toBeVisible();
  await picture(page, "validation");
  await page.getByRole("link", { name: "Map", exact: true }).click();
  await expect(page.getByRole("link", { name: /story/ })).toBeVisible();
});

test("the list is found in, chosen from and worked by keys alone", async () => {
  await page.goto("/vms");
  const grid = page.getByRole("grid", { name: "Machines" });
  await expect(grid.getByRole("row")).toHaveCount(1);
  await accessible(page, "the list");
  await picture(page, "list");
  await page.keyboard.press("/");
  await page.keyboard.type("no-such-machine");
  await expect(page.getByText("No machine matches")).toBeVisible();
  await page.getByRole("searchbox").fill("told");
  await expect(grid.getByRole("row", { name: /story/ })).toBeVisible();
  await grid.focus();
  await page.keyboard.press("Space");
  await expect(page.getByText("1, 1 chosen")).toBeVisible();
  await page.getByRole("button", { name: "Pause", exact: true }).press("Enter");
  await expect(grid.getByText("paused", { exact: true })).toBeVisible();
  await page.getByRole("button", { name: "Resume", exact: true }).press("Enter");
  await expect(grid.getByText("running", { exact: true })).toBeVisible();
  await grid.focus();
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { name: "story" })).toBeVisible();
});

test("a node that dies is told, and the page is live again by itself", async () => {
  writeFileSync(given.kill, "");
  await expect(page.getByRole("alert").filter({ hasText: "has not answered" })).toBeVisible();
  await expect(page.getByText("not live", { exact: true })).toBeVisible();
  await picture(page, "lost");
  await expect(page.getByRole("heading", { name: "story" }), "what was known stays").toBeVisible();
  writeFileSync(given.restart, "");
  await expect(page.getByText("live", { exact: true })).toBeVisible({ timeout: 60_000 });
  await expect(page.locator(".page-head .badge"), "the machine never stopped").toHaveText("running");
});

test("every page fits 360 pixels and keeps nobody out, light and dark", async () => {
  // Two dozen pages, each looked through for what keeps anybody out.
  test.setTimeout(240_000);
  const machine = new URL(page.url()).pathname;
  const pages = ["/", "/vms", machine, "/new", "/start", "/images", "/bin", "/operations", "/events", "/sessions", "/setup", "/validation", "/map"];
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width: 360, height: 740 });
    for (const path of pages) {
      await page.goto(path);
      await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
      await expect(page.getByText(/^Asking for/)).toHaveCount(0);
      const width = await page.evaluate(() => document.documentElement.scrollWidth);
      expect(width, `${path} at 360 pixels`).toBeLessThanOrEqual(360);
      await accessible(page, `${path}, ${colorScheme}`);
      await picture(page, `narrow-${colorScheme}${path === machine ? "-machine" : path.replaceAll("/", "-")}`);
    }
  }
  await page.emulateMedia({ colorScheme: null });
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.goto("/");
  await expect(page.getByText(/^Asking for/)).toHaveCount(0);
  await picture(page, "cluster");
  await page.emulateMedia({ colorScheme: "dark" });
  await picture(page, "cluster-dark");
  await page.emulateMedia({ colorScheme: null });
});

test("turning off asks first, and says what is lost", async () => {
  await page.goto("/vms");
  await page.getByRole("link", { name: "story" }).click();
  await page.getByRole("button", { name: "Turn off" }).click();
  const question = page.getByRole("alertdialog");
  await expect(question).toContainText("not written to disk is lost");
  await accessible(page, "the question");
  await page.keyboard.press("Escape");
  await expect(question).toHaveCount(0);
  await page.getByRole("button", { name: "Turn off" }).click();
  await question.getByRole("button", { name: "Turn off" }).click();
  await expect(page.locator(".page-head .badge")).toHaveText("off");
});

test("what was deleted comes back", async () => {
  await page.getByRole("button", { name: "Delete" }).click();
  const question = page.getByRole("alertdialog");
  await expect(question).toContainText("recycle bin");
  await question.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("link", { name: "Recycle bin" }).click();
  await page.getByRole("button", { name: "Remove for good … story" }).click();
  const sure = question.getByRole("button", { name: "Remove for good" });
  await expect(sure, "its name must be typed").toBeDisabled();
  await question.getByRole("button", { name: "Leave it" }).click();
  await page.getByRole("button", { name: "Take back story" }).click();
  await expect(page.getByText("It is empty.")).toBeVisible();
  await page.getByRole("link", { name: "Machines", exact: true }).click();
  await expect(page.getByRole("row", { name: /story/ })).toBeVisible();
});

test("a viewer sees everything and is told why nothing can be done", async ({ browser, baseURL }) => {
  const other = await browser.newContext();
  const second = await other.newPage();
  watch(second, baseURL ?? "");
  await second.goto("/");
  await second.getByLabel("Token").fill(given.viewer);
  await second.getByRole("button", { name: "Sign in" }).click();
  await second.getByRole("link", { name: "Machines", exact: true }).click();
  await second.getByRole("link", { name: "story" }).click();
  const start = second.getByRole("button", { name: "Start", exact: true });
  await expect(start).toBeDisabled();
  await expect(start).toHaveAccessibleDescription(/needs the role operator/);
  // The API says the same, whatever a page shows.
  const status = await second.evaluate(async () => {
    const { session } = await (await fetch("/v1/whoami")).json();
    const headers = { "x-muster-csrf": session.csrf };
    return (await fetch("/v1/vms/story/start", { method: "POST", headers })).status;
  });
  expect(status).toBe(403);
  faults.splice(0, faults.length, ...faults.filter((fault) => !fault.includes("403")));
  await other.close();
});

test("signing out and a revoked token end the session on the page", async ({ browser }) => {
  const other = await browser.newContext();
  const second = await other.newPage();
  await second.goto("/");
  await second.getByLabel("Token").fill(given.brief);
  await second.getByRole("button", { name: "Sign in" }).click();
  await expect(second.getByText("live", { exact: true })).toBeVisible();

  // Ended by somebody else: the page learns it from its own stream.
  await page.goto("/sessions");
  await page.getByRole("button", { name: "End the session of token brief" }).click();
  await expect(second.getByText("Your session has ended")).toBeVisible();
  await other.close();

  await page.getByRole("button", { name: "Sign out" }).click();
  await page.waitForURL("**/sign-in");
  await expect(page.getByLabel("Token")).toBeVisible();
  // The page may hear of the end from its stream before the answer with the empty cookie is there.
  await expect.poll(() => context.cookies()).toEqual([]);
  await page.goto("/vms");
  await expect(page.getByLabel("Token")).toBeVisible();
});

test("no page asked another host for anything, or broke its policy", () => {
  expect(faults).toEqual([]);
});
