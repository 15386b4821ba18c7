// Operations: what is being done, how far it is, and how the last ones ended.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { keys } from "../api/queries";
import { length, mayDo, whenShort } from "../parts/format";
import { progress } from "../parts/notices";
import { Badge, Button, Meter, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";

type OpView = Schemas["OpView"];

/** With those that have ended. */
const everything = queryOptions({
  queryKey: [...keys.ops, "all"],
  queryFn: () => value(api.GET("/v1/ops", { params: { query: { all: true } } })),
  refetchInterval: (query) =>
    query.state.data?.some((op) => op.state === "running") ? 2_000 : false,
});

/** Ended operations that are shown. */
const SHOWN_MAX = 100;

export function Operations() {
  const asked = useQuery(everything);
  const all = [...(asked.data ?? [])].sort((a, b) => b.begun - a.begun).slice(0, SHOWN_MAX);
  return (
    <>
      <div className="page-head">
        <h1>Operations</h1>
      </div>
      {asked.error && <Trouble error={asked.error} />}
      {asked.isPending && !asked.error && <Waiting what="operations" />}
      {asked.data && <OpLines ops={all} none="Nothing has been done yet." />}
    </>
  );
}

export function OpLines({ ops, none }: { ops: OpView[]; none: string }) {
  if (ops.length === 0) return <p>{none}</p>;
  return (
    <ul className="ops">
      {ops.map((op) => (
        <Op key={op.id} op={op} />
      ))}
    </ul>
  );
}

function Op({ op }: { op: OpView }) {
  const role = useRole();
  const client = useQueryClient();
  const [error, setError] = useState<unknown>(null);
  const stop = async () => {
    try {
      await value(api.POST("/v1/ops/{op}/cancel", { params: { path: { op: op.id } } }));
      await client.invalidateQueries({ queryKey: keys.ops });
    } catch (error) {
      setError(error);
    }
  };
  const { predicted, measured } = op.migration ?? {};
  return (
    <li className="op">
      <div className="op-head">
        <strong>{op.title}</strong>
        <State op={op} />
        <span className="quiet-text">
          {whenShort(op.begun)} · {op.actor}
        </span>
        {op.state === "running" && (
          <Button
            kind="quiet"
            aria-label={`Stop: ${op.title}`}
            why={
              op.cancel_requested
                ? "Somebody has asked already."
                : mayDo(role, "operator")
                  ? undefined
                  : "This needs the role operator."
            }
            onPress={() => void stop()}
          >
            Stop
          </Button>
        )}
      </div>
      {op.state === "running" && op.progress && op.progress.total > 0 && (
        <Meter
          label={`Progress of ${op.title}`}
          part={op.progress.done}
          whole={op.progress.total}
          text={progress(op)}
        />
      )}
      {predicted && (
        <p className="quiet-text">
          expected: {length(predicted.total_ms)}, pause {predicted.pause_ms} ms
          {predicted.converges ? "" : "; the guest changes more than the way carries"}
        </p>
      )}
      {measured && (
        <p className="quiet-text">
          came true: {length(measured.total_ms)}, pause {measured.pause_ms} ms
        </p>
      )}
      {op.state === "failed" && (
        <p className="problem">
          {op.failure.message}
          {op.failure.hint && <span className="hint"> Next: {op.failure.hint}</span>}
        </p>
      )}
      {error !== null && <Trouble error={error} what="Not stopped" />}
    </li>
  );
}

function State({ op }: { op: OpView }) {
  switch (op.state) {
    case "done":
      return <Badge tone="good">done in {length(op.at - op.begun)}</Badge>;
    case "failed":
      return <Badge tone="bad">failed</Badge>;
    case "cancelled":
      return <Badge tone="plain">stopped</Badge>;
    default:
      return <Badge tone="busy">{op.cancel_requested ? "being stopped" : progress(op)}</Badge>;
  }
}
