// Every page, with a fleet behind it that is what the API's document says.

import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { createMemoryHistory, createRouter, RouterProvider } from "@tanstack/react-router";
import { render, screen, waitFor } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { beforeEach, describe, expect, it, vi } from "vitest";
import { mocked } from "../../mock/testing";
import { tree } from "../router";

beforeEach(() => {
  vi.stubGlobal("ResizeObserver", class {
    observe() {}
    unobserve() {}
    disconnect() {}
  });
  vi.stubGlobal("scrollTo", () => {});
});

async function open(path: string) {
  const history = createMemoryHistory({ initialEntries: [path] });
  const router = createRouter({ routeTree: tree, history, defaultPreload: false });
  const client = new QueryClient({ defaultOptions: { queries: { retry: false } } });
  const shown = render(
    <QueryClientProvider client={client}>
      <RouterProvider router={router} />
    </QueryClientProvider>,
  );
  await screen.findByRole("heading", { level: 1 });
  expect(router.state.location.pathname).toBe(path);
  return { shown, client };
}

const settled = (client: QueryClient) => waitFor(() => expect(client.isFetching()).toBe(0));

const PAGES = ["/", "/vms", "/map", "/new", "/setup", "/validation", "/bin", "/images", "/operations", "/events", "/sessions"];

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
});
