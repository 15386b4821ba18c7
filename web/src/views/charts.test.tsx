// The charts of a machine, with the mock behind them.

import { screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { mocked } from "../../mock/testing";
import { page } from "../page";
import { Charts } from "./Charts";

function shown(runs = true) {
  const { world, came } = mocked({ now: () => 1_790_000_000_000 });
  const vm = [...world.vms.values()][0];
  if (!vm) throw new Error("the world has machines");
  page(<Charts of={{ what: "vm", id: vm.id, name: vm.name, runs }} />);
  return { came };
}

describe("charts", () => {
  it("show each kind of use, and are read by keys", async () => {
    shown(false);
    const cpu = await screen.findByRole("slider", { name: /^Processors/ });
    expect(screen.getAllByRole("slider")).toHaveLength(5);
    expect(cpu.getAttribute("aria-valuenow")).toBe("600");
    const before = cpu.getAttribute("aria-valuetext");
    expect(before).toMatch(/used [\d.,]+ %$/);
    cpu.focus();
    await userEvent.keyboard("{ArrowLeft}{ArrowLeft}");
    expect(cpu.getAttribute("aria-valuenow")).toBe("598");
    expect(cpu.getAttribute("aria-valuetext")).not.toBe(before);
    // The same moment in all of them.
    expect(screen.getByRole("slider", { name: /^Network/ }).getAttribute("aria-valuenow")).toBe("598");
    await userEvent.keyboard("{Escape}");
    expect(cpu.getAttribute("aria-valuenow")).toBe("600");
  });

  it("stand in a table, too", async () => {
    shown(false);
    await userEvent.click(await screen.findByRole("button", { name: "As a table" }));
    const table = await screen.findByRole("region", { name: "Use over time" });
    expect(within(table).getByRole("columnheader", { name: "Memory: needed" })).toBeDefined();
    expect(within(table).getAllByRole("row").length).toBeGreaterThan(20);
    expect(within(table).getAllByRole("row").length).toBeLessThan(40);
    expect(screen.queryByRole("slider")).toBeNull();
  });

  it("ask once for all, and then only for what came since", async () => {
    const { came } = shown();
    await screen.findByRole("slider", { name: /^Processors/ });
    await waitFor(() => expect(came.length).toBeGreaterThan(2));
    const asked = came.map((request) => new URL(request.url).searchParams);
    expect(asked[0]?.has("from")).toBe(false);
    expect(1_790_000_000_000 - Number(asked[1]?.get("from"))).toBeLessThan(5_000);
    expect(asked[1]?.get("resolution_s")).toBe("1");
  });

  it("of a year ask coarsely, and seldom", async () => {
    const { came } = shown();
    await userEvent.selectOptions(await screen.findByLabelText("Time"), "year");
    await waitFor(() => expect(came.at(-1)?.url).toContain("from="));
    const since = Number(new URL(came.at(-1)?.url ?? "").searchParams.get("from"));
    expect(Date.now() - since).toBeGreaterThan(364 * 86_400_000);
  });
});
