// What a machine or a node uses: charts of the last ten minutes second by second, and of the last year.
//
// Drawn by hand: five lines of SVG need no library. Each chart is a slider, too: arrows go from point to
// point and say what was; and all of it stands in a table for whoever wants numbers.

import { type QueryClient, useQuery, useQueryClient } from "@tanstack/react-query";
import { type KeyboardEvent, type PointerEvent, useState } from "react";
import { api, value } from "../api/client";
import { when } from "../parts/format";
import { Button, Section, Table, Trouble, Waiting } from "../parts/parts";
import { CHARTS, type ChartOf, grown, heightOf, inWords, type Metrics, pathOf, SPANS, type Span, timeOf, told, valuesOf } from "./chart";

const WIDTH = 600;

/** How many points the newest one that is measured may lie behind the end of the chart. */
const LATE_POINTS_MAX = 10;
const TALL = 120;

/** Points that a table shows: more would be a wall of numbers. */
const ROWS_MAX = 30;

/** Of what charts are shown. */
export interface Of {
  what: "vm" | "node";
  /** Id of the machine, or name of the node. */
  id: string;
  name: string;
  /** Whether there is anything to measure now. */
  runs: boolean;
}

async function ask(of: Of, query: { from?: number; resolution_s?: number }): Promise<Metrics> {
  return of.what === "vm"
    ? value(api.GET("/v1/vms/{vm}/metrics", { params: { path: { vm: of.id }, query } }))
    : value(api.GET("/v1/nodes/{node}/metrics", { params: { path: { node: of.id }, query } }));
}

/** All of a time at first; then only what came since. */
async function metricsOf(client: QueryClient, key: readonly unknown[], of: Of, span: Span): Promise<Metrics> {
  const old = client.getQueryData<Metrics>(key);
  if (!old || old.points === 0) {
    // The node's own clock says what the last ten minutes are.
    return ask(of, span.key === "live" ? {} : { from: Date.now() - span.seconds * 1_000 });
  }
  const from = timeOf(old, Math.max(0, old.points - 2));
  return grown(old, await ask(of, { from, resolution_s: old.resolution_s }), span.seconds);
}

export function Charts({ of }: { of: Of }) {
  const [key, setKey] = useState<Span["key"]>("live");
  const [table, setTable] = useState(false);
  const span = SPANS.find((span) => span.key === key) ?? SPANS[0];
  const client = useQueryClient();
  const queryKey = ["metrics", of.what, of.id, key] as const;
  const asked = useQuery({
    queryKey,
    queryFn: () => metricsOf(client, queryKey, of, span),
    // What does not run changes nothing. A page that is hidden asks for nothing.
    refetchInterval: of.runs ? span.again : false,
    staleTime: 0,
    structuralSharing: false,
  });
  const shown = asked.data;
  return (
    <Section
      title="Use"
      beside={
        <span className="actions">
          <label>
            Time{" "}
            <select value={key} onChange={(event) => setKey(event.target.value as Span["key"])}>
              {SPANS.map(({ key, label }) => (
                <option key={key} value={key}>
                  {label}
                </option>
              ))}
            </select>
          </label>
          <Button kind="quiet" aria-pressed={table} onPress={() => setTable(!table)}>
            {table ? "As charts" : "As a table"}
          </Button>
        </span>
      }
    >
      {asked.error && <Trouble error={asked.error} what="Figures" />}
      {!shown && !asked.error && <Waiting what="the figures" />}
      {shown && shown.series.length === 0 && <p>Nothing was measured in that time: {of.name} did not run.</p>}
      {shown && shown.silent && shown.silent.length > 0 && (
        <p className="problem">A part may be missing: no answer from {shown.silent.join(", ")}.</p>
      )}
      {shown && shown.series.length > 0 && (table ? <Numbers metrics={shown} /> : <Pictures metrics={shown} />)}
    </Section>
  );
}

function Pictures({ metrics }: { metrics: Metrics }) {
  // One place in time for all charts: what happened at the same moment stands at the same place.
  const [at, setAt] = useState<number | null>(null);
  const charts = CHARTS.filter((chart) => chart.lines.some(({ figure }) => valuesOf(metrics, figure).length > 0));
  return (
    <div className="charts">
      {charts.map((chart) => (
        <Picture key={chart.title} chart={chart} metrics={metrics} at={at} onAt={setAt} />
      ))}
    </div>
  );
}

function Picture({ chart, metrics, at, onAt }: {
  chart: ChartOf;
  metrics: Metrics;
  /** The time that is pointed at, in Unix milliseconds. */
  at: number | null;
  onAt: (at: number | null) => void;
}) {
  const lines = chart.lines
    .map((line) => ({ ...line, values: valuesOf(metrics, line.figure) }))
    .filter(({ values }) => values.length > 0);
  const height = heightOf(lines.map(({ values }) => values), chart.unit);
  const last = metrics.points - 1;
  const step = metrics.resolution_s * 1_000;
  // A second is known when it has been measured, on a busy node some seconds later.
  const newest = Array.from({ length: LATE_POINTS_MAX }, (_, late) => last - late)
    .find((point) => lines.some(({ values }) => typeof values[point] === "number")) ?? last;
  const point = at === null ? newest : Math.min(last, Math.max(0, Math.round((at - metrics.from) / step)));
  const words = (point: number) => lines.map(({ name, values }) => `${name} ${told(values[point], chart.unit)}`).join(", ");
  const keys = (event: KeyboardEvent) => {
    const to = { ArrowLeft: point - 1, ArrowRight: point + 1, PageUp: point + 60, PageDown: point - 60, Home: 0, End: last }[event.key];
    if (event.key === "Escape") onAt(null);
    if (to === undefined) return;
    event.preventDefault();
    onAt(to >= last ? null : timeOf(metrics, Math.max(0, to)));
  };
  const pointed = (event: PointerEvent) => {
    const box = event.currentTarget.getBoundingClientRect();
    onAt(timeOf(metrics, Math.round(((event.clientX - box.left) / Math.max(1, box.width)) * last)));
  };
  const x = last > 0 ? (point / last) * WIDTH : 0;
  return (
    <figure className="chart">
      <figcaption>
        <strong>{chart.title}</strong>
        <span className="unseen">{inWords(chart, metrics)}</span>
        {lines.map(({ figure, name, values }, n) => (
          <span key={figure} className={`chart-key line-${n}`}>
            {name} {told(values[point], chart.unit)}
          </span>
        ))}
      </figcaption>
      <div
        role="slider"
        tabIndex={0}
        aria-label={`${chart.title}, from moment to moment`}
        aria-valuemin={0}
        aria-valuemax={Math.max(0, last)}
        aria-valuenow={point}
        aria-valuetext={`${when(timeOf(metrics, point))}: ${words(point)}`}
        onKeyDown={keys}
        onPointerMove={pointed}
        onPointerLeave={() => onAt(null)}
      >
        <svg viewBox={`0 0 ${WIDTH} ${TALL}`} preserveAspectRatio="none" aria-hidden="true">
          <path className="grid" d={`M0 ${TALL / 2}H${WIDTH}M0 0H${WIDTH}M0 ${TALL}H${WIDTH}`} />
          {lines.map(({ figure, values }, n) => (
            <path key={figure} className={`line line-${n}`} d={pathOf(values, height, WIDTH, TALL)} />
          ))}
          {at !== null && <path className="cursor" d={`M${x.toFixed(1)} 0V${TALL}`} />}
        </svg>
      </div>
      <p className="axis quiet-text">
        <span>{when(at === null ? metrics.from : timeOf(metrics, point))}</span>
        <span>up to {told(height, chart.unit)}</span>
      </p>
    </figure>
  );
}

/** The same as numbers: so many stretches of the time, each with its mean and its peak. */
function Numbers({ metrics }: { metrics: Metrics }) {
  const size = Math.max(1, Math.ceil(metrics.points / ROWS_MAX));
  const rows = Array.from({ length: Math.ceil(metrics.points / size) }, (_, row) => row * size).reverse();
  const lines = CHARTS.flatMap(({ title, unit, lines }) => lines.map((line) => ({ ...line, title, unit }))).filter(
    ({ figure }) => valuesOf(metrics, figure).length > 0,
  );
  const cell = (line: (typeof lines)[number], row: number) => {
    const part = (peaks: boolean) => valuesOf(metrics, line.figure, peaks).slice(row, row + size).filter((it) => it !== null);
    const means = part(false);
    if (means.length === 0) return "–";
    const mean = means.reduce((sum, it) => sum + it, 0) / means.length;
    return `${told(mean, line.unit)}, at most ${told(Math.max(...part(true)), line.unit)}`;
  };
  return (
    <Table label="Use over time" head={["From", ...lines.map(({ title, name }) => `${title}: ${name}`)]}>
      {rows.map((row) => (
        <tr key={row}>
          <th scope="row">{when(timeOf(metrics, row))}</th>
          {lines.map((line) => (
            <td key={line.figure}>{cell(line, row)}</td>
          ))}
        </tr>
      ))}
    </Table>
  );
}
