// What a cluster is made of, and the devices of a machine.

import { screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it, vi } from "vitest";
import type { Schemas } from "../api/client";
import { answer, refusal, summaryOf } from "../fixtures";
import { page } from "../page";
import { Disks, Nics } from "./Devices";
import { arranged, byNode } from "./Fleet";
import { MoveStorage } from "./MoveStorage";
import { Join } from "./setup/Join";
import { options, Witness } from "./setup/Witness";
import { Volumes } from "./setup/Volumes";

const single = { id: null, name: "host-1", nodes: [], words: [], witness: null };
const pair = { ...single, id: "c1", nodes: [{ name: "host-1" }, { name: "host-2" }] };

const vm = {
  id: "v1",
  name: "web-1",
  node: "host-1",
  phase: "running",
  volume: "fast",
  disks: [{ id: "d1", name: "disk0", size: 10 << 20, format: "qcow2", read_only: false }],
  nics: [{ id: "i1", name: "net0", network: "nat", mac: "52:54:00:00:00:01", addresses: [], link_up: true }],
} as unknown as Schemas["VmView"];

const done = { id: "o1", state: "done", at: 5, begun: 1, title: "add a disk" };

describe("the map", () => {
  it("puts nodes in order by load and by what waits there, and the silent ones last", () => {
    const node = (name: string, load: object | null) => ({ name, load }) as Schemas["NodeView"];
    const quiet = { cpu: 0, waits_for_cpu: 0, waits_for_memory: 0, waits_for_disks: 0 };
    const all = [
      node("c", { ...quiet, cpu: 90 }),
      node("b", null),
      node("a", { ...quiet, cpu: 10, waits_for_disks: 40 }),
    ];
    const names = (order: "name" | "load" | "pressure") => arranged(all, order).map(({ name }) => name).join("");
    expect([names("name"), names("load"), names("pressure")]).toEqual(["abc", "cab", "acb"]);
  });
});

describe("joining", () => {
  it("is asked for at the host that joins, whose page shows the token nowhere", async () => {
    const came = answer({ "GET /v1/cluster": () => single, "POST /v1/cluster/join": () => ({}) });
    page(<Join why={undefined} />);
    await userEvent.click(await screen.findByRole("button", { name: "Join another cluster …" }));
    const dialog = await screen.findByRole("dialog");
    const go = within(dialog).getByRole("button", { name: "Join" });
    expect(go).toHaveProperty("disabled", true);
    await userEvent.type(within(dialog).getByLabelText("Token"), " hush-token ");
    const same = dialog.querySelector(".same")?.textContent;
    expect(same).toContain("muster cluster join TOKEN");
    expect(same).not.toContain("hush");
    await userEvent.click(go);
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    const asked = came.find((request) => request.url.endsWith("/v1/cluster/join"));
    expect(await asked?.json()).toEqual({ token: "hush-token" });
  });
});

describe("the witness", () => {
  it("shows no secret, neither in the command nor in the call", async () => {
    const came = answer({
      "GET /v1/cluster": () => pair,
      "POST /v1/cluster/witness": () => refusal(409, "witness_lies", "it forgets writes", "take another store"),
    });
    page(<Witness why={undefined} />);
    await userEvent.click(await screen.findByRole("button", { name: "Set a witness …" }));
    const dialog = await screen.findByRole("dialog");
    await userEvent.selectOptions(within(dialog).getByLabelText("What it is"), "object");
    await userEvent.type(within(dialog).getByLabelText("Address"), "s3://votes/one");
    await userEvent.type(within(dialog).getByLabelText("Options"), "aws_region=north");
    await userEvent.type(within(dialog).getByLabelText("Secrets"), "aws_secret_access_key=hush");
    const same = dialog.querySelector(".same")?.textContent;
    expect(same).toContain("--s3 s3://votes/one --option aws_region=north --secret-file aws_secret_access_key=FILE");
    expect(same).not.toContain("hush");
    await userEvent.click(within(dialog).getByRole("button", { name: "Try it and take it" }));
    // A store that was refused can be mended where it stands.
    expect((await within(dialog).findByRole("alert")).textContent).toContain("take another store");
    expect(await came.at(-1)?.json()).toEqual({
      place: {
        kind: "object",
        url: "s3://votes/one",
        options: { aws_region: "north" },
        secrets: { aws_secret_access_key: "hush" },
      },
    });
  });

  it("is not for a single host", async () => {
    answer({ "GET /v1/cluster": () => single });
    page(<Witness why={undefined} />);
    await waitFor(() =>
      expect(screen.getByRole("button", { name: "Set a witness …" })).toHaveProperty("disabled", true),
    );
  });

  it("takes options by lines, and none that are no options", () => {
    expect(options("a=1\n\n b = x=y \n")).toEqual({ a: "1", b: "x=y" });
    expect(options("nonsense")).toBeNull();
    expect(options("=x")).toBeNull();
  });
});

describe("nodes that join", () => {
  it("get a token that is shown once, with what to do with it", async () => {
    const token = { id: "t1", text: "mjt_abc", created: 1, expires: 3_600_000, uses: 1, by: "root" };
    const came = answer({ "GET /v1/cluster": () => pair, "POST /v1/cluster/tokens": () => token });
    page(<Join why={undefined} />);
    await userEvent.click(await screen.findByRole("button", { name: "Let a host join …" }));
    const uses = await screen.findByLabelText("For how many hosts");
    await userEvent.clear(uses);
    await userEvent.type(uses, "0");
    expect(screen.getByRole("button", { name: "Make a token" })).toHaveProperty("disabled", true);
    await userEvent.clear(uses);
    await userEvent.type(uses, "2");
    await userEvent.click(screen.getByRole("button", { name: "Make a token" }));
    expect(await screen.findByText("muster cluster join mjt_abc")).toBeDefined();
    expect(await came.at(-1)?.json()).toEqual({ valid_s: 3_600, uses: 2 });
    await userEvent.click(screen.getByRole("button", { name: "I have it" }));
    expect(screen.queryByText(/mjt_abc/)).toBeNull();
  });

  it("need a cluster first", async () => {
    const came = answer({ "GET /v1/cluster": () => single, "POST /v1/cluster": () => pair });
    page(<Join why={undefined} />);
    await userEvent.click(await screen.findByRole("button", { name: "Make it a cluster …" }));
    await userEvent.type(await screen.findByLabelText("Name"), "north");
    await userEvent.click(screen.getByRole("button", { name: "Make" }));
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    const made = came.find((request) => request.method === "POST");
    expect(await made?.json()).toEqual({ name: "north" });
  });
});

describe("volumes", () => {
  it("in use cannot be forgotten, and the page says by whom", async () => {
    const volume = { id: "s1", name: "fast", kind: "share", path: "/srv/fast", used_by: ["web-1"], created: 1 };
    answer({ "GET /v1/volumes": () => [volume, { ...volume, id: "s2", name: "old", used_by: [] }] });
    page(<Volumes why={undefined} />);
    const forget = await screen.findByRole("button", { name: "Forget fast" });
    expect(forget).toHaveProperty("disabled", true);
    expect(screen.getByText("In use by web-1.")).toBeDefined();
    expect(screen.getByRole("button", { name: "Forget old" })).toHaveProperty("disabled", false);
  });
});

describe("volumes on LUNs", () => {
  const disk = (lun: string, holds: string, volume: string | null = null) => ({
    lun,
    size: 1 << 30,
    volume,
    nodes: [{ node: "host-1", paths: ["/dev/sda"], read_only: false, fences: true, holds }],
  });

  it("are made of empty ones only", async () => {
    const came = answer({
      "GET /v1/volumes": () => [],
      "GET /v1/disks": () => [disk("naa.1", "nothing"), disk("naa.2", "swap"), disk("naa.3", "nothing", "fast")],
      "POST /v1/volumes": () => ({}),
    });
    page(<Volumes why={undefined} />);
    await userEvent.click(await screen.findByRole("button", { name: "Add a volume …" }));
    await userEvent.type(await screen.findByLabelText("Name"), "new");
    await userEvent.selectOptions(screen.getByLabelText("What it is"), "lun");
    const luns = screen.getByLabelText("LUN");
    await within(luns).findByRole("option", { name: /naa.1/ });
    expect(within(luns).queryByRole("option", { name: /naa.[23]/ })).toBeNull();
    await userEvent.selectOptions(luns, "naa.1");
    expect(screen.getByText("muster volume create new --lun naa.1 --fs xfs")).toBeDefined();
    await userEvent.click(screen.getByRole("button", { name: "Add" }));
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    const made = came.find((request) => request.method === "POST");
    expect(await made?.json()).toEqual({ kind: "lun", name: "new", lun: "naa.1", fs: "xfs", adopt: false });
  });

  it("are let go, and never destroyed", async () => {
    const volume = {
      id: "s1", name: "fast", kind: "lun", path: "/muster/volumes/fast", lun: "naa.1", fs: "xfs",
      uuid: "u", fences: true, used_by: [], created: 1,
      coordination: { phase: "ready", coordinator: "host-1", epoch: 1, maintenance: false, nodes: [] },
    };
    const came = answer({
      "GET /v1/volumes": () => [volume],
      "POST /v1/volumes/s1/release": () => ({}),
    });
    page(<Volumes why={undefined} />);
    expect(await screen.findByText(/mounted by host-1/)).toBeDefined();
    await userEvent.click(screen.getByRole("button", { name: "Forget fast" }));
    const dialog = await screen.findByRole("alertdialog");
    expect(dialog.textContent).toContain("LUN naa.1 is an ordinary disk with xfs afterwards");
    expect(dialog.querySelector(".same")?.textContent).toContain("muster volume release fast");
    await userEvent.click(within(dialog).getByRole("button", { name: "Forget" }));
    await waitFor(() => expect(screen.queryByRole("alertdialog")).toBeNull());
    expect(came.every((request) => request.method !== "DELETE")).toBe(true);
  });
});

describe("disks and adapters", () => {
  it("a blank disk needs a size, a copy of an image does not", async () => {
    const came = answer({
      "GET /v1/images": () => [{ id: "m1", name: "tools" }],
      "POST /v1/vms/v1/disks": () => done,
    });
    page(<Disks vm={vm} />, "operator");
    await userEvent.click(screen.getByRole("button", { name: "Add a disk …" }));
    const add = await screen.findByRole("button", { name: "Add" });
    expect(add).toHaveProperty("disabled", true);
    await userEvent.selectOptions(screen.getByLabelText("Thin copy of"), await screen.findByRole("option", { name: "tools" }));
    expect(screen.getByText("muster vm disk add web-1 --image tools")).toBeDefined();
    await userEvent.click(add);
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    expect(await came.find((request) => request.method === "POST")?.json()).toEqual({ image: "tools" });
  });

  it("a disk only grows", async () => {
    page(<Disks vm={vm} />);
    await userEvent.click(screen.getByRole("button", { name: "Grow disk0" }));
    await userEvent.type(await screen.findByLabelText("New size"), "5M");
    expect(screen.getByText("A disk cannot shrink")).toBeDefined();
    expect(screen.getByRole("button", { name: "Grow" })).toHaveProperty("disabled", true);
  });

  it("a disk is removed only after a question that says what is lost", async () => {
    const came = answer({ "DELETE /v1/vms/v1/disks/d1": () => done });
    page(<Disks vm={vm} />);
    await userEvent.click(screen.getByRole("button", { name: "Remove disk0" }));
    const dialog = await screen.findByRole("alertdialog");
    expect(dialog.textContent).toContain("does not go to the recycle bin");
    expect(came).toHaveLength(0);
    await userEvent.click(within(dialog).getByRole("button", { name: "Remove" }));
    await waitFor(() => expect(came).toHaveLength(1));
  });

  it("only what was changed of an adapter is sent", async () => {
    const came = answer({ "GET /v1/networks": () => [], "PATCH /v1/vms/v1/nics/i1": () => done });
    page(<Nics vm={vm} />);
    await userEvent.click(screen.getByRole("button", { name: "Change net0" }));
    const change = await screen.findByRole("button", { name: "Change" });
    expect(change).toHaveProperty("disabled", true);
    await userEvent.click(screen.getByRole("checkbox", { name: "The cable is in" }));
    expect(screen.getByText("muster vm nic set web-1 net0 --link off")).toBeDefined();
    await userEvent.click(change);
    await waitFor(() => expect(came.some((request) => request.method === "PATCH")).toBe(true));
    expect(await came.find((request) => request.method === "PATCH")?.json()).toEqual({ link_up: false });
  });

  it("are an operator's", () => {
    page(<Disks vm={vm} />, "viewer");
    expect(screen.getByRole("button", { name: "Add a disk …" })).toHaveProperty("disabled", true);
  });
});

describe("moving disks", () => {
  it("names what speaks against it, and the node's own disks are a place, too", async () => {
    const check = { what: "space", ok: false, detail: "no room", hint: "free some" };
    const came = answer({
      "GET /v1/volumes": () => [{ id: "s1", name: "fast" }, { id: "s2", name: "slow" }],
      "POST /v1/vms/v1/move-storage": () => ({ vm: "web-1", checks: [check], fits: false }),
    });
    page(<MoveStorage vm={vm} onClose={vi.fn()} />);
    const to = await screen.findByLabelText("To");
    expect(await screen.findByRole("option", { name: "slow" })).toBeDefined();
    // Where it is, it need not go.
    expect(screen.queryByRole("option", { name: "fast" })).toBeNull();
    await userEvent.selectOptions(to, "the disks of host-1");
    expect(screen.getByText("muster vm move-storage web-1 --local")).toBeDefined();
    await userEvent.click(screen.getByRole("button", { name: "Look whether it can" }));
    expect(await screen.findByText(/Next: free some/)).toBeDefined();
    expect(screen.getByRole("button", { name: "Move" })).toHaveProperty("disabled", true);
    expect(await came.at(-1)?.json()).toEqual({ dry_run: true });
  });
});

describe("the map", () => {
  it("has every machine at its node, the busiest first", () => {
    const found = byNode([
      summaryOf({ name: "a", node: "h1", cpu_percent: 1 }),
      summaryOf({ name: "b", node: "h2" }),
      summaryOf({ name: "c", node: "h1", cpu_percent: 90 }),
    ]);
    expect(found.get("h1")?.map((vm) => vm.name)).toEqual(["c", "a"]);
    expect(found.get("h2")?.map((vm) => vm.name)).toEqual(["b"]);
  });
});
