// Emptying a node for maintenance, and taking it back: first where its machines would go.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { keys } from "../api/queries";
import { mayDo, shell } from "../parts/format";
import { Button, Dialog, Same, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";

type Mode = Schemas["NodeMode"];

export function NodeModes({ node }: { node: Schemas["NodeView"] }) {
  const client = useQueryClient();
  const role = useRole();
  const [draining, setDraining] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const why = mayDo(role, "administrator") ? undefined : "This needs the role administrator.";

  const set = async (mode: Mode) => {
    setBusy(true);
    setError(null);
    try {
      const params = { path: { node: node.id } };
      await value(api.POST("/v1/nodes/{node}/mode", { params, body: { mode } }));
      setDraining(false);
      await client.invalidateQueries({ queryKey: keys.nodes });
    } catch (error) {
      setError(error);
    }
    setBusy(false);
  };

  return (
    <div className="actions" role="group" aria-label={`What to do with ${node.name}`}>
      {(node.mode ?? "active") === "active" ? (
        <Button why={why} onPress={() => setDraining(true)}>
          Empty it …
        </Button>
      ) : (
        <Button
          why={why}
          isDisabled={busy}
          onPress={() => void set("active")}
        >
          Let it take machines again
        </Button>
      )}
      {error !== null && !draining && <Trouble error={error} />}
      {draining && (
        <Dialog title={`Empty ${node.name}`} onClose={() => setDraining(false)}>
          <Plan node={node.id} />
          {error !== null && <Trouble error={error} />}
          <Same
            command={`muster node drain ${shell(node.name)}`}
            call={`POST /v1/nodes/${node.id}/mode\n{"mode":"drain"}`}
          />
          <div className="dialog-buttons">
            <Button onPress={() => setDraining(false)}>Leave it</Button>
            <Button kind="main" isDisabled={busy} onPress={() => void set("drain")}>
              Empty it
            </Button>
          </div>
        </Dialog>
      )}
    </div>
  );
}

function Plan({ node }: { node: string }) {
  const asked = useQuery({
    queryKey: ["plan", node],
    queryFn: () =>
      // For a drain, where nothing else is said.
      value(api.GET("/v1/nodes/{node}/plan", { params: { path: { node } } })),
    staleTime: 0,
  });
  if (asked.error) return <Trouble error={asked.error} />;
  if (!asked.data) return <Waiting what="the plan" />;
  const { steps, unplaced, local } = asked.data;
  return (
    <>
      <p>
        {steps.length === 0
          ? "No machine would move."
          : "Running machines migrate while they run, in this order:"}
      </p>
      <ul className="plain-list names">
        {steps.map((step) => (
          <li key={step.id}>
            <strong>{step.vm}</strong> to {step.to}
          </li>
        ))}
      </ul>
      {unplaced.length > 0 && (
        <p className="problem">
          No other node can take: {unplaced.map((one) => `${one.vm} (${one.why})`).join(", ")}
        </p>
      )}
      {local.length > 0 && (
        <p className="problem">On its own disks, these stay: {local.join(", ")}</p>
      )}
    </>
  );
}
