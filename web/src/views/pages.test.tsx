// Every page, with a fleet behind it that is what the API's document says.

import type { QueryClient } from "@tanstack/react-query";
import { screen, waitFor } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { describe, expect, it } from "vitest";
import { mocked } from "../../mock/testing";
import { open } from "../opened";

const settled = (client: QueryClient) => waitFor(() => expect(client.isFetching()).toBe(0));

const PAGES = ["/", "/vms", "/map", "/new", "/start", "/setup", "/validation", "/bin", "/images", "/operations", "/events", "/sessions"];

describe("every page", () => {
  it.each(PAGES)("%s shows a fleet without an error", async (path) => {
    const { came } = mocked();
    const { client } = await open(path);
    await settled(client);
    expect(screen.queryAllByRole("alert").map((alert) => alert.textContent)).toEqual([]);
    expect(came.length).toBeGreaterThan(1);
  });

  it("of a machine shows it, and what is done to it comes by the stream", async () => {
    const { world } = mocked();
    const vm = [...world.vms.values()].find((vm) => vm.phase === "running");
    const { client } = await open(`/vms/${vm?.id}`);
    expect(screen.getByRole("heading", { level: 1 }).textContent).toBe(vm?.name);
    await settled(client);
    await userEvent.click(screen.getByRole("button", { name: "Pause" }));
    await screen.findByRole("button", { name: "Resume" });
    expect(vm?.phase).toBe("paused");
  });

  it("of the cluster shows how each node reaches a volume, since when and why", async () => {
    mocked();
    const { client } = await open("/");
    await settled(client);
    const lines = screen.getAllByRole("listitem").map((line) => line.textContent);
    expect(lines).toContain("host-1 coordinates");
    expect(lines).toContain("direct host-1, host-3, host-4");
    expect(lines).toContainEqual(
      expect.stringMatching(/^redirected, block by block host-2 since .+: its path to the LUN does not answer$/),
    );
  });

  it("of the map says where work waits", async () => {
    mocked();
    const { client } = await open("/map");
    await settled(client);
    expect(screen.getByRole("region", { name: "Node host-3" }).textContent).toContain("waits for disks 34 % of the time");
    expect(screen.getByRole("region", { name: "Node host-1" }).textContent).toContain("no pressure");
    await userEvent.selectOptions(screen.getByLabelText("Nodes by"), "pressure");
    expect(screen.getAllByRole("region", { name: /^Node / })[0]?.getAttribute("aria-label")).toBe("Node host-3");
  });
});
