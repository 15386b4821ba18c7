// What every story in the browser needs.

import { AxeBuilder } from "@axe-core/playwright";
import { expect, type Page } from "@playwright/test";

/** Everything that must not happen on any page, with where it was seen. */
export const faults: string[] = [];

/** Watches a page for requests to other hosts, broken policies and errors of scripts. */
export function watch(page: Page, home: string): void {
  page.on("request", (request) => {
    const { host, protocol } = new URL(request.url());
    if (host !== new URL(home).host && !["data:", "blob:"].includes(protocol)) {
      faults.push(`a request to ${request.url()}`);
    }
  });
  page.on("pageerror", (error) => faults.push(`an error on ${page.url()}: ${error.message}`));
  page.on("console", (message) => {
    const text = message.text();
    // A refused sign-in, a node that is dead, and one that has just begun are part of the story.
    const expected = /status of (401|503)|net::ERR_/;
    if (message.type() === "error" && !expected.test(text)) faults.push(`${page.url()}: ${text}`);
  });
}

/** A picture of the page, for documents and for whoever works on it. */
export async function picture(page: Page, name: string): Promise<void> {
  const folder = process.env.MUSTER_WEB_PICTURES;
  if (folder) await page.screenshot({ path: `${folder}/${name}.png` });
}

/** No finding that keeps anybody out. */
export async function accessible(page: Page, where: string): Promise<void> {
  const { violations } = await new AxeBuilder({ page })
    .withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"])
    .analyze();
  const bad = violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
  expect(bad, where).toEqual([]);
}
