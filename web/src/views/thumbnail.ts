// Small pictures of screens: taken seldom, a few at a time, and kept small.
//
// The API gives a picture as large as the screen. A page keeps only what it shows of it, some kilobytes,
// and asks again only while it is shown: what is out of sight asks for nothing.

import { queryOptions } from "@tanstack/react-query";
import { Failure } from "../api/client";

/** Largest size of a small picture, in pixels. */
const WIDTH = 192;
const HEIGHT = 120;

/** Pictures that are asked for at once: each is work for a machine's own process. */
const AT_ONCE_MAX = 3;

/** Small pictures are kept for so long after they were shown, in milliseconds. */
const KEPT_MS = 120_000;

/** Lets a few go at a time; the others wait in the order in which they came. */
export class Turns {
  private free: number;
  private readonly waiting: (() => void)[] = [];

  constructor(atOnce: number) {
    this.free = atOnce;
  }

  async take<T>(what: () => Promise<T>, stop?: AbortSignal): Promise<T> {
    if (this.free > 0) this.free -= 1;
    else await new Promise<void>((go) => this.waiting.push(go));
    try {
      // Whoever scrolled on meanwhile wants it no more.
      stop?.throwIfAborted();
      return await what();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free += 1;
    }
  }
}

const turns = new Turns(AT_ONCE_MAX);

/** How large a picture of a screen is shown, in its own shape. */
export function sizeOf(width: number, height: number): { width: number; height: number } {
  const scale = Math.min(1, WIDTH / Math.max(1, width), HEIGHT / Math.max(1, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/** A small picture of a large one, as an address that stands for itself. */
async function shrunk(picture: Blob): Promise<string> {
  const whole = await createImageBitmap(picture);
  const size = sizeOf(whole.width, whole.height);
  const small = document.createElement("canvas");
  small.width = size.width;
  small.height = size.height;
  const pen = small.getContext("2d");
  if (pen) pen.imageSmoothingQuality = "high";
  pen?.drawImage(whole, 0, 0, size.width, size.height);
  whole.close();
  return small.toDataURL("image/webp", 0.7);
}

async function taken(vm: string, stop: AbortSignal): Promise<string> {
  const answer = await fetch(`/v1/vms/${encodeURIComponent(vm)}/screenshot`, {
    credentials: "same-origin",
    signal: stop,
  });
  if (!answer.ok) throw new Failure(answer.status, "no_picture", "there is no picture", "");
  return shrunk(await answer.blob());
}

/** A machine's screen, taken again every so many milliseconds while it is shown. */
export const thumbnail = (vm: string, again: number) =>
  queryOptions({
    queryKey: ["thumbnail", vm],
    queryFn: ({ signal }) => turns.take(() => taken(vm, signal), signal),
    refetchInterval: again,
    staleTime: again,
    gcTime: KEPT_MS,
    // A machine that gives none now gives none a moment later.
    retry: false,
  });
