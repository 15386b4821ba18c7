// Changing a machine: what can change while it runs, and what needs it off, as the API says.

import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { keys } from "../api/queries";
import { bytes, parseBytes, shell } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Button, Dialog, Field, Same } from "../parts/parts";
import { exact, options } from "./setCommand";

type VmView = Schemas["VmView"];

interface Form {
  name: string;
  cpus: string;
  memory: string;
  tags: string;
  description: string;
}

/** What differs from the machine as it is, and the options of the command line that say the same. */
export function changes(vm: VmView, form: Form): { body: Schemas["VmChange"]; options: string[] } {
  const body: Schemas["VmChange"] = {};
  if (form.name !== vm.name) body.name = form.name;
  if (Number(form.cpus) !== vm.cpus.count) body.cpus = Number(form.cpus);
  const memory = parseBytes(form.memory);
  if (memory !== null && memory !== vm.memory.size) body.memory = memory;
  const tags = form.tags.split(/[\s,]+/).filter(Boolean);
  if (tags.join(" ") !== vm.tags.join(" ")) body.tags = tags;
  if (form.description !== vm.description) body.description = form.description;
  return { body, options: options(body) };
}

export function EditVm({ vm, onClose }: { vm: VmView; onClose: () => void }) {
  const client = useQueryClient();
  const { follow } = useNotices();
  const [form, setForm] = useState<Form>({
    name: vm.name,
    cpus: String(vm.cpus.count),
    memory: exact(vm.memory.size),
    tags: vm.tags.join(" "),
    description: vm.description,
  });
  // The revision that the person has seen: a change that somebody else made meanwhile is not lost.
  const [revision] = useState(vm.revision);
  const { body, options: said } = changes(vm, form);
  const badMemory = parseBytes(form.memory) === null;
  const badCpus = !/^[1-9]\d{0,2}$/.test(form.cpus);
  const nothing = Object.keys(body).length === 0;

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (badMemory || badCpus || nothing) return;
    onClose();
    void follow(`Change ${vm.name}`, () =>
      value(
        api.PATCH("/v1/vms/{vm}", {
          params: { path: { vm: vm.id }, query: { if_revision: revision } },
          body,
        }),
      ),
    ).then(() => client.invalidateQueries({ queryKey: keys.vm(vm.id) }));
  };

  const text = (key: keyof Form) => ({
    value: form[key],
    onChange: (event: { target: { value: string } }) =>
      setForm({ ...form, [key]: event.target.value }),
  });

  return (
    <Dialog title={`Change ${vm.name}`} onClose={onClose}>
      <form onSubmit={submit}>
        <Field label="Name">{(ids) => <input {...ids} required {...text("name")} />}</Field>
        <Field
          label="Processors"
          hint={`Up to ${vm.cpus.max} while it runs`}
          error={badCpus ? "A whole number from 1 on" : undefined}
        >
          {(ids) => <input {...ids} inputMode="numeric" {...text("cpus")} />}
        </Field>
        <Field
          label="Memory"
          hint={`Up to ${bytes(vm.memory.max)} while it runs`}
          error={badMemory ? "A size such as 512M or 2G" : undefined}
        >
          {(ids) => <input {...ids} {...text("memory")} />}
        </Field>
        <Field label="Tags" hint="Words, with spaces between them">
          {(ids) => <input {...ids} {...text("tags")} />}
        </Field>
        <Field label="Description">{(ids) => <input {...ids} {...text("description")} />}</Field>
        <Same
          command={`muster vm set ${shell(vm.name)} ${said.join(" ")}`.trim()}
          call={`PATCH /v1/vms/${vm.id}?if_revision=${revision}\n${JSON.stringify(body)}`}
        />
        <div className="dialog-buttons">
          <Button onPress={onClose}>Leave it</Button>
          <Button kind="main" type="submit" isDisabled={badMemory || badCpus || nothing}>
            Change
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
