// Moving a machine with all its disks to another volume: first what speaks against it, then the move.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { keys, volumes } from "../api/queries";
import { shell } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Button, Checks, Dialog, Field, Same, Trouble } from "../parts/parts";

/** Stands for the disks of the machine's node, in the list of places. No volume can have this name. */
const LOCAL = "/";

export function MoveStorage({ vm, onClose }: { vm: Schemas["VmView"]; onClose: () => void }) {
  const client = useQueryClient();
  const all = useQuery(volumes);
  const { follow } = useNotices();
  const [to, setTo] = useState("");
  const [view, setView] = useState<Schemas["VmMoveStorageView"] | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const places = all.data?.filter((volume) => volume.name !== vm.volume) ?? [];
  const target = to === LOCAL ? {} : { to };
  const params = { path: { vm: vm.id } };

  const check = async () => {
    setBusy(true);
    setError(null);
    try {
      const body = { ...target, dry_run: true };
      setView(await value(api.POST("/v1/vms/{vm}/move-storage", { params, body })));
    } catch (error) {
      setError(error);
    }
    setBusy(false);
  };

  const go = () => {
    onClose();
    void follow(`Move the disks of ${vm.name}`, async () => {
      const body = { ...target, dry_run: false };
      const begun = await value(api.POST("/v1/vms/{vm}/move-storage", { params, body }));
      if (!begun.op) throw new Error("the move was not begun");
      return begun.op;
    }).then(() => client.invalidateQueries({ queryKey: keys.vm(vm.id) }));
  };

  const option = to === LOCAL ? "--local" : `--to ${shell(to || "VOLUME")}`;
  return (
    <Dialog title={`Move the disks of ${vm.name}`} onClose={onClose}>
      <p>
        All its disks are copied while its guest works; at the end the guest stands while the last writes
        are flushed and the cluster decides. Until then it goes on here if anything fails.
      </p>
      <Field
        label="To"
        hint={to === LOCAL ? "Other nodes cannot take it over from there." : `Now: ${vm.volume ?? `the disks of ${vm.node}`}`}
      >
        {(ids) => (
          <select
            {...ids}
            value={to}
            onChange={(event) => {
              setTo(event.target.value);
              setView(null);
            }}
          >
            <option value="">choose …</option>
            {places.map((volume) => (
              <option key={volume.id}>{volume.name}</option>
            ))}
            {vm.volume && <option value={LOCAL}>the disks of {vm.node}</option>}
          </select>
        )}
      </Field>
      {error !== null && <Trouble error={error} />}
      {view && (
        <Checks checks={view.checks}>
          {view.fits ? "Nothing speaks against it." : "It cannot be, as things are."}
        </Checks>
      )}
      <Same
        command={`muster vm move-storage ${shell(vm.name)} ${option}`}
        call={`POST /v1/vms/${vm.id}/move-storage\n${JSON.stringify(target)}`}
      />
      <div className="dialog-buttons">
        <Button onPress={onClose}>Leave them here</Button>
        <Button isDisabled={busy || to === ""} onPress={() => void check()}>
          {busy ? "Looking …" : "Look whether it can"}
        </Button>
        <Button
          kind="main"
          isDisabled={busy || to === ""}
          why={view && !view.fits ? "Something speaks against it, see above." : undefined}
          onPress={go}
        >
          Move
        </Button>
      </div>
    </Dialog>
  );
}
