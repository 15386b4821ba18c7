// The witness: a third vote, so that either of two nodes may be lost.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../../api/client";
import { cluster, keys } from "../../api/queries";
import { shell } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Badge, Button, Field, Section } from "../../parts/parts";
import { where } from "./place";

type Place = Schemas["WitnessPlaceBody"];
type Kind = Place["kind"];

const KINDS: Record<Kind, string> = {
  directory: "a directory on a share that all nodes mount",
  block: "a small device that all nodes share",
  object: "an object store (S3 or Azure Blob)",
  remote: "a muster witness on another machine",
};

/** Lines of the form `name=value`; null where a line is none. */
export function options(text: string): Record<string, string> | null {
  const found: Record<string, string> = {};
  for (const line of text.split("\n").map((line) => line.trim()).filter(Boolean)) {
    const at = line.indexOf("=");
    if (at < 1) return null;
    found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return found;
}

export function Witness({ why }: { why: string | undefined }) {
  const asked = useQuery(cluster);
  const [dialog, setDialog] = useState<"set" | "remove" | null>(null);
  const view = asked.data;
  const witness = view?.witness;
  const single = view && !view.id ? "A single host needs none: make it a cluster first." : undefined;
  return (
    <Section title="Witness">
      {witness ? (
        <p>
          {where(witness.place)}{" "}
          <Badge tone={witness.reachable ? "good" : "bad"}>
            {witness.reachable ? "reached" : (witness.problem ?? "not reached")}
          </Badge>
        </p>
      ) : (
        <p>None. A cluster of two nodes needs one, or the loss of either stops all machines.</p>
      )}
      <div className="actions">
        <Button why={why ?? single} onPress={() => setDialog("set")}>
          {witness ? "Take another …" : "Set a witness …"}
        </Button>
        {witness && (
          <Button kind="danger" why={why} onPress={() => setDialog("remove")}>
            Remove it …
          </Button>
        )}
      </div>
      {dialog === "set" && <Set onClose={() => setDialog(null)} />}
      {dialog === "remove" && <Remove onClose={() => setDialog(null)} />}
    </Section>
  );
}

function Set({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  const [kind, setKind] = useState<Kind>("directory");
  const [at, setAt] = useState("");
  const [plain, setPlain] = useState("");
  const [secret, setSecret] = useState("");
  const [given, hidden] = [options(plain), options(secret)];
  const place: Place | null =
    kind === "directory" || kind === "block"
      ? { kind, path: at }
      : kind === "remote"
        ? { kind, token: at.trim() }
        : given && hidden
          ? { kind, url: at, options: given, secrets: hidden }
          : null;
  // Secrets stand in no command line and on no screen.
  const shown = place?.kind === "object" ? { ...place, secrets: "…" } : place?.kind === "remote" ? { ...place, token: "…" } : place;
  const command = {
    directory: `--directory ${shell(at || "PATH")}`,
    block: `--block ${shell(at || "PATH")}`,
    object: [
      `${at.startsWith("az:") ? "--azure" : "--s3"} ${shell(at || "URL")}`,
      ...Object.entries(given ?? {}).map(([name, text]) => `--option ${shell(`${name}=${text}`)}`),
      ...Object.keys(hidden ?? {}).map((name) => `--secret-file ${shell(name)}=FILE`),
    ].join(" "),
    remote: "--witness-token-file FILE",
  }[kind];
  return (
    <FormDialog
      title="Set a witness"
      label="Try it and take it"
      ready={at.trim() !== "" && place !== null}
      command={`muster cluster witness set ${command}`}
      call={`POST /v1/cluster/witness\n${JSON.stringify({ place: shown })}`}
      onClose={onClose}
      onSubmit={async () => {
        if (!place) return;
        await value(api.POST("/v1/cluster/witness", { body: { place } }));
        await client.invalidateQueries({ queryKey: keys.cluster });
      }}
    >
      <p>It must depend on none of the nodes. It is tried out first; a store that does not keep its word is refused.</p>
      <Field label="What it is">
        {(ids) => (
          <select {...ids} value={kind} onChange={(event) => setKind(event.target.value as Kind)}>
            {Object.entries(KINDS).map(([kind, text]) => (
              <option key={kind} value={kind}>
                {text}
              </option>
            ))}
          </select>
        )}
      </Field>
      <Field
        label={kind === "directory" || kind === "block" ? "Path" : kind === "object" ? "Address" : "Token"}
        hint={
          kind === "directory"
            ? "The same on every node; it must exist"
            : kind === "object"
              ? "s3://BUCKET/FOLDER or az://CONTAINER/FOLDER"
              : kind === "block"
                ? "The same on every node, such as /dev/disk/by-id/…; it must be empty"
              : "What `muster witness` printed when it started"
        }
      >
        {(ids) => <input {...ids} autoComplete="off" value={at} onChange={(event) => setAt(event.target.value)} />}
      </Field>
      {kind === "object" && (
        <>
          <Field label="Options" hint="One a line, such as aws_endpoint=https://s3.example.org" error={given ? undefined : "Lines of the form name=value"}>
            {(ids) => <textarea {...ids} rows={2} value={plain} onChange={(event) => setPlain(event.target.value)} />}
          </Field>
          <Field label="Secrets" hint="One a line, such as aws_secret_access_key=…; never shown again" error={hidden ? undefined : "Lines of the form name=value"}>
            {(ids) => <textarea {...ids} rows={2} value={secret} onChange={(event) => setSecret(event.target.value)} />}
          </Field>
        </>
      )}
    </FormDialog>
  );
}

function Remove({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  return (
    <FormDialog
      title="Remove the witness?"
      label="Remove"
      ready
      danger
      command="muster cluster witness remove"
      call="DELETE /v1/cluster/witness"
      onClose={onClose}
      onSubmit={async () => {
        await value(api.DELETE("/v1/cluster/witness"));
        await client.invalidateQueries({ queryKey: keys.cluster });
      }}
    >
      <p>The cluster may lose one node less than with it, where its number of nodes is even.</p>
    </FormDialog>
  );
}
