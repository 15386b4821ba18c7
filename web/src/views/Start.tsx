// From a single host to the first machine that runs, in three screens: the host, an image, the machine.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { createLazyRoute, Link } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { cluster, images, keys, nodes, ops, volumes } from "../api/queries";
import { bytes, counted, mayDo, shell } from "../parts/format";
import { progress, useNotices } from "../parts/notices";
import { Badge, Button, Facts, Field, Same, Section, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";
import { body, command, EMPTY, type Form, placed, wrong } from "./create";
import { FirstBoot } from "./FirstBoot";
import { source } from "./Images";
import { perform } from "./perform";

export const route = createLazyRoute("/start")({ component: Start });

const STEPS = ["This host", "An image", "The machine"] as const;
type Step = 0 | 1 | 2;

function Start() {
  const role = useRole();
  const [step, setStep] = useState<Step>(0);
  const [image, setImage] = useState("");
  const why = mayDo(role, "administrator") ? undefined : "This needs the role administrator.";
  return (
    <>
      <div className="page-head">
        <h1>The first machine</h1>
      </div>
      <ol className="steps" aria-label="Steps">
        {STEPS.map((name, n) => (
          <li key={name} aria-current={n === step ? "step" : undefined}>
            {n + 1}. {name}
          </li>
        ))}
      </ol>
      {step === 0 && <ThisHost why={why} onNext={() => setStep(1)} />}
      {step === 1 && (
        <AnImage
          why={why}
          chosen={image}
          onBack={() => setStep(0)}
          onNext={(name) => {
            setImage(name);
            setStep(2);
          }}
        />
      )}
      {step === 2 && <TheMachine why={why} image={image} onBack={() => setStep(1)} />}
    </>
  );
}

function Buttons({ onBack, children }: { onBack?: () => void; children: ReactNode }) {
  return (
    <div className="form-buttons">
      {onBack && <Button onPress={onBack}>Back</Button>}
      {children}
    </div>
  );
}

/** Whether machines can run here at all; and whether it shall be a cluster. */
function ThisHost({ why, onNext }: { why: string | undefined; onNext: () => void }) {
  const client = useQueryClient();
  const hosts = useQuery(nodes);
  const view = useQuery(cluster);
  const [name, setName] = useState("");
  const [error, setError] = useState<unknown>(null);
  const request: Schemas["ClusterCreateBody"] = name === "" ? {} : { name };
  const make = async () => {
    setError(null);
    try {
      await value(api.POST("/v1/cluster", { body: request }));
      await client.invalidateQueries({ queryKey: keys.cluster });
    } catch (error) {
      setError(error);
    }
  };
  const unfit = hosts.data?.every((node) => !node.qemu) === true;
  return (
    <Section title="Can machines run here?">
      {hosts.error && <Trouble error={hosts.error} />}
      {hosts.isPending && !hosts.error && <Waiting what="the host" />}
      {hosts.data?.map((node) => (
        <div key={node.id}>
          <Facts
            facts={[
              [node.name, node.qemu ? <Badge tone="good">ready</Badge> : <Badge tone="bad">QEMU cannot be used</Badge>],
              ["Runs machines by", `${node.accelerator.toUpperCase()}: ${node.accelerator_reason}`],
              ["Memory", `${bytes(node.memory_available)} free of ${bytes(node.memory)}, ${counted(node.cpus, "processor")}`],
              ["Storage", `${bytes(node.storage_available)} free of ${bytes(node.storage)}`],
            ]}
          />
          {node.problems.map((problem) => (
            <p key={problem} className="problem">
              {problem}
            </p>
          ))}
        </div>
      ))}
      {view.data && !view.data.id && (
        <details className="same">
          <summary>Make it a cluster now, so that other hosts can join (can be done later)</summary>
          <Field label="Name of the cluster" hint="The host's name if left out">
            {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
          </Field>
          <Button why={why} onPress={() => void make()}>
            Make it a cluster
          </Button>
          {error !== null && <Trouble error={error} what="Not made" />}
          <Same
            command={`muster cluster create${name ? ` ${shell(name)}` : ""}`}
            call={`POST /v1/cluster\n${JSON.stringify(request)}`}
          />
        </details>
      )}
      {view.data?.id && <p>It is the cluster {view.data.name}. Other hosts join on the page Set-up.</p>}
      <Same command="muster node show" call="GET /v1/nodes" />
      <Buttons>
        <Button
          kind="main"
          why={unfit ? "No machine can run before QEMU can be used; what is missing stands above." : undefined}
          onPress={onNext}
        >
          Next: an image
        </Button>
      </Buttons>
    </Section>
  );
}

/** What the machine is made from: one that is there, or one that is brought now. */
function AnImage({ why, chosen, onBack, onNext }: {
  why: string | undefined;
  chosen: string;
  onBack: () => void;
  onNext: (image: string) => void;
}) {
  const client = useQueryClient();
  const asked = useQuery(images);
  const { follow } = useNotices();
  const [pick, setPick] = useState(chosen);
  const [name, setName] = useState("");
  const [from, setFrom] = useState("");
  const [error, setError] = useState<unknown>(null);
  const all = asked.data ?? [];
  const picked = pick || all[0]?.name || "";
  const request: Schemas["ImageImportBody"] = { name, source: source(from.trim()) };
  const bring = async () => {
    setError(null);
    try {
      const begun = await value(api.POST("/v1/images", { body: request }));
      void follow(`Import ${name}`, () => Promise.resolve(begun)).then(() =>
        client.invalidateQueries({ queryKey: keys.images }),
      );
      await client.invalidateQueries({ queryKey: keys.images });
      onNext(name);
    } catch (error) {
      setError(error);
    }
  };
  return (
    <Section title="What is it made from?">
      {asked.error && <Trouble error={asked.error} />}
      {all.length > 0 && (
        <>
          <Field label="An image that is here">
            {(ids) => (
              <select {...ids} value={picked} onChange={(event) => setPick(event.target.value)}>
                {all.map((image) => (
                  <option key={image.id} value={image.name}>
                    {image.name}
                    {image.state === "ready" ? `, ${bytes(image.virtual_size)}` : ", still being imported"}
                  </option>
                ))}
              </select>
            )}
          </Field>
          <Button kind="main" onPress={() => onNext(picked)}>
            Next: a machine from {picked}
          </Button>
        </>
      )}
      <h3>{all.length > 0 ? "Or import one" : "Import one"}</h3>
      <p className="quiet-text">
        A disk image of a system that boots, such as the qcow2 &quot;generic cloud&quot; image of a distribution. It
        is copied once; each machine gets a thin copy.
      </p>
      <Field label="Name of the image">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="From" hint="An address (https://…), or the path of a file on this node">
        {(ids) => <input {...ids} autoComplete="off" value={from} onChange={(event) => setFrom(event.target.value)} />}
      </Field>
      {error !== null && <Trouble error={error} what="Not imported" />}
      <Same
        command={`muster image import ${shell(name || "NAME")} ${shell(from || "FROM")}`}
        call={`POST /v1/images\n${JSON.stringify(request)}`}
      />
      <Buttons onBack={onBack}>
        <Button
          why={why ?? (name === "" || from.trim() === "" ? "It needs a name and where it is." : undefined)}
          onPress={() => void bring()}
        >
          Import it and go on
        </Button>
      </Buttons>
    </Section>
  );
}

function TheMachine({ why, image, onBack }: { why: string | undefined; image: string; onBack: () => void }) {
  const navigate = route.useNavigate();
  const { follow } = useNotices();
  const client = useQueryClient();
  const known = useQuery(images).data?.find((one) => one.name === image);
  const under = useQuery(ops).data?.find((op) => op.image !== null && op.image === known?.id);
  const [given, setForm] = useState<Form>({ ...EMPTY, image });
  const form = placed(given, useQuery(volumes).data ?? []);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const found = wrong(form);
  const set = (key: "name" | "memory" | "cpus" | "user" | "sshKeys") => ({
    value: form[key],
    onChange: (event: { target: { value: string } }) => setForm({ ...form, [key]: event.target.value }),
  });
  const [first] = Object.values(found);
  const waits = known?.state === "ready" ? undefined : `The image is not here yet${under ? `: ${progress(under)}` : ""}.`;
  const create = async () => {
    setBusy(true);
    setError(null);
    try {
      const created = await value(api.POST("/v1/vms", { body: body(form) }));
      const id = created.vm ?? form.name;
      void follow(`Create ${form.name}`, () => Promise.resolve(created)).then((done) => {
        if (done) void follow(`Start ${form.name}`, () => perform("start", id));
      });
      void client.invalidateQueries({ queryKey: keys.vms });
      await navigate({ to: "/vms/$vm", params: { vm: id } });
    } catch (error) {
      setError(error);
      setBusy(false);
    }
  };
  return (
    <Section title={`A machine from ${image}`}>
      <Field label="Name" error={form.name === "" ? undefined : found.name}>
        {(ids) => <input {...ids} autoComplete="off" spellCheck={false} {...set("name")} />}
      </Field>
      <Field label="Processors" error={found.cpus}>
        {(ids) => <input {...ids} inputMode="numeric" {...set("cpus")} />}
      </Field>
      <Field label="Memory" hint="Such as 512M or 2G" error={found.memory}>
        {(ids) => <input {...ids} {...set("memory")} />}
      </Field>
      <Field label="User" hint="Made at the first boot, with the right to become root; for images with cloud-init">
        {(ids) => <input {...ids} autoComplete="off" {...set("user")} />}
      </Field>
      <Field label="SSH public keys" hint="Of that user, one on each line" error={found.sshKeys}>
        {(ids) => <textarea {...ids} rows={2} spellCheck={false} {...set("sshKeys")} />}
      </Field>
      <FirstBoot body={body(form)} may={why === undefined} />
      <p className="quiet-text">
        It gets an adapter on the network {form.network} and lies on{" "}
        {form.volume ? `the volume ${form.volume}` : "this node's own disks, where no other node can take it over"}. All there is to choose
        stands on the page <Link to="/new">Create a machine</Link>.
      </p>
      {error !== null && <Trouble error={error} what="Not created" />}
      <Same command={command(form)} call={`POST /v1/vms\n${JSON.stringify(body(form), null, 2)}`} />
      <Buttons onBack={onBack}>
        <Button
          kind="main"
          isDisabled={busy}
          why={why ?? (form.name === "" ? "The machine needs a name." : first) ?? waits}
          onPress={() => void create()}
        >
          {busy ? "Creating …" : "Create it and start it"}
        </Button>
      </Buttons>
    </Section>
  );
}
