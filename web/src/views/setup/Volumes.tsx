// Volumes: places for machines and images that several nodes reach.

import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, known, type Schemas, value } from "../../api/client";
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
        <Table label="Volumes" head={["Name", "Path", "On", "Free", "Used by", "Do"]}>
          {asked.data.map((volume) => (
            <tr key={volume.id}>
              <th scope="row">{volume.name}</th>
              <td>{volume.path}</td>
              <td>
                {volume.kind === "share"
                  ? "a share"
                  : `LUN ${volume.lun}, ${volume.fs}, ${volume.coordination?.coordinator ? `mounted by ${volume.coordination.coordinator}` : "mounted nowhere"}`}
              </td>
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
          command={`muster volume ${leaving.kind === "lun" ? "release" : "delete"} ${shell(leaving.name)}`}
          call={leaving.kind === "lun" ? `POST /v1/volumes/${leaving.id}/release` : `DELETE /v1/volumes/${leaving.id}`}
          onClose={() => setLeaving(null)}
          onSubmit={async () => {
            const params = { path: { volume: leaving.id } };
            // Deleting a volume on a LUN would destroy its file system; here it is only let go.
            if (leaving.kind === "lun") await value(api.POST("/v1/volumes/{volume}/release", { params }));
            else await value(api.DELETE("/v1/volumes/{volume}", { params }));
            await again();
          }}
        >
          <p>
            Its files stay where they are; no machine can be put there any more.
            {leaving.kind === "lun" && ` LUN ${leaving.lun} is an ordinary disk with ${leaving.fs} afterwards.`}
          </p>
        </FormDialog>
      )}
    </Section>
  );
}

/** The empty LUNs that this cluster sees: no other one is formatted. */
const disks = queryOptions({
  queryKey: keys.disks,
  queryFn: () => known((query) => api.GET("/v1/disks", { params: { query } })),
});

function Make({ onClose, again }: { onClose: () => void; again: () => Promise<void> }) {
  const all = useQuery(disks);
  const [name, setName] = useState("");
  const [kind, setKind] = useState<"share" | "lun">("share");
  const [path, setPath] = useState("");
  const [lun, setLun] = useState("");
  const [fs, setFs] = useState<Schemas["FsKind"]>("xfs");
  const empty = all.data?.filter(
    (disk) => !disk.volume && disk.nodes.some((node) => node.holds === "nothing"),
  );
  const body: Schemas["VolumeCreateBody"] =
    kind === "share" ? { kind, name, path } : { kind, name, lun, fs, adopt: false };
  const options = kind === "share" ? `--share ${shell(path || "PATH")}` : `--lun ${shell(lun || "ID")} --fs ${fs}`;
  return (
    <FormDialog
      title="Add a volume"
      label="Add"
      ready={name !== "" && (kind === "share" ? path.startsWith("/") : lun !== "")}
      command={`muster volume create ${shell(name || "NAME")} ${options}`}
      call={`POST /v1/volumes\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () => {
        await value(api.POST("/v1/volumes", { body }));
        await again();
      }}
    >
      <Field label="Name">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="What it is">
        {(ids) => (
          <select {...ids} value={kind} onChange={(event) => setKind(event.target.value as "share" | "lun")}>
            <option value="share">a directory that every node mounts, such as NFS</option>
            <option value="lun">a LUN that every node has a path to</option>
          </select>
        )}
      </Field>
      {kind === "share" ? (
        <Field label="Directory" hint="The same path on every node; it must exist. It is marked, so that a node on which it is not mounted says so">
          {(ids) => <input {...ids} autoComplete="off" value={path} onChange={(event) => setPath(event.target.value)} />}
        </Field>
      ) : (
        <>
          <Field
            label="LUN"
            hint={empty?.length === 0 ? "No empty LUN is seen; what there is: muster disk list" : "Only empty ones; it is formatted"}
          >
            {(ids) => (
              <select {...ids} value={lun} onChange={(event) => setLun(event.target.value)}>
                <option value="">choose …</option>
                {empty?.map((disk) => (
                  <option key={disk.lun} value={disk.lun}>
                    {disk.lun}, {bytes(disk.size)}
                  </option>
                ))}
              </select>
            )}
          </Field>
          <Field label="File system">
            {(ids) => (
              <select {...ids} value={fs} onChange={(event) => setFs(event.target.value as Schemas["FsKind"])}>
                <option value="xfs">XFS</option>
                <option value="ext4">ext4</option>
              </select>
            )}
          </Field>
        </>
      )}
      {all.error && kind === "lun" && <Trouble error={all.error} />}
    </FormDialog>
  );
}
