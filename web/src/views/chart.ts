// What a chart shows: lines out of figures, how high it is, and the answers that come second by second.

import type { Schemas } from "../api/client";
import { bytes, when } from "../parts/format";

export type Metrics = Schemas["MetricsView"];
export type Figure = Schemas["Figure"];

/** Points of an answer that is kept and grown, so that a page can stay open for days. */
const POINTS_MAX = 1_500;

/** One line of a chart. */
export interface Line {
  figure: Figure;
  name: string;
}

/** One chart: figures of one unit. */
export interface ChartOf {
  title: string;
  unit: "percent" | "bytes" | "rate";
  lines: Line[];
}

export const CHARTS: ChartOf[] = [
  { title: "Processors", unit: "percent", lines: [{ figure: "cpu_percent", name: "used" }] },
  {
    title: "Memory",
    unit: "bytes",
    lines: [
      { figure: "memory", name: "taken" },
      { figure: "memory_demand", name: "needed" },
    ],
  },
  {
    title: "Disks",
    unit: "rate",
    lines: [
      { figure: "disk_read", name: "read" },
      { figure: "disk_written", name: "written" },
    ],
  },
  {
    title: "Network",
    unit: "rate",
    lines: [
      { figure: "net_received", name: "received" },
      { figure: "net_sent", name: "sent" },
    ],
  },
  {
    title: "Pressure",
    unit: "percent",
    lines: [
      { figure: "cpu_pressure", name: "waits for processors" },
      { figure: "memory_pressure", name: "waits for memory" },
      { figure: "io_pressure", name: "waits for disks" },
    ],
  },
];

/** Times that can be looked at. */
export const SPANS = [
  { key: "live", label: "10 minutes, live", seconds: 600, again: 1_000 },
  { key: "hours", label: "2 hours", seconds: 7_200, again: 10_000 },
  { key: "day", label: "1 day", seconds: 86_400, again: 60_000 },
  { key: "month", label: "30 days", seconds: 30 * 86_400, again: 600_000 },
  { key: "year", label: "1 year", seconds: 365 * 86_400, again: 600_000 },
] as const;

export type Span = (typeof SPANS)[number];

/** A value as people read it. */
export function told(value: number | null | undefined, unit: ChartOf["unit"]): string {
  if (value === null || value === undefined) return "nothing measured";
  if (unit === "percent") return `${value.toLocaleString(undefined, { maximumFractionDigits: 1 })} %`;
  const size = bytes(Math.round(value));
  return unit === "rate" ? `${size}/s` : size;
}

/** The values of a line: of short points the mean, which is the value itself. */
export function valuesOf(metrics: Metrics, figure: Figure, peaks = false): (number | null)[] {
  const series = metrics.series.find((it) => it.figure === figure);
  const values = (peaks ? series?.peak : series?.mean) as (number | null)[] | undefined;
  return values ?? [];
}

/** How high a chart is: a round number at or above the highest value. */
export function heightOf(values: (number | null)[][], unit: ChartOf["unit"]): number {
  const highest = Math.max(0, ...values.flat().map((value) => value ?? 0));
  if (highest === 0) return unit === "percent" ? 100 : 1;
  const base = unit === "percent" ? 10 : 2;
  let step = 1;
  while (step * base <= highest) step *= base;
  const rounds = base === 2 ? [1, 2] : [1, 2, 5, 10];
  return step * (rounds.find((times) => step * times >= highest) ?? base);
}

/** A line as an SVG path in a field of that size; where nothing was measured there is none. */
export function pathOf(values: (number | null)[], height: number, width: number, tall: number): string {
  const step = values.length > 1 ? width / (values.length - 1) : 0;
  let pen = "M";
  let path = "";
  values.forEach((value, at) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const y = tall - (Math.min(value, height) / height) * tall;
    path += `${pen}${(at * step).toFixed(1)} ${y.toFixed(1)}`;
    // A point alone is a dot: a line of no length with round ends.
    if (pen === "M" && (values[at + 1] ?? null) === null) path += "h0";
    pen = "L";
  });
  return path;
}

/** When a point begins, in Unix milliseconds. */
export function timeOf(metrics: Metrics, point: number): number {
  return metrics.from + point * metrics.resolution_s * 1_000;
}

/**
 * An answer with what came after it, no longer than before. The last points of the old one are replaced:
 * they may not have been over. An answer that does not fit on is taken as it is.
 */
export function grown(old: Metrics, fresh: Metrics, seconds: number): Metrics {
  const step = old.resolution_s * 1_000;
  const shift = (fresh.from - old.from) / step;
  const fits = fresh.resolution_s === old.resolution_s && Number.isInteger(shift) && shift >= 0 && shift <= old.points;
  if (!fits) return fresh;
  const points = shift + fresh.points;
  const most = Math.min(POINTS_MAX, Math.ceil(seconds / old.resolution_s) + 1);
  const drop = Math.max(0, points - most);
  const figures = new Set([...old.series, ...fresh.series].map((series) => series.figure));
  const filled = (values: (number | null)[], count: number) =>
    values.length === 0 ? Array.from({ length: count }, () => null) : values;
  const line = (figure: Figure, peaks: boolean) =>
    [
      ...filled(valuesOf(old, figure, peaks), old.points).slice(0, shift),
      ...filled(valuesOf(fresh, figure, peaks), fresh.points),
    ].slice(drop);
  const series = [...figures].map((figure) => ({ figure, mean: line(figure, false), peak: line(figure, true) }));
  return {
    ...fresh,
    from: old.from + drop * step,
    points: points - drop,
    series: series.filter(({ mean }) => mean.some((value) => value !== null)),
  };
}

/** What a chart shows, in a sentence: for whoever does not see it. */
export function inWords(chart: ChartOf, metrics: Metrics): string {
  const lines = chart.lines.flatMap(({ figure, name }) => {
    const means = valuesOf(metrics, figure).filter((value) => value !== null);
    if (means.length === 0) return [];
    const peaks = valuesOf(metrics, figure, true).filter((value) => value !== null);
    const last = means.at(-1);
    return [`${name} ${told(last, chart.unit)}, at most ${told(Math.max(...peaks), chart.unit)}`];
  });
  const since = `since ${when(metrics.from)}`;
  return lines.length === 0 ? `${chart.title}: nothing measured ${since}` : `${chart.title}: ${lines.join("; ")}, ${since}`;
}
