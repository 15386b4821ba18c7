// The screen of a machine, with a protocol that only pretends.

import { act, fireEvent, screen } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { beforeEach, describe, expect, it, vi } from "vitest";
import { page } from "../page";
import Screen from "./Screen";

const made: Pretended[] = [];

class Pretended extends EventTarget {
  address: string;
  calls: string[] = [];
  scaleViewport = false;
  background = "";
  constructor(place: HTMLElement, address: string, options: { wsProtocols?: string[] }) {
    super();
    this.address = `${address} ${options.wsProtocols?.join()}`;
    place.append(document.createElement("canvas"));
    made.push(this);
  }
  focus() {
    this.calls.push("focus");
  }
  blur() {
    this.calls.push("blur");
  }
  disconnect() {
    this.calls.push("disconnect");
  }
  sendCtrlAltDel() {
    this.calls.push("ctrl-alt-del");
  }
  clipboardPasteFrom(text: string) {
    this.calls.push(`paste ${text}`);
  }
}

vi.mock("@novnc/novnc", () => ({
  default: class {
    constructor(place: HTMLElement, address: string, options: object) {
      return new Pretended(place, address, options);
    }
  },
}));

const tell = (name: string) => act(() => void made.at(-1)?.dispatchEvent(new Event(name)));

describe("the screen", () => {
  beforeEach(() => void made.splice(0));

  it("connects by a secure way, sends what the buttons say, and can be left by keys", async () => {
    const shown = page(<Screen vm="v1" name="web-1" />);
    expect(made[0]?.address).toMatch(/^wss:.*\/v1\/vms\/v1\/vnc binary$/);
    const keys = screen.getByRole("button", { name: "Ctrl+Alt+Del" });
    expect(keys).toHaveProperty("disabled", true);
    tell("connect");
    expect(screen.getByText("connected")).toBeDefined();
    await userEvent.click(keys);
    await userEvent.click(screen.getByRole("button", { name: "Clipboard …" }));
    await userEvent.type(await screen.findByLabelText("Text"), "hello");
    await userEvent.click(screen.getByRole("button", { name: "Give it to the machine" }));

    const canvas = shown.container.querySelector("canvas");
    const reached = vi.fn();
    canvas?.addEventListener("keydown", reached);
    fireEvent.keyDown(canvas as Element, { key: "a" });
    expect(reached).toHaveBeenCalledTimes(1);
    fireEvent.keyDown(canvas as Element, { key: "Escape", ctrlKey: true, altKey: true });
    expect(reached).toHaveBeenCalledTimes(1);
    expect(made[0]?.calls).toEqual(["focus", "ctrl-alt-del", "paste hello", "blur"]);
    expect(document.activeElement?.textContent).toBe("Ctrl+Alt+Del");
  });

  it("says that it is closed, and connects again", async () => {
    page(<Screen vm="v1" name="web-1" />);
    tell("connect");
    tell("disconnect");
    expect(screen.getByRole("status", { name: "" }).textContent).toContain("closed");
    await userEvent.click(screen.getByRole("button", { name: "Connect again" }));
    expect(made).toHaveLength(2);
  });
});
