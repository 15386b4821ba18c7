// Images: what machines are made from, and importing one.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { images, keys } from "../api/queries";
import { bytes, mayDo, shell, whenShort } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Badge, Button, Dialog, Field, Same, Table, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";

export function Images() {
  const asked = useQuery(images);
  const role = useRole();
  const [open, setOpen] = useState(false);
  return (
    <>
      <div className="page-head">
        <h1>Images</h1>
        <Button
          kind="main"
          why={mayDo(role, "administrator") ? undefined : "This needs the role administrator."}
          onPress={() => setOpen(true)}
        >
          Import an image …
        </Button>
      </div>
      {asked.error && <Trouble error={asked.error} />}
      {asked.isPending && !asked.error && <Waiting what="images" />}
      {asked.data?.length === 0 && <p>There are none yet. Import one, from an address or a file.</p>}
      {asked.data && asked.data.length > 0 && (
        <Table label="Images" head={["Name", "State", "Size", "From", "Used by", "Since"]}>
          {asked.data.map((image) => (
            <tr key={image.id}>
              <th scope="row">{image.name}</th>
              <td>
                <Badge tone={image.state === "ready" ? "good" : "busy"}>{image.state}</Badge>
              </td>
              <td>{image.state === "ready" ? bytes(image.virtual_size) : "–"}</td>
              <td className="long">{image.source.from === "url" ? image.source.url : image.source.path}</td>
              <td>{image.used_by.length}</td>
              <td>{whenShort(image.created)}</td>
            </tr>
          ))}
        </Table>
      )}
      {open && <Import onClose={() => setOpen(false)} />}
    </>
  );
}

/** Where an image is: an address, or a file of the node. */
export function source(text: string): Schemas["ImageSource"] {
  return /^https?:\/\//.test(text) ? { from: "url", url: text } : { from: "file", path: text };
}

function Import({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  const { follow } = useNotices();
  const [name, setName] = useState("");
  const [from, setFrom] = useState("");
  const [sha256, setSha256] = useState("");
  const body: Schemas["ImageImportBody"] = {
    name,
    source: source(from.trim()),
    ...(sha256.trim() === "" ? {} : { sha256: sha256.trim() }),
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    onClose();
    void follow(`Import ${name}`, async () => {
      const begun = await value(api.POST("/v1/images", { body }));
      void client.invalidateQueries({ queryKey: keys.images });
      return begun;
    }).then(() => client.invalidateQueries({ queryKey: keys.images }));
  };
  const check = body.sha256 ? ` --sha256 ${body.sha256}` : "";
  return (
    <Dialog title="Import an image" onClose={onClose}>
      <form onSubmit={submit}>
        <Field label="Name">
          {(ids) => (
            <input {...ids} required value={name} onChange={(event) => setName(event.target.value)} />
          )}
        </Field>
        <Field label="From" hint="An address (https://…), or the path of a file on this node">
          {(ids) => (
            <input {...ids} required value={from} onChange={(event) => setFrom(event.target.value)} />
          )}
        </Field>
        <Field label="SHA-256" hint="If you know it: anything else is refused">
          {(ids) => (
            <input {...ids} value={sha256} onChange={(event) => setSha256(event.target.value)} />
          )}
        </Field>
        <Same
          command={`muster image import ${shell(name || "NAME")} ${shell(from || "FROM")}${check}`}
          call={`POST /v1/images\n${JSON.stringify(body)}`}
        />
        <div className="dialog-buttons">
          <Button onPress={onClose}>Leave it</Button>
          <Button kind="main" type="submit" isDisabled={name === "" || from.trim() === ""}>
            Import
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
