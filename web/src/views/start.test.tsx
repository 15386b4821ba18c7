// The way from a host that was installed a minute ago to the first machine, as a person goes it.

import { screen, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { mocked } from "../../mock/testing";
import { open } from "../opened";
import { pretty } from "./FirstBoot";

const same = () => [...document.querySelectorAll(".same code")].map((code) => code.textContent);

describe("the first start", () => {
  it("leads from a single host to a machine that runs, in three screens", async () => {
    const { world, came } = mocked({ fresh: true });
    const { router } = await open("/");
    await userEvent.click(await screen.findByRole("link", { name: "The first machine, in three steps" }));

    await screen.findByRole("heading", { name: "Can machines run here?" });
    expect(within(screen.getByRole("list", { name: "Steps" })).getAllByRole("listitem")).toHaveLength(3);
    await screen.findByText("ready");
    await userEvent.type(screen.getByLabelText("Name of the cluster"), "north");
    expect(same()).toContain("muster cluster create north");
    await userEvent.click(screen.getByRole("button", { name: "Make it a cluster" }));
    await screen.findByText(/^It is the cluster north/);
    await userEvent.click(screen.getByRole("button", { name: "Next: an image" }));

    const go = await screen.findByRole("button", { name: "Import it and go on" });
    expect(go).toHaveProperty("disabled", true);
    await userEvent.type(screen.getByLabelText("Name of the image"), "debian");
    await userEvent.type(screen.getByLabelText("From"), "https://example.org/debian.qcow2");
    expect(same()).toContain("muster image import debian https://example.org/debian.qcow2");
    await userEvent.click(go);

    await screen.findByRole("heading", { name: "A machine from debian" });
    const create = screen.getByRole("button", { name: "Create it and start it" });
    expect(create).toHaveProperty("disabled", true);
    await userEvent.type(screen.getByLabelText("Name"), "first");
    await userEvent.type(screen.getByLabelText("User"), "anna");
    await userEvent.click(screen.getByRole("button", { name: "Show what the guest will be told" }));
    expect((await screen.findByLabelText("user-data")).textContent).toContain('"name": "anna"');
    expect(same()).toContain("muster vm create first --image debian --cpus 1 --memory 1G --network nat --user anna --start");
    await userEvent.click(create);
    await screen.findByRole("heading", { level: 1, name: "first" });
    expect(world.vm("first")?.phase).toBe("running");
    expect(router.state.location.pathname).toBe(`/vms/${world.vm("first")?.id}`);
    const done = came.filter((request) => request.method === "POST").map((request) => new URL(request.url).pathname);
    expect(done.filter((path) => !path.includes("whoami")).map((path) => path.replace(/vms\/[^/]+/, "vms/ID"))).toEqual([
      "/v1/cluster",
      "/v1/images",
      "/v1/first-boot",
      "/v1/vms",
      "/v1/vms/ID/start",
    ]);
  });

  it("does not go on where no machine could run, and says why", async () => {
    const { world } = mocked({ fresh: true });
    const [host] = world.nodes;
    if (!host) throw new Error("there is a host");
    Object.assign(host, { qemu: null, problems: ["QEMU is missing: apt install qemu-system-x86"] });
    await open("/start");
    await screen.findByText("QEMU is missing: apt install qemu-system-x86");
    expect(screen.getByRole("button", { name: "Next: an image" })).toHaveProperty("disabled", true);
  });

  it("shows a guest's files as they can be read, and a user's own as they are", () => {
    expect(pretty('#cloud-config\n{"a":1}')).toBe('#cloud-config\n{\n  "a": 1\n}');
    expect(pretty('{"a":1}')).toBe('{\n  "a": 1\n}');
    expect(pretty("#!/bin/sh\necho {")).toBe("#!/bin/sh\necho {");
  });
});
