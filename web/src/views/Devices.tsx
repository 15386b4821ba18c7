// Disks and adapters of a machine: what there is, and adding, growing, unplugging and removing them,
// while it runs if it runs.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { images, keys, networks } from "../api/queries";
import { bytes, mayDo, parseBytes, shell } from "../parts/format";
import { FormDialog } from "../parts/form";
import { useNotices } from "../parts/notices";
import { Button, Field, Section, Table } from "../parts/parts";
import { useRole } from "../session";

type VmView = Schemas["VmView"];
type DiskView = Schemas["DiskView"];
type NicView = Schemas["NicView"];

/** What a dialog begins, under which words. */
type Begin = (title: string, work: () => Promise<Schemas["OpView"]>) => void;

function useBegin(vm: VmView): Begin {
  const client = useQueryClient();
  const { follow } = useNotices();
  return (title, work) =>
    void follow(title, work).then(() => client.invalidateQueries({ queryKey: keys.vm(vm.id) }));
}

function useWhy(): string | undefined {
  return mayDo(useRole(), "operator") ? undefined : "This needs the role operator.";
}

export function Disks({ vm }: { vm: VmView }) {
  const why = useWhy();
  const begin = useBegin(vm);
  const [adding, setAdding] = useState(false);
  const [growing, setGrowing] = useState<DiskView | null>(null);
  const [removing, setRemoving] = useState<DiskView | null>(null);
  const { disks } = vm;
  return (
    <Section
      title="Disks"
      beside={
        <Button why={why} onPress={() => setAdding(true)}>
          Add a disk …
        </Button>
      }
    >
      {disks.length === 0 ? (
        <p>None.</p>
      ) : (
        <Table label="Disks" head={["Name", "Size", "On the host", "Copy of", "Format", "Do"]}>
          {disks.map((disk) => (
            <tr key={disk.id}>
              <th scope="row">{disk.name}</th>
              <td>{bytes(disk.size)}</td>
              <td>{bytes(disk.allocated)}</td>
              <td>{disk.image ?? "–"}</td>
              <td>
                {disk.format}
                {disk.read_only ? ", read only" : ""}
              </td>
              <td className="row-buttons">
                <Button why={why} aria-label={`Grow ${disk.name}`} onPress={() => setGrowing(disk)}>
                  Grow …
                </Button>
                <Button
                  kind="danger"
                  why={why}
                  aria-label={`Remove ${disk.name}`}
                  onPress={() => setRemoving(disk)}
                >
                  Remove …
                </Button>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {adding && <AddDisk vm={vm} begin={begin} onClose={() => setAdding(false)} />}
      {growing && <GrowDisk vm={vm} disk={growing} begin={begin} onClose={() => setGrowing(null)} />}
      {removing && (
        <Remove
          vm={vm}
          noun="disk"
          name={removing.name}
          loses={`All that is on ${removing.name} (${bytes(removing.allocated)}) is deleted, and does not go to the recycle bin.`}
          path={`disks/${removing.id}`}
          onClose={() => setRemoving(null)}
          onYes={() => {
            const params = { path: { vm: vm.id, disk: removing.id } };
            begin(`Remove ${removing.name} of ${vm.name}`, () =>
              value(api.DELETE("/v1/vms/{vm}/disks/{disk}", { params })),
            );
          }}
        />
      )}
    </Section>
  );
}

export function Nics({ vm }: { vm: VmView }) {
  const why = useWhy();
  const begin = useBegin(vm);
  const [adding, setAdding] = useState(false);
  const [changing, setChanging] = useState<NicView | null>(null);
  const [removing, setRemoving] = useState<NicView | null>(null);
  const { nics } = vm;
  return (
    <Section
      title="Network adapters"
      beside={
        <Button why={why} onPress={() => setAdding(true)}>
          Add an adapter …
        </Button>
      }
    >
      {nics.length === 0 ? (
        <p>None.</p>
      ) : (
        <Table label="Network adapters" head={["Name", "Network", "Addresses", "MAC", "Cable", "Do"]}>
          {nics.map((nic) => (
            <tr key={nic.id}>
              <th scope="row">{nic.name}</th>
              <td>{nic.network}</td>
              <td>{(nic.addresses.length > 0 ? nic.addresses : [nic.reserved_address ?? "–"]).join(", ")}</td>
              <td>{nic.mac}</td>
              <td>{nic.link_up ? "in" : "out"}</td>
              <td className="row-buttons">
                <Button why={why} aria-label={`Change ${nic.name}`} onPress={() => setChanging(nic)}>
                  Change …
                </Button>
                <Button
                  kind="danger"
                  why={why}
                  aria-label={`Remove ${nic.name}`}
                  onPress={() => setRemoving(nic)}
                >
                  Remove …
                </Button>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {adding && <NicDialog vm={vm} begin={begin} onClose={() => setAdding(false)} />}
      {changing && <NicDialog vm={vm} nic={changing} begin={begin} onClose={() => setChanging(null)} />}
      {removing && (
        <Remove
          vm={vm}
          noun="nic"
          name={removing.name}
          loses={`Connections over ${removing.name} end; its addresses may go to others.`}
          path={`nics/${removing.id}`}
          onClose={() => setRemoving(null)}
          onYes={() => {
            const params = { path: { vm: vm.id, nic: removing.id } };
            begin(`Remove ${removing.name} of ${vm.name}`, () =>
              value(api.DELETE("/v1/vms/{vm}/nics/{nic}", { params })),
            );
          }}
        />
      )}
    </Section>
  );
}

interface Props {
  vm: VmView;
  begin: Begin;
  onClose: () => void;
}

function AddDisk({ vm, begin, onClose }: Props) {
  const all = useQuery(images);
  const [name, setName] = useState("");
  const [size, setSize] = useState("");
  const [image, setImage] = useState("");
  const [readOnly, setReadOnly] = useState(false);
  const wanted = size === "" ? null : parseBytes(size);
  const bad = size === "" ? image === "" : wanted === null;
  const body: Schemas["DiskAddBody"] = {
    ...(name ? { name } : {}),
    ...(wanted ? { size: wanted } : {}),
    ...(image ? { image } : {}),
    ...(readOnly ? { read_only: true } : {}),
  };
  const options = [
    wanted ? ` --size ${shell(size.replaceAll(" ", ""))}` : "",
    name ? ` --name ${shell(name)}` : "",
    image ? ` --image ${shell(image)}` : "",
    readOnly ? " --read-only" : "",
  ].join("");
  return (
    <FormDialog
      title={`Add a disk to ${vm.name}`}
      label="Add"
      ready={!bad}
      command={`muster vm disk add ${shell(vm.name)}${options}`}
      call={`POST /v1/vms/${vm.id}/disks\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () =>
        begin(`Add a disk to ${vm.name}`, () =>
          value(api.POST("/v1/vms/{vm}/disks", { params: { path: { vm: vm.id } }, body })),
        )
      }
    >
      <Field label="Name" hint="The next free one if left out">
        {(ids) => <input {...ids} autoComplete="off" value={name} onChange={(event) => setName(event.target.value)} />}
      </Field>
      <Field label="Thin copy of">
        {(ids) => (
          <select {...ids} value={image} onChange={(event) => setImage(event.target.value)}>
            <option value="">nothing: it is blank</option>
            {all.data?.map((image) => <option key={image.id}>{image.name}</option>)}
          </select>
        )}
      </Field>
      <Field
        label="Size"
        hint={image ? "The image's size if left out" : "Such as 20G; it takes space as it is written"}
        error={size !== "" && wanted === null ? "A size such as 512M or 20G" : undefined}
      >
        {(ids) => <input {...ids} value={size} onChange={(event) => setSize(event.target.value)} />}
      </Field>
      <label className="check">
        <input type="checkbox" checked={readOnly} onChange={(event) => setReadOnly(event.target.checked)} />
        Read only
      </label>
    </FormDialog>
  );
}

function GrowDisk({ vm, disk, begin, onClose }: Props & { disk: DiskView }) {
  const [size, setSize] = useState("");
  const wanted = parseBytes(size);
  const more = wanted !== null && wanted > disk.size;
  const error = wanted === null ? "A size such as 40G" : more ? undefined : "A disk cannot shrink";
  return (
    <FormDialog
      title={`Grow ${disk.name} of ${vm.name}`}
      label="Grow"
      ready={more}
      command={`muster vm disk resize ${shell(vm.name)} ${shell(disk.name)} ${shell(size.replaceAll(" ", "") || "SIZE")}`}
      call={`POST /v1/vms/${vm.id}/disks/${disk.id}/resize\n${JSON.stringify({ size: wanted })}`}
      onClose={onClose}
      onSubmit={async () => {
        const params = { path: { vm: vm.id, disk: disk.id } };
        const body = { size: wanted ?? 0 };
        begin(`Grow ${disk.name} of ${vm.name}`, () =>
          value(api.POST("/v1/vms/{vm}/disks/{disk}/resize", { params, body })),
        );
      }}
    >
      <Field
        label="New size"
        hint={`Now ${bytes(disk.size)}; partitions and file systems are the guest's to grow`}
        error={size === "" ? undefined : error}
      >
        {(ids) => <input {...ids} value={size} onChange={(event) => setSize(event.target.value)} />}
      </Field>
    </FormDialog>
  );
}

/** A new adapter, or changes of one. */
function NicDialog({ vm, nic, begin, onClose }: Props & { nic?: NicView }) {
  const nets = useQuery(networks);
  const [network, setNetwork] = useState<string>(nic?.network ?? "nat");
  const [address, setAddress] = useState(nic?.reserved_address ?? "");
  const [linkUp, setLinkUp] = useState(nic?.link_up ?? true);
  const body: Schemas["NicChange"] = {
    ...(network !== nic?.network ? { network } : {}),
    ...(address !== (nic?.reserved_address ?? "") ? { address } : {}),
    ...(nic && linkUp !== nic.link_up ? { link_up: linkUp } : {}),
  };
  const options = [
    body.network ? ` --network ${shell(network)}` : "",
    body.address ? ` --address ${shell(address)}` : "",
    body.link_up === undefined ? "" : ` --link ${linkUp ? "on" : "off"}`,
  ].join("");
  const verb = nic ? `set ${shell(vm.name)} ${shell(nic.name)}` : `add ${shell(vm.name)}`;
  const title = nic ? `Change ${nic.name} of ${vm.name}` : `Add an adapter to ${vm.name}`;
  return (
    <FormDialog
      title={title}
      label={nic ? "Change" : "Add"}
      ready={Object.keys(body).length > 0}
      command={`muster vm nic ${verb}${options}`}
      call={`${nic ? "PATCH" : "POST"} /v1/vms/${vm.id}/nics${nic ? `/${nic.id}` : ""}\n${JSON.stringify(body)}`}
      onClose={onClose}
      onSubmit={async () =>
        begin(title, () =>
          nic
            ? value(
                api.PATCH("/v1/vms/{vm}/nics/{nic}", {
                  params: { path: { vm: vm.id, nic: nic.id } },
                  body,
                }),
              )
            : value(api.POST("/v1/vms/{vm}/nics", { params: { path: { vm: vm.id } }, body })),
        )
      }
    >
      <Field label="Network">
        {(ids) => (
          <select {...ids} value={network} onChange={(event) => setNetwork(event.target.value)}>
            {!nets.data?.some((net) => net.name === network) && <option>{network}</option>}
            {nets.data?.map((net) => <option key={net.id}>{net.name}</option>)}
          </select>
        )}
      </Field>
      <Field label="Address" hint="On a network of the host's own; the first free one if left out">
        {(ids) => (
          <input {...ids} autoComplete="off" value={address} onChange={(event) => setAddress(event.target.value)} />
        )}
      </Field>
      {nic && (
        <label className="check">
          <input type="checkbox" checked={linkUp} onChange={(event) => setLinkUp(event.target.checked)} />
          The cable is in
        </label>
      )}
    </FormDialog>
  );
}

function Remove({ vm, noun, name, loses, path, onClose, onYes }: {
  vm: VmView;
  noun: "disk" | "nic";
  name: string;
  loses: string;
  path: string;
  onClose: () => void;
  onYes: () => void;
}) {
  return (
    <FormDialog
      title={`Remove ${name} of ${vm.name}?`}
      label="Remove"
      ready
      danger
      command={`muster vm ${noun} remove ${shell(vm.name)} ${shell(name)}`}
      call={`DELETE /v1/vms/${vm.id}/${path}`}
      onClose={onClose}
      onSubmit={async () => onYes()}
    >
      <p>{loses}</p>
    </FormDialog>
  );
}
