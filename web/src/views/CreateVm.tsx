// A new machine, on one page, with the command line and the call of the API that make the same.

import { useQuery } from "@tanstack/react-query";
import { createLazyRoute, Link } from "@tanstack/react-router";
import { type ChangeEvent, type FormEvent, useState } from "react";
import { api, value } from "../api/client";
import { images, networks, volumes } from "../api/queries";
import { bytes, mayDo } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Button, Field, Section, Trouble } from "../parts/parts";
import { useRole } from "../session";
import { body, command, EMPTY, type Form, placed, wrong } from "./create";
import { FirstBoot } from "./FirstBoot";
import { perform } from "./perform";

export const route = createLazyRoute("/new")({ component: CreateVm });

function CreateVm() {
  const role = useRole();
  const navigate = route.useNavigate();
  const { follow } = useNotices();
  const [given, setForm] = useState<Form>(EMPTY);
  const form = placed(given, useQuery(volumes).data ?? []);
  const [tried, setTried] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const found = wrong(form);
  const shown = tried ? found : {};
  const may = mayDo(role, "administrator");

  const set = (key: keyof Form) => ({
    value: String(form[key] ?? ""),
    onChange: (event: ChangeEvent<HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement>) =>
      setForm({ ...form, [key]: event.target.value }),
  });

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setTried(true);
    if (Object.keys(found).length > 0) return;
    setBusy(true);
    setError(null);
    try {
      const created = await value(api.POST("/v1/vms", { body: body(form) }));
      const id = created.vm ?? form.name;
      void follow(`Create ${form.name}`, () => Promise.resolve(created)).then((done) => {
        // The id, not the name: the machine that was created is the one to start.
        if (done && form.start) void follow(`Start ${form.name}`, () => perform("start", id));
      });
      await navigate({ to: "/vms/$vm", params: { vm: id } });
    } catch (error) {
      setError(error);
      setBusy(false);
    }
  };

  return (
    <>
      <p className="crumbs">
        <Link to="/vms">Machines</Link> /
      </p>
      <div className="page-head">
        <h1>Create a machine</h1>
      </div>
      {!may && <p className="problem">This needs the role administrator; you are {role}.</p>}
      <form className="create" onSubmit={(event) => void submit(event)} noValidate>
        <Basics form={form} shown={shown} set={set} />
        <Places form={form} set={set} />
        <Section title="First boot">
          <p className="quiet-text">For images that understand cloud-init; leave it empty for others.</p>
          <Field label="User" hint="Made at the first boot, with the right to become root">
            {(ids) => <input {...ids} autoComplete="off" {...set("user")} />}
          </Field>
          <Field label="SSH public keys" hint="One on each line" error={shown.sshKeys}>
            {(ids) => <textarea {...ids} rows={3} spellCheck={false} {...set("sshKeys")} />}
          </Field>
          <Field label="Host name" hint="The machine's name if left empty">
            {(ids) => <input {...ids} autoComplete="off" {...set("hostname")} />}
          </Field>
          <Field
            label="Raw user-data"
            hint="Instead of all that: taken as it is, such as a #cloud-config of your own"
            error={shown.userData}
          >
            {(ids) => <textarea {...ids} rows={3} spellCheck={false} {...set("userData")} />}
          </Field>
          <FirstBoot body={body(form)} may={may} />
        </Section>
        <Section title="The same by command line and API">
          <pre tabIndex={0} aria-label="Command line">
            <code>{command(form)}</code>
          </pre>
          <pre tabIndex={0} aria-label="Call of the API">
            <code>{`POST /v1/vms\n${JSON.stringify(body(form), null, 2)}`}</code>
          </pre>
        </Section>
        {error !== null && <Trouble error={error} what="Not created" />}
        {tried && Object.keys(found).length > 0 && (
          <p role="alert" className="problem">
            Not created: mend the marked fields first.
          </p>
        )}
        <div className="form-buttons">
          <label className="check">
            <input
              type="checkbox"
              checked={form.start}
              onChange={(event) => setForm({ ...form, start: event.target.checked })}
            />
            Start it, too
          </label>
          <Button
            kind="main"
            type="submit"
            isDisabled={busy}
            why={may ? undefined : "This needs the role administrator."}
          >
            {busy ? "Creating …" : "Create"}
          </Button>
        </div>
      </form>
    </>
  );
}

type Set = (key: keyof Form) => {
  value: string;
  onChange: (
    event: ChangeEvent<HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement>,
  ) => void;
};

function Basics({ form, shown, set }: { form: Form; shown: ReturnType<typeof wrong>; set: Set }) {
  const ready = (useQuery(images).data ?? []).filter((image) => image.state === "ready");
  const image = ready.find((image) => image.name === form.image);
  const own = image?.state === "ready" ? bytes(image.virtual_size) : "";
  return (
    <Section title="Machine">
      <Field label="Name" error={shown.name}>
        {(ids) => <input {...ids} required autoComplete="off" spellCheck={false} {...set("name")} />}
      </Field>
      <Field
        label="Image"
        hint={ready.length === 0 ? "No image is ready; import one on the page Images." : "Its first disk is a thin copy"}
      >
        {(ids) => (
          <select {...ids} {...set("image")}>
            <option value="">none, a blank disk</option>
            {ready.map((image) => (
              <option key={image.id}>{image.name}</option>
            ))}
          </select>
        )}
      </Field>
      <Field
        label="Size of the first disk"
        hint={own ? `The image's own is ${own}` : "Such as 20G"}
        error={shown.diskSize}
      >
        {(ids) => <input {...ids} autoComplete="off" {...set("diskSize")} />}
      </Field>
      <Field label="Processors" error={shown.cpus}>
        {(ids) => <input {...ids} inputMode="numeric" {...set("cpus")} />}
      </Field>
      <Field label="Memory" hint="Such as 512M or 2G" error={shown.memory}>
        {(ids) => <input {...ids} {...set("memory")} />}
      </Field>
      <Field label="Firmware">
        {(ids) => (
          <select {...ids} {...set("firmware")}>
            <option value="bios">BIOS</option>
            <option value="uefi">UEFI</option>
          </select>
        )}
      </Field>
      <Field label="Tags" hint="Words to find and group it by">
        {(ids) => <input {...ids} autoComplete="off" {...set("tags")} />}
      </Field>
    </Section>
  );
}

function Places({ form, set }: { form: Form; set: Set }) {
  const nets = useQuery(networks).data ?? [];
  const places = useQuery(volumes).data ?? [];
  return (
    <Section title="Place and network">
      <Field label="Network">
        {(ids) => (
          <select {...ids} {...set("network")}>
            {!nets.some((net) => net.name === form.network) && form.network !== "" && (
              <option>{form.network}</option>
            )}
            {nets.map((net) => (
              <option key={net.id}>{net.name}</option>
            ))}
            <option value="">none</option>
          </select>
        )}
      </Field>
      <Field
        label="Volume"
        hint="On a volume, other nodes can take it over; on this node's own disks they cannot"
      >
        {(ids) => (
          <select {...ids} {...set("volume")}>
            <option value="">this node's own disks</option>
            {places.map((volume) => (
              <option key={volume.id}>{volume.name}</option>
            ))}
          </select>
        )}
      </Field>
    </Section>
  );
}
