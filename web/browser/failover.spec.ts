// A node dies while a page is open: the page of another node shows the failover as it happens.
//
// The lab (three nodes, real QEMU without a system to boot) and the loss of power come from
// `tests/e2e/tests/web.rs`.

import { readFileSync, writeFileSync } from "node:fs";
import { expect, test } from "@playwright/test";
import { accessible, faults, picture, watch } from "./helpers";

interface Given {
  link: string;
  /** A link of the node that will be lost. */
  lostLink: string;
  powerOff: string;
}

const given = JSON.parse(readFileSync(process.env.MUSTER_WEB_GIVEN ?? "", "utf8")) as Given;

/** From the loss of power to machines that run elsewhere, on a busy machine. */
const FAILOVER = { timeout: 120_000 };

test("a machine migrates, a node dies, and the page shows both", async ({ page, baseURL, browser }) => {
  test.setTimeout(240_000);
  // A page of the very node that will be lost.
  const other = await browser.newContext();
  const lost = await other.newPage();
  await lost.goto(given.lostLink);
  await lost.getByRole("link", { name: "Images", exact: true }).click();
  await expect(lost.getByText("live", { exact: true })).toBeVisible();
  const before = new URL(lost.url()).host;

  watch(page, baseURL ?? "");
  await page.goto(given.link);
  await expect(page.getByRole("article", { name: "Node n1" })).toContainText("4 machines with a process");

  await page.getByRole("link", { name: "Machines", exact: true }).click();
  await page.getByRole("link", { name: "web-1", exact: true }).click();
  await page.getByRole("button", { name: "Move …" }).click();
  await page.getByLabel("To", { exact: true }).selectOption("n3");
  await page.getByRole("button", { name: "Look whether it can" }).click();
  await expect(page.getByText("nothing speaks against it")).toBeVisible();
  await accessible(page, "moving");
  await page.getByRole("button", { name: "Move", exact: true }).click();
  // While it goes its page tells how far it is, and afterwards what was expected and what came true.
  await expect(page.locator(".page-head")).toContainText("on n3");
  const notice = page.getByRole("status", { name: "What was begun here" });
  await expect(notice).toContainText(/expected: [\d.]+ s, pause \d+ ms; came true: [\d.]+ s, pause \d+ ms/);
  await picture(page, "migrated");
  await page.getByRole("link", { name: "Operations", exact: true }).click();
  const operation = page.getByRole("listitem").filter({ hasText: "migrate web-1" });
  await expect(operation).toContainText("expected:");
  await expect(operation).toContainText("came true:");
  await expect(operation).toContainText("done in");

  await page.getByRole("link", { name: "Machines", exact: true }).first().click();
  const nodes = page.locator(".vm-row .node");
  await expect(nodes).toHaveText(["n3", "n1", "n1", "n1"]);
  writeFileSync(given.powerOff, "");
  // Nothing is loaded again: what changes comes by itself.
  await expect(nodes.filter({ hasText: /^n1$/ })).toHaveCount(0, FAILOVER);
  await expect(page.locator(".vm-row").getByText("running", { exact: true })).toHaveCount(4, FAILOVER);

  await page.getByRole("link", { name: "Cluster", exact: true }).click();
  await expect(page.getByRole("article", { name: "Node n1" })).toContainText("does not answer");
  await expect(page.locator(".page-head")).toContainText("degraded");
  await expect(page.getByText(/n1 was lost/).first()).toBeVisible();
  await accessible(page, "a cluster that has lost a node");
  await picture(page, "failover");

  // It went on by itself at another node, where it was, and says so.
  await expect(lost.getByText(/^n1 did not answer, so this page goes on at/)).toBeVisible(FAILOVER);
  expect(new URL(lost.url()).host).not.toBe(before);
  expect(lost.url()).toMatch(/\/images$/);
  await expect(lost.getByRole("heading", { name: "Images", level: 1 })).toBeVisible();
  await expect(lost.getByText("live", { exact: true })).toBeVisible();
  await expect(lost.getByText(/\(administrator\)/)).toBeVisible();
  await accessible(lost, "a page that went on elsewhere");
  await lost.getByRole("button", { name: "Good" }).click();
  await lost.getByRole("link", { name: "Machines", exact: true }).click();
  await expect(lost.locator(".vm-row")).toHaveCount(4);
  await other.close();
  expect(faults).toEqual([]);
});
