// Volumes: places for machines and images that several nodes reach.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../../api/client";
import { keys, volumes } from "../../api/queries";
import { bytes, shell } from "../../parts/format";
import { FormDialog } from "../../parts/form";
import { Badge, Button, Field, Section, Table, Trouble } from "../../parts/parts";

export function Volumes({ why }: { why: string | undefined }) {
  const client = useQueryClient();
  const asked = useQuery(volumes);
  const [making, setMaking] = useState(false);
  const [leaving, setLeaving] = useState<Schemas["VolumeView"] | null>(null);
  const again = () => client.invalidateQueries({ queryKey: keys.volumes });
  return (
    <Section
      title="Volumes"
      beside={
        <Button why={why} onPress={() => setMaking(true)}>
          Add a volume …
        </Button>
      }
    >
      {asked.error && <Trouble error={asked.error} />}
      {asked.data?.length === 0 && <p>None: machines lie on the disks of their nodes, and are lost with them.</p>}
      {asked.data && asked.data.length > 0 && (
        <Table label="Volumes" head={["Name", "Path", "Free", "Used by", "Do"]}>
          {asked.data.map((volume) => (
            <tr key={volume.id}>
              <th scope="row">{volume.name}</th>
              <td>{volume.path}</td>
              <td>
                {volume.problem ? (
                  <Badge tone="bad">{volume.problem}</Badge>
                ) : (
                  `${bytes(volume.free)} of ${bytes(volume.size)}`
                )}
              </td>
              <td>{volume.used_by.length}</td>
              <td>
                <Button
                  kind="danger"
                  aria-label={`Forget ${volume.name}`}
                  why={why ?? (volume.used_by.length > 0 ? `In use by ${volume.used_by.slice(0, 3).join(", ")}.` : undefined)}
                  onPress={() => setLeaving(volume)}
                >
                  Forget …
                </Button>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {making && <Make onClose={() => setMaking(false)} again={again} />}
      {leaving && (
        <FormDialog
          title={`Forget ${leaving.name}?`}
          label="Forget"
          ready
          danger
          command={`muster volume delete ${shell(leaving.name)}`}
          call={`DELETE /v1/volumes/${leaving.id}`}
          onClose={() => setLeaving(null)}
          onSubmit={async () => {
            await value(api.DELETE("/v1/volumes/{volume}", { params: { path: { volume: leaving.id } } }));
            await again();
          }}
        >
          <p>Its files stay where they are; no machine can be put there any more.</p>
        </FormDialog>
      )}
    </Section>
  );
}

function Make({ onClose, again }: { onClose: () => void; again: () => Promise<void> }) {
  const [name, setName] = useState("");
  const [path, setPath] = useState("");
  const body: Schemas["VolumeCreateBody"] = { kind: "share", name, path };
  return (
    <FormDialog
      title="Add a volume"
      label="Add"
      ready={name !== "" && path.startsWith("/")}
      command={`muster volume create ${shell(name || "NAME")} --share ${shell(path || "PATH")}`}
      call={`POST /v1/volumes\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/volumes", { body }));
        await again();
      }}
    >
      <p>
        A directory that every node mounts at the same path, such as an NFS mount. It is marked, so that a
        node on which it is not mounted says so. Machines on it are started elsewhere when their node is lost.
      </p>
      <Field label="Name">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="Directory" hint="The same path on every node; it must exist">
        {(ids) => <input {...ids} autoComplete="off" value={path} onChange={(event) => setPath(event.target.value)} />}
      </Field>
    </FormDialog>
  );
}
