// A node dies while a page is open: the page of another node shows the failover as it happens.
//
// The lab (three nodes, machines that only pretend) and the loss of power come from
// `tests/e2e/tests/web.rs`.

import { readFileSync, writeFileSync } from "node:fs";
import { expect, test } from "@playwright/test";
import { accessible, faults, picture, watch } from "./helpers";

interface Given {
  link: string;
  powerOff: string;
}

const given = JSON.parse(readFileSync(process.env.MUSTER_WEB_GIVEN ?? "", "utf8")) as Given;

/** From the loss of power to machines that run elsewhere, on a busy machine. */
const FAILOVER = { timeout: 120_000 };

test("a machine migrates, a node dies, and the page shows both", async ({ page, baseURL }) => {
  test.setTimeout(240_000);
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
  await expect(page.locator(".page-head")).toContainText("on n3");

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
  expect(faults).toEqual([]);
});
