import { describe, expect, it } from "vitest";
import { grown, heightOf, inWords, type Metrics, pathOf, CHARTS, timeOf, told, valuesOf } from "./chart";

const metrics = (from: number, mean: (number | null)[], figure: "cpu_percent" | "memory" = "cpu_percent"): Metrics => ({
  from,
  resolution_s: 1,
  points: mean.length,
  series: [{ figure, mean, peak: mean }],
});

describe("a chart", () => {
  it("is as high as a round number above all values", () => {
    expect(heightOf([[3, null, 42]], "percent")).toBe(50);
    expect(heightOf([[100]], "percent")).toBe(100);
    expect(heightOf([[101]], "percent")).toBe(200);
    expect(heightOf([[null]], "percent")).toBe(100);
    expect(heightOf([[1_000_000]], "rate")).toBe(2 ** 20);
    expect(heightOf([[]], "bytes")).toBe(1);
  });

  it("has no line where nothing was measured, and a dot for a point alone", () => {
    expect(pathOf([0, 50, 100], 100, 200, 100)).toBe("M0.0 100.0L100.0 50.0L200.0 0.0");
    expect(pathOf([0, null, 100], 100, 200, 100)).toBe("M0.0 100.0h0M200.0 0.0h0");
    expect(pathOf([null, null], 100, 200, 100)).toBe("");
    expect(pathOf([200], 100, 200, 100)).toBe("M0.0 0.0h0");
  });

  it("tells values in their units, and what it shows in a sentence", () => {
    expect(told(1_536, "rate")).toBe("1.5 KiB/s");
    expect(told(12.345, "percent")).toMatch(/^12[.,]3 %$/);
    expect(told(null, "bytes")).toBe("nothing measured");
    const [cpu] = CHARTS;
    if (!cpu) throw new Error("there are five");
    expect(inWords(cpu, metrics(0, [10, null, 30, 20]))).toMatch(/^Processors: used 20 %, at most 30 %, since /);
    expect(inWords(cpu, metrics(0, [1], "memory"))).toContain("nothing measured");
  });
});

describe("an answer that grows", () => {
  it("takes what came since, and lets go of what is too old", () => {
    const old = metrics(10_000, [1, 2, 3]);
    const after = grown(old, metrics(12_000, [30, 4, 5]), 4);
    expect(after).toMatchObject({ from: 10_000, points: 5 });
    expect(valuesOf(after, "cpu_percent")).toEqual([1, 2, 30, 4, 5]);
    const more = grown(after, metrics(15_000, [6, 7]), 4);
    expect(more).toMatchObject({ from: 12_000, points: 5 });
    expect(valuesOf(more, "cpu_percent")).toEqual([30, 4, 5, 6, 7]);
    expect(timeOf(more, 4)).toBe(16_000);
  });

  it("stays of one length for a day of seconds", () => {
    let shown = metrics(0, [0]);
    for (let second = 1; second < 2_000; second++) {
      shown = grown(shown, metrics((second - 1) * 1_000, [second - 1, second]), 600);
    }
    expect(shown.points).toBe(601);
    expect(valuesOf(shown, "cpu_percent").at(-1)).toBe(1_999);
    expect(shown.from).toBe((2_000 - 601) * 1_000);
  });

  it("has gaps where a figure was not measured, and begins anew where it does not fit on", () => {
    const both = grown(metrics(0, [1, 2]), metrics(2_000, [7, 8], "memory"), 600);
    expect(valuesOf(both, "cpu_percent")).toEqual([1, 2, null, null]);
    expect(valuesOf(both, "memory")).toEqual([null, null, 7, 8]);
    const fresh = metrics(99_000, [1]);
    expect(grown(metrics(0, [1]), fresh, 600)).toBe(fresh);
    expect(grown(metrics(0, [1]), { ...fresh, resolution_s: 10 }, 600).resolution_s).toBe(10);
  });
});
