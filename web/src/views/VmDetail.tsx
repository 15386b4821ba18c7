// One machine: how it is, what it is made of, what is done to it, and its console.

import { useQuery } from "@tanstack/react-query";
import { createLazyRoute, Link } from "@tanstack/react-router";
import { lazy, Suspense, useEffect, useState } from "react";
import { Failure, type Schemas } from "../api/client";
import { vm as vmQuery } from "../api/queries";
import { bytes, heartbeat, length, mayDo, phaseTone, when, word } from "../parts/format";
import { Badge, Button, Facts, Section, Table, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";
import { ActionBar } from "./ActionBar";
import { Charts } from "./Charts";
import { Disks, Nics } from "./Devices";
import { EditVm } from "./EditVm";
import { EventLines } from "./Events";
import { History } from "./History";
import { Migrate } from "./Migrate";
import { MoveStorage } from "./MoveStorage";
import { OpLines } from "./Operations";
import { Thumbnail } from "./Thumbnail";

// Terminal and screen are larger than all the rest, and few pages need them.
const Console = lazy(() => import("./Console"));
const Screen = lazy(() => import("./Screen"));

export const route = createLazyRoute("/vms/$vm")({ component: VmDetail });

type VmView = Schemas["VmView"];

/** How often the small picture of the screen is taken, in milliseconds. */
const THUMBNAIL_MS = 5_000;

/** Ways to sit before a machine. */
const CONSOLES = [
  { what: "screen", label: "Screen" },
  { what: "serial", label: "Console" },
] as const;

function VmDetail() {
  const { vm: id } = route.useParams();
  const asked = useQuery(vmQuery(id));
  if (asked.error && (!asked.data || Failure.of(asked.error).status === 404)) {
    return (
      <>
        <Trouble error={asked.error} />
        <p>
          <Link to="/vms">To all machines</Link>
        </p>
      </>
    );
  }
  if (!asked.data) return <Waiting what="the machine" />;
  return (
    <>
      {asked.error && <Trouble error={asked.error} what="What is shown is old" />}
      <Shown vm={asked.data} />
    </>
  );
}

function Shown({ vm }: { vm: VmView }) {
  const role = useRole();
  const [dialog, setDialog] = useState<"edit" | "migrate" | "storage" | null>(null);
  const [open, setOpen] = useState<"screen" | "serial" | null>(null);
  const operator = mayDo(role, "operator") ? undefined : "This needs the role operator.";
  const runs = vm.phase === "running" || vm.phase === "paused";
  useEffect(() => {
    document.title = `${vm.name} · Muster`;
  }, [vm.name]);
  return (
    <>
      <p className="crumbs">
        <Link to="/vms">Machines</Link> /
      </p>
      <div className="page-head">
        <h1>{vm.name}</h1>
        <Badge tone={phaseTone(vm.phase)}>{vm.phase}</Badge>
        <span className="quiet-text">on {vm.node}</span>
      </div>
      {vm.note && <p className="problem">{vm.note}</p>}
      {vm.description && <p>{vm.description}</p>}
      <div className="action-lines">
        <ActionBar targets={[vm]} label={`What to do with ${vm.name}`} />
        <div className="actions" role="group" aria-label="More">
          <Button why={operator} onPress={() => setDialog("migrate")}>
            Move …
          </Button>
          <Button why={operator} onPress={() => setDialog("edit")}>
            Change …
          </Button>
          <Button why={operator} onPress={() => setDialog("storage")}>
            Move disks …
          </Button>
          {CONSOLES.map(({ what, label }) => (
            <Button
              key={what}
              why={operator ?? (runs ? undefined : "It has a console only while it runs.")}
              onPress={() => setOpen(open === what ? null : what)}
              aria-expanded={open === what}
            >
              {open === what ? `Close ${label.toLowerCase()}` : label}
            </Button>
          ))}
        </div>
      </div>
      {vm.op && <OpLines ops={[vm.op]} none="" />}
      {runs && operator === undefined && open !== "screen" && (
        <Thumbnail vm={vm.id} name={vm.name} again={THUMBNAIL_MS} />
      )}
      {open && (
        <Section title={open === "screen" ? "Screen" : "Serial console"}>
          <Suspense fallback={<Waiting what="the console" />}>
            {open === "screen" ? (
              <Screen vm={vm.id} name={vm.name} />
            ) : (
              <Console vm={vm.id} name={vm.name} />
            )}
          </Suspense>
        </Section>
      )}
      <div className="columns">
        <Run vm={vm} />
        <Guest guest={vm.guest} />
      </div>
      <Charts of={{ what: "vm", id: vm.id, name: vm.name, runs }} />
      <Disks vm={vm} />
      <Nics vm={vm} />
      <Settings vm={vm} />
      <History vm={vm} />
      <Section title="Last events">
        <EventLines
          most={20}
          keep={(event) => event.subject.type === "vm" && event.subject.id === vm.id}
        />
      </Section>
      {dialog === "edit" && <EditVm vm={vm} onClose={() => setDialog(null)} />}
      {dialog === "migrate" && <Migrate vm={vm} onClose={() => setDialog(null)} />}
      {dialog === "storage" && <MoveStorage vm={vm} onClose={() => setDialog(null)} />}
    </>
  );
}

function Run({ vm }: { vm: VmView }) {
  const { run } = vm;
  const exit = vm.last_exit;
  return (
    <Section title="Now">
      <Facts
        facts={[
          ["Processors", run ? `${run.cpus}, ${run.cpu_percent} % of one used` : `${vm.cpus.count}`],
          ["Memory", bytes(run?.memory ?? vm.memory.size)],
          ["On the host", run ? `${bytes(run.resident)} resident, process ${run.pid}` : "no process"],
          ["Runs since", run ? when(run.started) : undefined],
          ["Lies on", vm.volume ? `volume ${vm.volume}` : `the disks of ${vm.node}`],
          ["Accelerator", run ? `${run.accelerator.toUpperCase()}: ${run.accelerator_reason}` : undefined],
          ["QEMU", run?.qemu],
          ["Not enforced here", run?.missing_limits.join(", ")],
          ["Last run ended", exit ? `${word(exit.kind)}, ${when(exit.at)}: ${exit.detail}` : undefined],
          ["Saved", vm.saved ? "its memory is on disk; starting it goes on from there" : undefined],
        ]}
      />
    </Section>
  );
}

function Guest({ guest }: { guest: Schemas["GuestView"] }) {
  return (
    <Section title="Guest">
      <Facts
        facts={[
          ["Heartbeat", heartbeat(guest.heartbeat)],
          ["Host name", guest.hostname],
          ["System", guest.os],
          ["Kernel", guest.kernel],
          ["Agent", guest.agent],
          ["Time zone", guest.timezone],
          ["Signed in", guest.users.join(", ")],
          ["File systems", guest.frozen ? "frozen" : undefined],
        ]}
      />
      {guest.filesystems.length > 0 && (
        <Table label="File systems of the guest" head={["Mounted at", "Type", "Used"]}>
          {guest.filesystems.map((fs) => (
            <tr key={fs.mountpoint}>
              <th scope="row">{fs.mountpoint}</th>
              <td>{fs.kind}</td>
              <td>
                {bytes(fs.used)} of {bytes(fs.total)}
              </td>
            </tr>
          ))}
        </Table>
      )}
    </Section>
  );
}

function Settings({ vm }: { vm: VmView }) {
  return (
    <Section title="Settings">
      <Facts
        facts={[
          ["Processors", `${vm.cpus.count}, at most ${vm.cpus.max} without a stop`],
          ["Memory", `${bytes(vm.memory.size)}, at most ${bytes(vm.memory.max)} without a stop`],
          ["Firmware", vm.firmware === "uefi" ? "UEFI" : "BIOS"],
          ["Devices", word(vm.profile)],
          ["After a crash", word(vm.on_crash)],
          ["Machine type", vm.pinned.machine_type],
          ["Processor model", vm.pinned.cpu_model],
          ["Tags", vm.tags.join(", ")],
          ["Created", when(vm.created)],
          ["Age", length(Date.now() - vm.created)],
          ["Id", vm.id],
        ]}
      />
    </Section>
  );
}
