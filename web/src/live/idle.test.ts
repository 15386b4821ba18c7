// Whether anybody is at a page.

import { describe, expect, it } from "vitest";
import { follow, Presence, presence } from "./idle";

const MINUTE = 60_000;

describe("a page that is looked at", () => {
  it("is warned before its session ends, and not once somebody is there again", () => {
    const page = new Presence(0);
    expect(page.state(29 * MINUTE - 1, 1800)).toBe("used");
    expect(page.state(29 * MINUTE, 1800)).toBe("warned");
    expect(page.state(30 * MINUTE, 1800)).toBe("over");
    page.touched(30 * MINUTE);
    expect(page.state(31 * MINUTE, 1800)).toBe("used");
    expect(page.state(1e9 * MINUTE, 0), "without a limit").toBe("used");
  });

  it("tells for how long nobody touched it, whatever it asks for by itself", () => {
    const page = new Presence(0);
    expect(page.idleS(90_500)).toBe(90);
    expect(page.mustTell(10 * MINUTE), "nobody was there, so there is nothing to tell").toBe(false);
    page.touched(10 * MINUTE);
    expect(page.mustTell(10 * MINUTE)).toBe(true);
    expect(page.idleS(10 * MINUTE + 3_000)).toBe(3);
    page.touched(10 * MINUTE + 5_000);
    expect(page.mustTell(10 * MINUTE + 6_000), "it was told some seconds ago").toBe(false);
    expect(page.mustTell(12 * MINUTE)).toBe(true);
  });

  it("counts keys that go to a console, too", () => {
    const stop = follow();
    presence.touched(0);
    expect(presence.idleS(Date.now())).toBeGreaterThan(1_000);
    const console = document.createElement("div");
    document.body.append(console);
    console.addEventListener("keydown", (event) => event.stopPropagation());
    console.dispatchEvent(new KeyboardEvent("keydown", { key: "a", bubbles: true }));
    expect(presence.idleS(Date.now())).toBeLessThan(10);
    stop();
    console.remove();
  });
});
