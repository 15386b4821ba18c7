// Going on at another node: what stands in the address, and which node it is.

import { describe, expect, it, vi } from "vitest";
import type { Schemas } from "../api/client";
import { onwardTo, read } from "../arrival";
import { others, reached } from "./elsewhere";

describe("what a page was opened with", () => {
  it("is a link's secret or a session's word, with the page that was open", () => {
    expect(read("")).toEqual({});
    expect(read("#abc123")).toEqual({ link: "abc123" });
    const address = new URL(onwardTo("10.0.0.2:7443", { onward: "w0rd", from: "n1", to: "/vms/web 1" }));
    expect(address.host).toBe("10.0.0.2:7443");
    expect(address.search, "nothing of it is sent").toBe("");
    expect(read(address.hash)).toEqual({ onward: "w0rd", from: "n1", to: "/vms/web 1" });
  });

  it("leads nowhere else, whatever stands in it", () => {
    for (const to of ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x"]) {
      expect(read(`#${new URLSearchParams({ onward: "w", to, from: "<b>" })}`)).toEqual({ onward: "w" });
    }
    expect(read("#to=%2Fvms")).toEqual({});
  });
});

describe("other nodes", () => {
  const node = (name: string, tls_address?: string) => ({ name, tls_address }) as Schemas["NodeView"];

  it("are those with a console, but this one", () => {
    const all = [node("n1", "10.0.0.1:7443"), node("n2", "10.0.0.2:7443"), node("n3")];
    expect(others(all, "10.0.0.1:7443")).toEqual([{ name: "n2", address: "10.0.0.2:7443" }]);
  });

  it("the first that answers is taken, and none if none does", async () => {
    vi.stubGlobal("fetch", (address: string) =>
      address.includes("10.0.0.3") ? Promise.resolve(new Response()) : Promise.reject(new Error("no")),
    );
    const all = [
      { name: "n2", address: "10.0.0.2:7443" },
      { name: "n3", address: "10.0.0.3:7443" },
    ];
    expect(await reached(all)).toEqual(all[1]);
    expect(await reached(all.slice(0, 1))).toBeNull();
    expect(await reached([])).toBeNull();
  });
});
