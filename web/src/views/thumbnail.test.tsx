// Small pictures of screens: few at a time, and only where somebody looks.

import { QueryClient } from "@tanstack/react-query";
import { screen, waitFor } from "@testing-library/react";
import { describe, expect, it, vi } from "vitest";
import { mocked } from "../../mock/testing";
import { page } from "../page";
import { Thumbnail } from "./Thumbnail";
import { sizeOf, thumbnail, Turns } from "./thumbnail";

describe("taking turns", () => {
  it("lets a few go at a time, in order, and whoever gave up keeps nobody out", async () => {
    const turns = new Turns(2);
    const log: string[] = [];
    const ends: (() => void)[] = [];
    const work = (name: string) => () => {
      log.push(name);
      return new Promise<void>((end) => ends.push(end));
    };
    const stop = new AbortController();
    const all = ["a", "b"].map((name) => turns.take(work(name)));
    const givenUp = turns.take(work("c"), stop.signal).catch(() => log.push("c gave up"));
    all.push(turns.take(work("d")));
    await Promise.resolve();
    expect(log).toEqual(["a", "b"]);
    stop.abort();
    ends[0]?.();
    await waitFor(() => expect([...log].sort()).toEqual(["a", "b", "c gave up", "d"]));
    expect(ends, "whoever gave up did nothing").toHaveLength(3);
    for (const end of ends) end();
    await Promise.all([...all, givenUp]);
    // All turns are free again.
    await Promise.all([turns.take(async () => log.push("e")), turns.take(async () => log.push("f"))]);
    expect(log.slice(-2)).toEqual(["e", "f"]);
  });
});

describe("a small picture", () => {
  it("has the screen's own shape and is never larger than the screen", () => {
    expect(sizeOf(1920, 1080)).toEqual({ width: 192, height: 108 });
    expect(sizeOf(720, 1280)).toEqual({ width: 68, height: 120 });
    expect(sizeOf(80, 50)).toEqual({ width: 80, height: 50 });
    expect(sizeOf(0, 0)).toEqual({ width: 1, height: 1 });
  });

  it("is shown with the machine's name, and nothing where there is none", async () => {
    const { world } = mocked();
    const vm = [...world.vms.values()][0];
    if (!vm) throw new Error("the world has machines");
    const close = vi.fn();
    vi.stubGlobal("createImageBitmap", async (blob: Blob) => {
      expect(blob.type).toBe("image/png");
      return { width: 160, height: 100, close };
    });
    vi.spyOn(HTMLCanvasElement.prototype, "getContext").mockReturnValue(null);
    vi.spyOn(HTMLCanvasElement.prototype, "toDataURL").mockReturnValue("data:image/webp;base64,AA");
    page(<Thumbnail vm={vm.id} name={vm.name} again={60_000} />);
    expect((await screen.findByRole("img", { name: `Screen of ${vm.name}` })).getAttribute("src")).toContain("data:");
    expect(close).toHaveBeenCalledOnce();
    const client = new QueryClient();
    await expect(client.fetchQuery(thumbnail("none", 60_000))).rejects.toMatchObject({ status: 404 });
  });
});
