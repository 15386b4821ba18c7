// Making a cluster of a single host, and letting other hosts join it.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../../api/client";
import { cluster, keys } from "../../api/queries";
import { shell, when } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Button, Dialog, Field, Section, Trouble } from "../../parts/parts";

/** How long a token is valid, as the command line says it, in seconds. */
const VALID = { "15m": 900, "1h": 3_600, "12h": 43_200, "7d": 604_800 };

export function Join({ why }: { why: string | undefined }) {
  const asked = useQuery(cluster);
  const [dialog, setDialog] = useState<"make" | "token" | "join" | null>(null);
  const [token, setToken] = useState<Schemas["JoinTokenSecretView"] | null>(null);
  const view = asked.data;
  return (
    <Section title="Nodes">
      {asked.error && <Trouble error={asked.error} />}
      {view && !view.id && (
        <>
          <p>
            This host stands alone. As a cluster it can take other hosts in, and machines of a host that is
            lost are started on the others.
          </p>
          <Button why={why} onPress={() => setDialog("make")}>
            Make it a cluster …
          </Button>{" "}
          <Button why={why} onPress={() => setDialog("join")}>
            Join another cluster …
          </Button>
        </>
      )}
      {view?.id && (
        <>
          <p>
            {view.nodes.length === 1 ? "One node" : `${view.nodes.length} nodes`}:{" "}
            {view.nodes.map((node) => node.name).join(", ")}.
          </p>
          <Button why={why} onPress={() => setDialog("token")}>
            Let a host join …
          </Button>
        </>
      )}
      {dialog === "make" && <Make onClose={() => setDialog(null)} />}
      {dialog === "join" && <JoinOther onClose={() => setDialog(null)} />}
      {dialog === "token" && <Token onClose={() => setDialog(null)} onMade={setToken} />}
      {token && <Made token={token} onClose={() => setToken(null)} />}
    </Section>
  );
}

function Make({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  const [name, setName] = useState("");
  const body: Schemas["ClusterCreateBody"] = name === "" ? {} : { name };
  return (
    <FormDialog
      title="Make this host a cluster"
      label="Make"
      ready
      command={`muster cluster create${name ? ` ${shell(name)}` : ""}`}
      call={`POST /v1/cluster\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/cluster", { body }));
        await client.invalidateQueries({ queryKey: keys.cluster });
      }}
    >
      <p>Machines, images and volumes of this host are the cluster's then. Nothing stops meanwhile.</p>
      <Field label="Name" hint="The host's name if left out">
        {(ids) => (
          <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />
        )}
      </Field>
    </FormDialog>
  );
}

/** The other side: this host becomes a node of a cluster that is elsewhere. */
function JoinOther({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  const [token, setToken] = useState("");
  const given = token.trim();
  return (
    <FormDialog
      title="Join another cluster"
      label="Join"
      ready={given !== ""}
      command="muster cluster join TOKEN"
      call={'POST /v1/cluster/join\n{"token":"TOKEN"}'}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/cluster/join", { body: { token: given } }));
        await client.invalidateQueries();
      }}
    >
      <p>
        This host must have no machines of its own. It takes the cluster&apos;s state in place of its own: you have to
        sign in again, with a token or link of that cluster.
      </p>
      <Field label="Token" hint="From a node of that cluster: its page Set-up, or muster cluster token">
        {(ids) => (
          <input
            {...ids}
            type="password"
            autoComplete="off"
            spellCheck={false}
            value={token}
            onChange={(event) => setToken(event.target.value)}
          />
        )}
      </Field>
    </FormDialog>
  );
}

function Token({ onClose, onMade }: {
  onClose: () => void;
  onMade: (token: Schemas["JoinTokenSecretView"]) => void;
}) {
  const [valid, setValid] = useState<keyof typeof VALID>("1h");
  const [uses, setUses] = useState("1");
  const count = /^\d{1,2}$/.test(uses) ? Number(uses) : 0;
  const body: Schemas["JoinTokenCreateBody"] = { valid_s: VALID[valid], uses: count };
  const good = count >= 1 && count <= 64;
  return (
    <FormDialog
      title="Let a host join"
      label="Make a token"
      ready={good}
      command={`muster cluster token --ttl ${valid} --uses ${uses}`}
      call={`POST /v1/cluster/tokens\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => onMade(await value(api.POST("/v1/cluster/tokens", { body })))}
    >
      <p>
        A host joins with a token. Whoever has it can make their host a node of this cluster while it is
        valid: carry it like a password.
      </p>
      <Field label="Valid for">
        {(ids) => (
          <select {...ids} value={valid} onChange={(event) => setValid(event.target.value as keyof typeof VALID)}>
            {Object.keys(VALID).map((text) => <option key={text}>{text}</option>)}
          </select>
        )}
      </Field>
      <Field label="For how many hosts" error={good ? undefined : "A number from 1 to 64"}>
        {(ids) => (
          <input {...ids} inputMode="numeric" value={uses} onChange={(event) => setUses(event.target.value)} />
        )}
      </Field>
    </FormDialog>
  );
}

/** Shown this once: the secret is kept nowhere. */
function Made({ token, onClose }: { token: Schemas["JoinTokenSecretView"]; onClose: () => void }) {
  return (
    <Dialog title="The token" onClose={onClose}>
      <p>
        It is shown only now, and valid until {when(token.expires)}. On the new host, which must have no
        machines of its own: look first whether it fits, then let it join. Its own console can do that, too: Set-up,
        Join another cluster.
      </p>
      <pre>
        <code>muster cluster validate --join-token - &lt; token.txt</code>
      </pre>
      <pre>
        <code>muster cluster join {token.text}</code>
      </pre>
      <div className="dialog-buttons">
        <Button onPress={() => void navigator.clipboard.writeText(token.text)}>Copy the token</Button>
        <Button kind="main" onPress={onClose}>
          I have it
        </Button>
      </div>
    </Dialog>
  );
}
