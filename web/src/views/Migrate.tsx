// Moving a machine to another node: first what speaks for and against it, then the move.

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { nodes, volumes } from "../api/queries";
import { shell } from "../parts/format";
import { useNotices } from "../parts/notices";
import { Button, Checks, Dialog, Field, Same, Trouble } from "../parts/parts";

export function Migrate({ vm, onClose }: { vm: Schemas["VmView"]; onClose: () => void }) {
  const all = useQuery(nodes);
  const places = useQuery(volumes);
  const { follow } = useNotices();
  const runs = vm.phase === "running";
  const [to, setTo] = useState("");
  const [view, setView] = useState<Schemas["VmMigrateView"] | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const others = all.data?.filter((node) => node.name !== vm.node) ?? [];
  // A machine on its node's own disks cannot go without them.
  const [along, setAlong] = useState(runs && !vm.volume);
  const [volume, setVolume] = useState("");
  const target = to === "" ? {} : { to };
  const storage = along ? { with_storage: true, ...(volume ? { volume } : {}) } : {};

  const guarded = async (work: () => Promise<void>) => {
    setBusy(true);
    setError(null);
    try {
      await work();
    } catch (error) {
      setError(error);
    }
    setBusy(false);
  };

  const check = () =>
    guarded(async () => {
      const params = { path: { vm: vm.id } };
      const body = { ...target, ...storage, dry_run: true };
      setView(await value(api.POST("/v1/vms/{vm}/migrate", { params, body })));
    });

  const go = () => {
    const params = { path: { vm: vm.id } };
    if (!runs) {
      // A machine that is off has nothing to carry over: it just gets another owner.
      return guarded(async () => {
        await value(api.POST("/v1/vms/{vm}/move", { params, body: { ...target, stop: false } }));
        onClose();
      });
    }
    onClose();
    return follow(`Migrate ${vm.name}`, async () => {
      const begun = await value(api.POST("/v1/vms/{vm}/migrate", { params, body: { ...target, ...storage, dry_run: false } }));
      if (!begun.op) throw new Error("the migration was not begun");
      return begun.op;
    });
  };

  const verb = runs ? "migrate" : "move";
  const option = [
    to === "" ? "" : ` --to ${shell(to)}`,
    along ? " --with-storage" : "",
    along && volume ? ` --volume ${shell(volume)}` : "",
  ].join("");
  return (
    <Dialog title={`Move ${vm.name}`} onClose={onClose}>
      <p>
        {runs
          ? "Its memory goes over while its guest works; then the guest stands for some milliseconds. Until it goes on there, it goes on here if anything fails."
          : `It is ${vm.phase}: it will belong to the other node, and nothing else changes.`}
      </p>
      <Field label="To" hint={others.length === 0 ? "There is no other node." : undefined}>
        {(ids) => (
          <select
            {...ids}
            value={to}
            onChange={(event) => {
              setTo(event.target.value);
              setView(null);
            }}
          >
            <option value="">the best node</option>
            {others.map((node) => (
              <option key={node.id} value={node.name}>
                {node.name}
              </option>
            ))}
          </select>
        )}
      </Field>
      {runs && (
        <label className="check">
          <input
            type="checkbox"
            checked={along}
            onChange={(event) => {
              setAlong(event.target.checked);
              setView(null);
            }}
          />
          Take its disks along
        </label>
      )}
      {along && (
        <Field label="Its disks go to" hint="They are copied first, while it works; the old ones are removed last">
          {(ids) => (
            <select
              {...ids}
              value={volume}
              onChange={(event) => {
                setVolume(event.target.value);
                setView(null);
              }}
            >
              <option value="">the other node&apos;s own disks</option>
              {places.data?.map((place) => <option key={place.id}>{place.name}</option>)}
            </select>
          )}
        </Field>
      )}
      {error !== null && <Trouble error={error} />}
      {view && (
        <Checks checks={view.checks}>
          From {view.from} to <strong>{view.to}</strong>:{" "}
          {view.fits ? "nothing speaks against it." : "it cannot be, as things are."}
        </Checks>
      )}
      <Same
        command={`muster vm ${verb} ${shell(vm.name)}${option}`}
        call={`POST /v1/vms/${vm.id}/${verb}\n${JSON.stringify({ ...target, ...storage })}`}
      />
      <div className="dialog-buttons">
        <Button onPress={onClose}>Leave it here</Button>
        {runs && (
          <Button isDisabled={busy} onPress={() => void check()}>
            {busy ? "Looking …" : "Look whether it can"}
          </Button>
        )}
        <Button
          kind="main"
          isDisabled={busy}
          why={view && !view.fits ? "Something speaks against it, see above." : undefined}
          onPress={() => void go()}
        >
          Move
        </Button>
      </div>
    </Dialog>
  );
}
