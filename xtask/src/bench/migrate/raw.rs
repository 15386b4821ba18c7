//! Raw QEMU, migrated between two processes over TCP on loopback: what a control plane is measured
//! against. The destination waits before the clock runs.
//!
//! ```text
//!   a network namespace of its own
//!     bridge br0, 10.90.3.1 ---- tap0 --- QEMU (source)  ---tcp 127.0.0.1---+
//!                          \---- tap1 --- QEMU (destination)  <-------------+
//! ```

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use super::Kind;
use super::Variant;
use super::passage::Done;
use super::passage::MIB;
use super::passage::Passage;
use super::passage::observe;
use super::qmp::Qmp;
use crate::outside::HOST;
use crate::outside::MAC;
use crate::outside::space::Space;
use crate::outside::ticks::Watch;
use crate::run::cmd;
use crate::run::quiet;
use crate::run::target;
use crate::stop;

/// The same model as Muster's, whatever the host has.
const CPU: &str = "Nehalem-v1";

/// Nobody else is in the namespace.
const INCOMING: &str = "tcp:127.0.0.1:4444";

/// Best known settings (`downtime-limit` in milliseconds, bandwidth in bytes a second: no cap).
const CHANNELS: u64 = 2;
const DOWNTIME_MS: u64 = 50;
const BANDWIDTH: u64 = 100 << 30;

/// A migration that takes longer does not converge, and is cancelled.
const LIMIT: Duration = Duration::from_secs(15);

/// How long a cancelled migration may take to end.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);

/// QEMU sets the last figures just after it says that it has completed.
const FIGURES_AFTER: Duration = Duration::from_millis(100);

/// What all raw machines have in common.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) image: PathBuf,
    /// QEMU's word for it.
    pub(super) accelerator: String,
}

/// A guest in raw QEMU, wherever it runs now.
pub(super) struct Raw {
    kind: Kind,
    plan: Plan,
    watch: Watch,
    machine: Machine,
    space: Space,
    dir: Dir,
    started: usize,
}

/// Sockets and logs; removed at the end.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A QEMU; killed when it is dropped.
struct Machine {
    child: Child,
    qmp: Qmp,
    /// Which of the two cables it has.
    cable: usize,
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Raw {
    /// Boots the guest. It rests.
    pub(super) fn boot(kind: Kind, plan: &Plan) -> Result<Self> {
        let space = Space::new()?;
        space.within(|| network().context("the network of raw QEMU"))?;
        let watch = Watch::new(&space)?;
        let dir = Dir(target().join("bench").join(format!("migrate-{}", std::process::id())));
        fs::create_dir_all(&dir.0)?;
        let machine = start(&space, &dir.0, plan, kind, 0, 0)?;
        let this = Self { kind, plan: plan.clone(), watch, machine, space, dir, started: 1 };
        this.watch.run(kind.load)?;
        this.watch.rest()?;
        Ok(this)
    }

    /// Migrates the guest to a new process; none if it does not converge.
    pub(super) fn migrate(&mut self, variant: Variant) -> Result<Option<Passage>> {
        let (number, cable) = (self.started, 1 - self.machine.cable);
        let mut to = start(&self.space, &self.dir.0, &self.plan, self.kind, number, cable)?;
        self.started += 1;
        for qmp in [&mut self.machine.qmp, &mut to.qmp] {
            set_up(qmp, variant)?;
        }
        to.qmp.call("migrate-incoming", json!({ "uri": INCOMING }))?;
        let from = &mut self.machine.qmp;
        let passage = observe(&self.watch, self.kind.load, || migrate(from))?;
        if passage.is_some() {
            self.machine = to;
        }
        Ok(passage)
    }
}

fn migrate(from: &mut Qmp) -> Result<Option<Done>> {
    from.forget();
    let began = Instant::now();
    from.call("migrate", json!({ "uri": INCOMING }))?;
    let Some((ended, state)) = from.migration(&["completed", "failed"], began + LIMIT)? else {
        from.call("migrate_cancel", json!({}))?;
        let states = ["completed", "cancelled", "failed"];
        let end = from.migration(&states, Instant::now() + CANCEL_LIMIT)?;
        ensure!(end.is_some_and(|it| it.1 == "cancelled"), "raw QEMU does not cancel");
        return Ok(None);
    };
    stop::pass(FIGURES_AFTER)?;
    let figures = from.call("query-migrate", json!({}))?;
    if state != "completed" {
        bail!("raw QEMU's migration has failed: {figures}");
    }
    let number = |value: &Value, what: &str| {
        value.as_f64().with_context(|| format!("QEMU says no {what}: {figures}"))
    };
    let total_ms = ended.duration_since(began).as_secs_f64() * 1e3;
    Ok(Some(Done {
        ended,
        total_ms,
        wall_ms: total_ms,
        pause_ms: number(&figures["downtime"], "downtime")?,
        mib: number(&figures["ram"]["transferred"], "bytes")? / MIB,
        passes: number(&figures["ram"]["dirty-sync-count"], "passes")?,
        predicted: None,
    }))
}

/// Sets everything that differs between the variants, as the guest had another one before.
fn set_up(qmp: &mut Qmp, variant: Variant) -> Result<()> {
    let best = variant == Variant::Best;
    let set = |what: &str, state: bool| json!({ "capability": what, "state": state });
    let capabilities = json!({ "capabilities": [set("events", true), set("multifd", best)] });
    qmp.call("migrate-set-capabilities", capabilities)?;
    if best {
        let parameters = json!({
            "max-bandwidth": BANDWIDTH,
            "downtime-limit": DOWNTIME_MS,
            "multifd-channels": CHANNELS,
        });
        qmp.call("migrate-set-parameters", parameters)?;
        return Ok(());
    }
    // QEMU's own (migration/options.c), after a migration with the other ones.
    let defaults = json!({ "max-bandwidth": 128 << 20, "downtime-limit": 300 });
    qmp.call("migrate-set-parameters", defaults).map(drop)
}

/// The bridge, its address and two cables. To be called within the namespace.
fn network() -> Result<()> {
    let lines = [
        "link set lo up".to_owned(),
        // With an address of its own it does not change when a cable gets its carrier.
        "link add br0 address 02:6d:62:00:00:01 type bridge stp_state 0 forward_delay 0".to_owned(),
        "link set br0 addrgenmode none up".to_owned(),
        format!("addr add {HOST} dev br0"),
        "tuntap add tap0 mode tap".to_owned(),
        "tuntap add tap1 mode tap".to_owned(),
        "link set tap0 addrgenmode none master br0 up".to_owned(),
        "link set tap1 addrgenmode none master br0 up".to_owned(),
    ];
    for line in lines {
        quiet(cmd("ip", line.split(' ')))?;
    }
    Ok(())
}

/// Starts the `number`th process of the guest; all but the first wait for its memory. In a session
/// of its own, as Muster's machines are (`bench::host::raw` says why).
fn start(
    space: &Space,
    dir: &Path,
    plan: &Plan,
    kind: Kind,
    number: usize,
    cable: usize,
) -> Result<Machine> {
    let socket = dir.join(format!("{number}.qmp"));
    let log = dir.join(format!("{number}.log"));
    // The guest only reads its disk, so that two processes may have it open.
    let disk = json!({
        "driver": "raw", "node-name": "disk", "read-only": true,
        "file": { "driver": "file", "filename": plan.image, "read-only": true },
    });
    let mut command = Command::new("setsid");
    command
        .args(["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "q35", "-accel", &plan.accelerator, "-cpu", CPU, "-smp", "1"])
        .args(["-m", &format!("size={}M", kind.memory_mib), "-blockdev", &disk.to_string()])
        .args(["-device", "virtio-blk-pci,drive=disk", "-netdev"])
        .arg(format!("tap,id=net,ifname=tap{cable},script=no,downscript=no"))
        .args(["-device", &format!("virtio-net-pci,netdev=net,mac={MAC},romfile="), "-serial"])
        .arg(format!("file:{}", dir.join(format!("{number}.serial")).display()))
        .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
    if number > 0 {
        command.args(["-incoming", "defer"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut child = space.within(|| command.spawn().context("raw QEMU cannot be started"))?;
    match Qmp::connect(&socket) {
        Ok(qmp) => Ok(Machine { child, qmp, cable }),
        Err(error) => {
            end(&mut child);
            let said = fs::read_to_string(&log).unwrap_or_default();
            Err(error).with_context(|| format!("raw QEMU said: {}", said.trim()))
        }
    }
}
