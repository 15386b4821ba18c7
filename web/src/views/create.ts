// What the form for a new machine asks the API for, and how the command line says it. Pure.

import type { Schemas } from "../api/client";
import { parseBytes, shell } from "../parts/format";

export interface Form {
  name: string;
  image: string;
  diskSize: string;
  cpus: string;
  memory: string;
  network: string;
  /** Empty for the node's own disks; null while nobody has chosen (see `placed`). */
  volume: string | null;
  firmware: Schemas["Firmware"];
  tags: string;
  user: string;
  sshKeys: string;
  hostname: string;
  /** Raw user-data, instead of the three above. */
  userData: string;
  start: boolean;
}

export const EMPTY: Form = {
  name: "",
  image: "",
  diskSize: "",
  cpus: "1",
  memory: "1G",
  network: "nat",
  volume: null,
  firmware: "bios",
  tags: "",
  user: "",
  sshKeys: "",
  hostname: "",
  userData: "",
  start: true,
};

/**
 * The form with its place. Whoever chooses none gets a volume where there is one that works: a machine on
 * its node's own disks is down with its node, which is no choice to make for anybody.
 */
export function placed(form: Form, volumes: Pick<Schemas["VolumeView"], "name" | "problem">[]): Form {
  if (form.volume !== null) return form;
  return { ...form, volume: volumes.find((volume) => !volume.problem)?.name ?? "" };
}

export type Wrong = Partial<Record<keyof Form, string>>;

/** What can be seen to be wrong here; the API looks again. */
export function wrong(form: Form): Wrong {
  const found: Wrong = {};
  if (!/^[A-Za-z0-9]([A-Za-z0-9._-]{0,62})$/.test(form.name)) {
    found.name = "Letters, digits, '-', '_' and '.', at most 63, a letter or digit first";
  }
  if (!/^[1-9]\d{0,2}$/.test(form.cpus)) found.cpus = "A whole number from 1 on";
  if (parseBytes(form.memory) === null) found.memory = "A size such as 512M or 2G";
  if (form.diskSize !== "" && parseBytes(form.diskSize) === null) {
    found.diskSize = "A size such as 20G, or nothing for the image's own";
  }
  if (form.image === "" && form.diskSize === "") {
    found.diskSize = "A blank disk needs a size, such as 20G";
  }
  const keys = lines(form.sshKeys);
  if (keys.some((key) => !/^(ssh-|ecdsa-|sk-)\S+ \S+/.test(key))) {
    found.sshKeys = "Public keys, one on each line, such as ssh-ed25519 AAAA… you@host";
  }
  if (form.userData !== "" && (form.user !== "" || form.hostname !== "" || keys.length > 0)) {
    found.userData = "It stands instead of user, keys and host name: leave those empty, or this";
  }
  return found;
}

/** What its guest is told at its first boot; nothing if nothing was said. */
function firstBoot(form: Form): Schemas["CloudInit"] | undefined {
  const ssh_keys = lines(form.sshKeys);
  if (form.userData !== "") return { user_data: form.userData };
  if (form.user === "" && form.hostname === "" && ssh_keys.length === 0) return undefined;
  return {
    ...(form.user === "" ? {} : { user: form.user }),
    ...(form.hostname === "" ? {} : { hostname: form.hostname }),
    ssh_keys,
  };
}

export function body(form: Form): Schemas["VmCreateBody"] {
  const size = form.diskSize === "" ? {} : { size: parseBytes(form.diskSize) };
  const image = form.image === "" ? {} : { image: form.image };
  const cloud_init = firstBoot(form);
  return {
    name: form.name,
    cpus: Number(form.cpus),
    memory: parseBytes(form.memory),
    disks: [{ ...image, ...size }],
    nics: form.network === "" ? [] : [{ network: form.network }],
    ...(form.firmware === "uefi" ? { firmware: form.firmware } : {}),
    ...(words(form.tags).length > 0 ? { tags: words(form.tags) } : {}),
    ...(form.volume ? { volume: form.volume } : {}),
    ...(cloud_init ? { cloud_init } : {}),
  };
}

/** The command line that does the same. */
export function command(form: Form): string {
  const parts = ["muster vm create", shell(form.name || "NAME")];
  if (form.image !== "") parts.push(`--image ${shell(form.image)}`);
  if (form.diskSize !== "") {
    parts.push(form.image === "" ? `--disk ${form.diskSize}` : `--disk-size ${form.diskSize}`);
  }
  parts.push(`--cpus ${form.cpus}`, `--memory ${form.memory.replaceAll(" ", "")}`);
  parts.push(form.network === "" ? "--no-network" : `--network ${shell(form.network)}`);
  if (form.firmware === "uefi") parts.push("--uefi");
  if (form.volume) parts.push(`--volume ${shell(form.volume)}`);
  parts.push(...words(form.tags).map((tag) => `--tag ${shell(tag)}`));
  if (form.user !== "") parts.push(`--user ${shell(form.user)}`);
  parts.push(...lines(form.sshKeys).map((key) => `--ssh-key ${shell(key)}`));
  if (form.hostname !== "") parts.push(`--hostname ${shell(form.hostname)}`);
  if (form.userData !== "") parts.push("--user-data FILE");
  if (form.start) parts.push("--start");
  return parts.join(" ");
}

function words(text: string): string[] {
  return text.split(/[\s,]+/).filter(Boolean);
}

function lines(text: string): string[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
}
