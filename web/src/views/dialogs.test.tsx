// Dialogs that ask the API before they do something.

import { screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it, vi } from "vitest";
import type { Schemas } from "../api/client";
import { answer, refusal } from "../fixtures";
import { page } from "../page";
import { EditVm } from "./EditVm";
import { Migrate } from "./Migrate";
import { NodeModes } from "./NodeModes";

const vm = {
  id: "v1",
  name: "web-1",
  phase: "running",
  node: "host-1",
  volume: "fast",
  revision: 7,
  cpus: { count: 2, max: 4 },
  memory: { size: 1 << 30, max: 1 << 30 },
  tags: [],
  description: "",
} as unknown as Schemas["VmView"];

const node = { id: "n1", name: "host-1", mode: "active" } as Schemas["NodeView"];
const other = { id: "n2", name: "host-2" } as Schemas["NodeView"];

const done = { id: "o1", state: "done", at: 5, begun: 1, title: "migrate web-1" };

function checks(ok: boolean) {
  const check = { what: "volume", ok, detail: "seen there", hint: ok ? "" : "mount it" };
  return { vm: "web-1", from: "host-1", to: "host-2", checks: [check], fits: ok };
}

describe("moving a machine", () => {
  it("names what speaks against it, and then does not begin", async () => {
    const came = answer({
      "GET /v1/nodes": () => [node, other],
      "GET /v1/volumes": () => [{ id: "s1", name: "fast" }],
      "POST /v1/vms/v1/migrate": () => checks(false),
    });
    page(<Migrate vm={vm} onClose={vi.fn()} />);
    await userEvent.selectOptions(await screen.findByLabelText("To"), await screen.findByRole("option", { name: "host-2" }));
    await userEvent.click(screen.getByRole("button", { name: "Look whether it can" }));
    expect(await screen.findByText(/Next: mount it/)).toBeDefined();
    expect(screen.getByRole("button", { name: "Move" })).toHaveProperty("disabled", true);
    expect(await came.at(-1)?.json()).toEqual({ to: "host-2", dry_run: true });
    expect(screen.getByText("muster vm migrate web-1 --to host-2")).toBeDefined();
  });

  it("begins a live migration of what runs, and only moves what is off", async () => {
    const came = answer({
      "GET /v1/nodes": () => [node, other],
      "GET /v1/volumes": () => [{ id: "s1", name: "fast" }],
      "POST /v1/vms/v1/migrate": () => ({ ...checks(true), op: done }),
      "POST /v1/vms/v1/move": () => ({ vm: "web-1", owner: "n1", to: "host-2" }),
    });
    const onClose = vi.fn();
    page(<Migrate vm={vm} onClose={onClose} />);
    await userEvent.click(await screen.findByRole("button", { name: "Move" }));
    await waitFor(() => expect(onClose).toHaveBeenCalled());
    expect(await screen.findByText(/: done/)).toBeDefined();
    expect(await came.at(-1)?.json()).toEqual({ dry_run: false });
  });

  it("takes the disks along of a machine that lies on its node's own", async () => {
    const came = answer({
      "GET /v1/nodes": () => [node, other],
      "GET /v1/volumes": () => [{ id: "s1", name: "fast" }],
      "POST /v1/vms/v1/migrate": () => checks(true),
    });
    page(<Migrate vm={{ ...vm, volume: undefined }} onClose={vi.fn()} />);
    await userEvent.selectOptions(await screen.findByLabelText("To"), await screen.findByRole("option", { name: "host-2" }));
    await userEvent.click(screen.getByRole("button", { name: "Look whether it can" }));
    await screen.findByText(/nothing speaks against it/);
    expect(await came.at(-1)?.json()).toEqual({ to: "host-2", with_storage: true, dry_run: true });
    await userEvent.selectOptions(screen.getByLabelText("Its disks go to"), await screen.findByRole("option", { name: "fast" }));
    expect(screen.getByText("muster vm migrate web-1 --to host-2 --with-storage --volume fast")).toBeDefined();
  });

  it("moves a machine that is off without a migration", async () => {
    const came = answer({
      "GET /v1/nodes": () => [node, other],
      "GET /v1/volumes": () => [{ id: "s1", name: "fast" }],
      "POST /v1/vms/v1/move": () => refusal(409, "local", "it lies on its node's own disks", "use a volume"),
    });
    page(<Migrate vm={{ ...vm, phase: "off" }} onClose={vi.fn()} />);
    expect(screen.queryByRole("button", { name: "Look whether it can" })).toBeNull();
    await userEvent.click(await screen.findByRole("button", { name: "Move" }));
    expect((await screen.findByRole("alert")).textContent).toContain("use a volume");
    expect(new URL(came.at(-1)?.url ?? "").pathname).toBe("/v1/vms/v1/move");
  });
});

describe("changing a machine", () => {
  it("sends only what differs, for the revision that was seen", async () => {
    const came = answer({ "PATCH /v1/vms/v1": () => done });
    page(<EditVm vm={vm} onClose={vi.fn()} />);
    const change = screen.getByRole("button", { name: "Change" });
    expect(change).toHaveProperty("disabled", true);
    const memory = screen.getByLabelText("Memory");
    await userEvent.clear(memory);
    await userEvent.type(memory, "x");
    expect(change).toHaveProperty("disabled", true);
    await userEvent.clear(memory);
    await userEvent.type(memory, "512M");
    await userEvent.click(change);
    await waitFor(() => expect(came).toHaveLength(1));
    expect(new URL(came[0]?.url ?? "").search).toBe("?if_revision=7");
    expect(await came[0]?.json()).toEqual({ memory: 512 << 20 });
  });
});

describe("emptying a node", () => {
  it("shows first where its machines would go, and which would not", async () => {
    const came = answer({
      "GET /v1/nodes/n1/plan": () => ({
        node: "host-1",
        steps: [{ id: "v1", vm: "web-1", to: "host-2", start: true }],
        unplaced: [{ vm: "big-1", why: "no node has the memory" }],
        local: ["old-1"],
        moving: [],
      }),
      "POST /v1/nodes/n1/mode": () => ({}),
    });
    page(<NodeModes node={node} />);
    await userEvent.click(screen.getByRole("button", { name: "Empty it …" }));
    const dialog = await screen.findByRole("dialog");
    expect(await within(dialog).findByText(/to host-2/)).toBeDefined();
    expect(dialog.textContent).toContain("big-1 (no node has the memory)");
    expect(dialog.textContent).toContain("these stay: old-1");
    expect(came).toHaveLength(1);
    await userEvent.click(within(dialog).getByRole("button", { name: "Empty it" }));
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    expect(await came[1]?.json()).toEqual({ mode: "drain" });
  });

  it("is an administrator's", () => {
    page(<NodeModes node={node} />, "operator");
    expect(screen.getByRole("button", { name: "Empty it …" })).toHaveProperty("disabled", true);
  });
});
