// Fence devices and networks of hosts, with the mock behind them.

import { screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { mocked } from "../../../mock/testing";
import { page } from "../../page";
import { FenceDevices, plugs } from "./FenceDevices";
import { HostNetworks } from "./HostNetworks";

const body = (came: Request[], method: string, path: string) => {
  const found = came.filter((request) => request.method === method && new URL(request.url).pathname === path);
  return found.at(-1)?.json();
};

describe("fence devices", () => {
  it("are added with their nodes, and no secret is shown", async () => {
    const { came } = mocked();
    page(<FenceDevices why={undefined} />);
    await userEvent.click(screen.getByRole("button", { name: "Add a device …" }));
    const dialog = await screen.findByRole("dialog");
    const add = within(dialog).getByRole("button", { name: "Add" });
    expect(add).toHaveProperty("disabled", true);
    await userEvent.type(within(dialog).getByLabelText("Name"), "pdu");
    await userEvent.type(within(dialog).getByLabelText("Nodes"), "host-1=3\nhost-2");
    await userEvent.type(within(dialog).getByLabelText("Options"), "ip=10.0.0.9");
    await userEvent.type(within(dialog).getByLabelText("Secrets"), "password=hush");
    const same = dialog.querySelector(".same")?.textContent;
    expect(same).toContain("--node host-1=3 --node host-2 --option ip=10.0.0.9 --secret-file password=FILE");
    expect(same).not.toContain("hush");
    await userEvent.click(add);
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    expect(await body(came, "POST", "/v1/fence-devices")).toEqual({
      name: "pdu",
      agent: "fence_ipmilan",
      nodes: { "host-1": "3", "host-2": null },
      options: { ip: "10.0.0.9" },
      secrets: { password: "hush" },
      level: 1,
    });
  });

  it("take nodes by lines, and none that are no nodes", () => {
    expect(plugs("a=1\n\n b \nc=x=y")).toEqual({ a: "1", b: null, c: "x=y" });
    expect(plugs("")).toBeNull();
    expect(plugs("=3")).toBeNull();
  });

  it("cannot be touched by whoever may not, and it says why", async () => {
    mocked();
    page(<FenceDevices why="This needs the role administrator." />);
    const add = screen.getByRole("button", { name: "Add a device …" });
    expect(add).toHaveProperty("disabled", true);
    expect(screen.getAllByText("This needs the role administrator.").length).toBeGreaterThan(0);
  });
});

describe("networks of the hosts", () => {
  it("get a name and a place, and only what was changed is sent", async () => {
    const { came } = mocked();
    page(<HostNetworks why={undefined} />);
    const [change] = await screen.findAllByRole("button", { name: /^Change / });
    if (!change) throw new Error("the mock has networks");
    const subnet = change.closest("tr")?.querySelector("th")?.textContent ?? "";
    await userEvent.click(change);
    const dialog = await screen.findByRole("dialog");
    expect(within(dialog).getByRole("button", { name: "Change" })).toHaveProperty("disabled", true);
    await userEvent.clear(within(dialog).getByLabelText("Name"));
    await userEvent.type(within(dialog).getByLabelText("Name"), "fast-lane");
    expect(dialog.querySelector(".same")?.textContent).toContain("--name fast-lane");
    await userEvent.click(within(dialog).getByRole("button", { name: "Change" }));
    await waitFor(() => expect(screen.queryByRole("dialog")).toBeNull());
    const sent = (await body(came, "POST", "/v1/cluster/networks")) as Record<string, unknown>;
    expect(Object.keys(sent).sort()).toEqual(["name", "network"]);
    expect(subnet).toContain(String(sent.network));
  });
});
