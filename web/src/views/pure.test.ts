import { describe, expect, it } from "vitest";
import { many, summaryOf } from "../fixtures";
import { bytes, length, mayDo, parseBytes, shell } from "../parts/format";
import { ACTIONS, fit, whyNot } from "./actions";
import { body, command, EMPTY, placed, wrong } from "./create";
import { changes } from "./EditVm";
import { exact } from "./setCommand";
import { choices, narrowed, ordered } from "./filter";
import { source } from "./Images";

describe("figures and words", () => {
  it("shows and reads sizes", () => {
    expect([0, 1023, 1024, 1536 << 20, 5 * 2 ** 40].map(bytes)).toEqual([
      "0 B",
      "1,023 B",
      "1 KiB",
      "1.5 GiB",
      "5 TiB",
    ]);
    expect(["512M", "2 GiB", "1.5g", "4096"].map(parseBytes)).toEqual([
      512 << 20,
      2 * 2 ** 30,
      1.5 * 2 ** 30,
      4096,
    ]);
    for (const bad of ["", "G", "-1G", "0", "12x", "999999999999P"]) {
      expect(parseBytes(bad), bad).toBeNull();
    }
    expect([128 << 20, 1 << 30, 1000].map(exact)).toEqual(["128M", "1G", "1000"]);
  });

  it("shows lengths of time by their two largest parts", () => {
    expect([0, 5_000, 65_000, 3_600_000, 90_061_000].map(length)).toEqual([
      "0 s",
      "5 s",
      "1 min 5 s",
      "1 h",
      "1 d 1 h",
    ]);
  });

  it("quotes what a shell would take apart", () => {
    expect(shell("web-1")).toBe("web-1");
    expect(shell("a b; rm 'x'")).toBe("'a b; rm '\\''x'\\'''");
  });

  it("ranks roles", () => {
    expect(mayDo("operator", "viewer")).toBe(true);
    expect(mayDo("viewer", "operator")).toBe(false);
    expect(mayDo(undefined, "viewer")).toBe(false);
  });
});

describe("what can be done to machines", () => {
  const [start] = ACTIONS;
  if (!start) throw new Error("there is a first action");

  it("says why not: role, choice, phase", () => {
    expect(whyNot(start, [summaryOf({ phase: "off" })], "operator")).toBeUndefined();
    expect(whyNot(start, [summaryOf({ phase: "off" })], "viewer")).toContain("role operator");
    expect(whyNot(start, [], "operator")).toContain("Choose");
    expect(whyNot(start, [summaryOf()], "operator")).toContain("running");
  });

  it("does it only to those that it fits", () => {
    const mixed = [summaryOf({ phase: "off" }), summaryOf(), summaryOf({ phase: "saved" })];
    expect(whyNot(start, mixed, "operator")).toBeUndefined();
    expect(fit(start, mixed).map((vm) => vm.phase)).toEqual(["off", "saved"]);
  });

  it("asks before everything that loses something", () => {
    const asking = ACTIONS.filter((action) => action.loses).map((action) => action.verb);
    expect(asking).toEqual(["reset", "off", "delete"]);
  });
});

describe("the list of 8,000 machines", () => {
  const list = many(8_000);

  it("is narrowed by words, state, node and tag together", () => {
    expect(narrowed(list, { find: "VM-79" })).toHaveLength(1 + 10 + 100);
    expect(narrowed(list, { find: "host-1 even" })).toHaveLength(0);
    expect(narrowed(list, { node: "host-2", tag: "even", phase: "off" })).toHaveLength(333);
    expect(narrowed(list, { find: "10.0.31.249" })).toHaveLength(1);
    expect(narrowed(list, {})).toHaveLength(8_000);
  });

  it("is ordered as people count", () => {
    const first = ordered(list, { by: "name", down: false }).slice(0, 3);
    expect(first.map((vm) => vm.name)).toEqual(["vm-0", "vm-1", "vm-2"]);
    const last = ordered(list, { by: "name", down: true })[0];
    expect(last?.name).toBe("vm-7999");
    expect(choices(list).nodes).toHaveLength(8);
  });
});

describe("a new machine", () => {
  const form = { ...EMPTY, name: "web-1", image: "debian" };

  it("finds what is wrong before the API is asked", () => {
    expect(wrong(form)).toEqual({});
    expect(Object.keys(wrong({ ...EMPTY, cpus: "0", memory: "x", sshKeys: "nonsense" }))).toEqual([
      "name",
      "cpus",
      "memory",
      "diskSize",
      "sshKeys",
    ]);
    expect(wrong({ ...form, name: "../x" }).name).toBeDefined();
  });

  it("is the same by API and by command line", () => {
    const full = {
      ...form,
      diskSize: "20G",
      memory: "512M",
      tags: "web blue",
      user: "anna",
      sshKeys: "ssh-ed25519 AAAA anna@home\n",
      volume: "shared",
    };
    expect(body(full)).toEqual({
      name: "web-1",
      cpus: 1,
      memory: 512 << 20,
      disks: [{ image: "debian", size: 20 * 2 ** 30 }],
      nics: [{ network: "nat" }],
      tags: ["web", "blue"],
      volume: "shared",
      cloud_init: { user: "anna", ssh_keys: ["ssh-ed25519 AAAA anna@home"] },
    });
    expect(command(full)).toBe(
      "muster vm create web-1 --image debian --disk-size 20G --cpus 1 --memory 512M " +
        "--network nat --volume shared --tag web --tag blue --user anna " +
        "--ssh-key 'ssh-ed25519 AAAA anna@home' --start",
    );
    expect(body({ ...form, network: "" }).nics).toEqual([]);
  });

  it("puts a machine where another node can take it over, unless somebody chose otherwise", () => {
    const volumes = [{ name: "full", problem: "no space" }, { name: "shared", problem: null }];
    expect(body(placed(form, volumes)).volume).toBe("shared");
    expect(command(placed(form, volumes))).toContain("--volume shared");
    expect(body(placed({ ...form, volume: "" }, volumes)).volume).toBeUndefined();
    expect(body(placed({ ...form, volume: "full" }, volumes)).volume).toBe("full");
    expect(body(placed(form, [])).volume).toBeUndefined();
  });

  it("tells a guest what was said, or what somebody wrote whole, and not both", () => {
    expect(body(form).cloud_init).toBeUndefined();
    expect(body({ ...form, hostname: "www" }).cloud_init).toEqual({ hostname: "www", ssh_keys: [] });
    const raw = { ...form, userData: "#!/bin/sh\n" };
    expect(body(raw).cloud_init).toEqual({ user_data: "#!/bin/sh\n" });
    expect(command(raw)).toContain("--user-data FILE");
    expect(wrong(raw).userData).toBeUndefined();
    expect(wrong({ ...raw, user: "anna" }).userData).toContain("instead");
  });

  it("takes images from addresses and files", () => {
    expect(source("https://example.org/a.qcow2").from).toBe("url");
    expect(source("/srv/a.qcow2")).toEqual({ from: "file", path: "/srv/a.qcow2" });
  });
});

describe("a change of a machine", () => {
  const vm = {
    name: "web-1",
    cpus: { count: 2, max: 4 },
    memory: { size: 1 << 30, max: 1 << 30 },
    tags: ["web"],
    description: "",
  } as Parameters<typeof changes>[0];
  const same = { name: "web-1", cpus: "2", memory: "1G", tags: "web", description: "" };

  it("asks for what differs and nothing else", () => {
    expect(changes(vm, same).body).toEqual({});
    expect(changes(vm, { ...same, cpus: "3", memory: "2 GiB" })).toEqual({
      body: { cpus: 3, memory: 2 * 2 ** 30 },
      options: ["--cpus 3", "--memory 2G"],
    });
    expect(changes(vm, { ...same, tags: "" })).toEqual({
      body: { tags: [] },
      options: ["--no-tags"],
    });
  });
});
