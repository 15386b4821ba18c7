// Changes of settings, the way back, and its command line.

import { readFileSync } from "node:fs";
import { screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import type { Schemas } from "../api/client";
import { answer } from "../fixtures";
import { page } from "../page";
import { History } from "./History";
import { options } from "./setCommand";

const vm = { id: "v1", name: "web-1", revision: 9 } as unknown as Schemas["VmView"];
const back = { memory: 1 << 30, ha: { possible: [] } };
const changes = [
  {
    revision: 9,
    at: 1_000_000,
    by: "token anna",
    fields: [
      { field: "memory", old: "1 GiB", new: "2 GiB", withheld: false },
      { field: "possible nodes", old: "", new: "host-1", withheld: false },
      { field: "key role", old: null, new: null, withheld: true },
    ],
    back,
  },
  {
    revision: 8,
    at: 900_000,
    by: "user root",
    fields: [{ field: "disk data: size", old: null, new: "10 GiB", withheld: false }],
  },
];
const done = { id: "o1", state: "done", at: 5, begun: 1, title: "change web-1" };

describe("changes of settings", () => {
  it("are told with who made them, and set back as an ordinary change of what was seen", async () => {
    const came = answer({
      "GET /v1/vms/v1/history": () => changes,
      "PATCH /v1/vms/v1": () => done,
    });
    page(<History vm={vm} />);
    const row = await screen.findByRole("row", { name: /token anna/ });
    expect(within(row).getByText("1 GiB")).toBeDefined();
    expect(within(row).getByText("2 GiB")).toBeDefined();
    expect(screen.getByText("(empty)")).toBeDefined();
    expect(screen.getByRole("button", { name: "Set back revision 8 …" })).toHaveProperty("disabled", true);
    await userEvent.click(screen.getByRole("button", { name: "Set back revision 9 …" }));
    const dialog = screen.getByRole("dialog");
    expect(within(dialog).getByText("muster vm set web-1 --memory 1G --anywhere --if-revision 9")).toBeDefined();
    expect(within(dialog).getByText(/not kept: key role/)).toBeDefined();
    await userEvent.click(within(dialog).getByRole("button", { name: "Set back" }));
    await waitFor(() => expect(came.some((request) => request.method === "PATCH")).toBe(true));
    const sent = came.find((request) => request.method === "PATCH");
    expect(new URL(sent?.url ?? "").searchParams.get("if_revision")).toBe("9");
    expect(await sent?.json()).toEqual(back);
  });
});

describe("the command line of a change", () => {
  const every: Schemas["VmChange"] = {
    name: "b",
    cpus: 2,
    cpus_max: 4,
    cpu_weight: 200,
    cpu_cap_percent: 0,
    cpu_compat: "cluster",
    memory: 1 << 30,
    memory_max: 3 << 29,
    balloon: 1 << 29,
    firmware: "uefi",
    profile: "virtio",
    services: { shutdown: true, heartbeat: false, exchange: true, time_sync: false, backup: true },
    on_crash: "restart",
    ha: {
      enabled: false,
      priority: "no_auto_start",
      preferred: ["h1", "h2"],
      possible: ["h1", "h2"],
      failback: true,
      after: [],
      failures_max: 3,
      failure_period: 3_600_000,
      restart_hung: false,
      hung_after: 60_000,
    },
    migration: { max_pause: 2_000, throttle: true, at_limit: "force", bandwidth: 0 },
    description: "two words",
    tags: ["a", "b"],
  };

  it("has an option for each setting, and no option that there is not", () => {
    const reference = readFileSync("../docs/operate/reference.md", "utf8");
    const from = reference.indexOf("`muster vm set`");
    const text = reference.slice(from, reference.indexOf("\n## ", from + 10));
    const flags = options(every).map((option) => option.split(" ")[0] ?? "");
    for (const flag of flags) expect(text, flag).toContain(flag);
    const document = JSON.parse(readFileSync("../openapi/muster-v1.json", "utf8"));
    const schemas = document.components.schemas;
    const names = (schema: string) => Object.keys(schemas[schema].properties);
    // Keys and the first-boot configuration are not kept, so nothing sets them back.
    const known = names("VmChange").filter((name) => !["keys", "cloud_init"].includes(name));
    expect(Object.keys(every).sort()).toEqual(known.sort());
    expect(Object.keys(every.ha ?? {}).sort()).toEqual(names("HaChange").sort());
    expect(Object.keys(every.migration ?? {}).sort()).toEqual(names("MigrateChange").sort());
    expect(Object.keys(every.services ?? {}).sort()).toEqual(names("ServiceChange").sort());
    for (const key of Object.keys(every)) {
      const only = { [key]: every[key as keyof typeof every] } as Schemas["VmChange"];
      expect(options(only), key).not.toEqual([]);
    }
    expect(options(every)).toContain("--service time-sync=off");
    expect(options({ tags: [] })).toEqual(["--no-tags"]);
    expect(options({ memory_max: 3 << 29, description: "it's" })).toEqual([
      "--memory-max 1536M",
      "--description 'it'\\''s'",
    ]);
  });
});
