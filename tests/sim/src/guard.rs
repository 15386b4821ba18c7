//! What lives on a host beside the daemon: the guard, the machines, the control group above them.
//!
//! The guard is `muster guard` with the real [`NodeLease`] and a group that is a word in memory; what
//! it does, and in which order it stores and answers, is that of `cluster/src/guard/serve.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use cluster::guard::GuardGone;
use cluster::guard::GuardLine;
use cluster::guard::GuardWay;
use cluster::guard::Status;
use cluster::guard::boot_time;
use cluster::guard::wire;
use cluster::guard::wire::Ask;
use cluster::guard::wire::Reply;
use cluster::lease::EndAll;
use cluster::lease::Grant;
use cluster::lease::Held;
use cluster::lease::Mode;
use cluster::lease::NodeLease;
use cluster::lease::NotTaken;
use cluster::lease::Stage;
use model::Generation;
use model::VmId;

use crate::drivers::Attempt;
use crate::drivers::Saving;
use crate::ground::Ground;
use crate::ground::lock;
use crate::plant::Plant;

/// A process of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Under which right to run.
    pub(crate) generation: Generation,
    /// For which epoch of its node it was started.
    pub(crate) epoch: u64,
    /// Whether its processors run, as far as QEMU is concerned.
    pub(crate) cpus: bool,
    /// It stands because all of its guest was sent to another host.
    pub(crate) sent: bool,
    /// It was made for a guest of another host.
    pub(crate) arrival: Option<Arrival>,
    /// Its guest stands, and its memory is being written.
    pub(crate) saving: Option<Saving>,
    /// It was made from the memory of a guest that had stopped then.
    pub(crate) memory: Option<u64>,
}

/// What a machine has of a guest that comes from another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) attempt: Attempt,
    /// When the guest stopped at the other host, once all of it has come.
    pub(crate) full: Option<u64>,
}

impl Machine {
    /// A machine that does not run yet.
    pub(crate) fn new(generation: Generation, epoch: u64) -> Self {
        Self {
            generation,
            epoch,
            cpus: false,
            sent: false,
            arrival: None,
            saving: None,
            memory: None,
        }
    }
}

/// What is on a host beside its daemon.
pub(crate) struct Body {
    pub(crate) name: String,
    pub(crate) ground: Arc<Ground>,
    /// The guard, while its process lives.
    pub(crate) guard: Option<NodeLease>,
    /// What it has stored; gone when the host boots.
    stored: Held,
    stage: Stage,
    /// The control group above all machines.
    pub(crate) frozen: bool,
    pub(crate) machines: BTreeMap<VmId, Machine>,
    /// When its machines were ended last by a loss of power or by its guard.
    pub(crate) emptied: Option<u64>,
}

/// The daemon's way to the guard.
pub(crate) struct Door(pub(crate) Arc<Mutex<Body>>);

struct Line(Arc<Mutex<Body>>);

impl Body {
    pub(crate) fn new(name: String, ground: Arc<Ground>) -> Self {
        Self {
            name,
            ground,
            guard: None,
            stored: Held::default(),
            stage: Stage::Blocked,
            frozen: false,
            machines: BTreeMap::new(),
            emptied: None,
        }
    }

    /// The host has lost its power.
    pub(crate) fn power_off(&mut self) {
        self.machines.clear();
        self.emptied = Some(self.ground.now());
        self.guard = None;
        self.stored = Held::default();
        self.frozen = false;
    }

    /// The guard starts, again or for the first time.
    pub(crate) fn start_guard(&mut self) {
        self.stage = Stage::Blocked;
        let mut held = self.stored.clone();
        if self.ground.has(Plant::ForgetfulGuard) {
            self.frozen = false;
            held.grant = None;
        }
        self.guard = Some(NodeLease::new(held));
    }

    /// Makes what is be what shall be.
    pub(crate) fn turn(&mut self) {
        let populated = !self.machines.is_empty();
        let forgetful = self.ground.has(Plant::ForgetfulGuard);
        let Some(guard) = &mut self.guard else { return };
        let wanted = guard.wanted(boot_time(), populated);
        self.stored = guard.held().clone();
        if self.stage != wanted.stage {
            self.ground.trace(&self.name, &format!("guard {:?}", wanted.stage));
            self.stage = wanted.stage;
        }
        self.frozen = wanted.frozen && !(forgetful && wanted.stage == Stage::Blocked);
        if wanted.kill && !self.ground.has(Plant::KeepMachines) {
            let killed: Vec<String> = self.machines.keys().map(short).collect();
            self.ground.trace(&self.name, &format!("guard kills {}", killed.join(" ")));
            self.machines.clear();
            self.emptied = Some(self.ground.now());
        }
    }

    fn answer(&mut self, ask: Ask) -> Reply {
        self.turn();
        let (mut why, mut end_first, mut ended) = (None, None, None);
        let populated = !self.machines.is_empty();
        let keep = self.ground.has(Plant::KeepMachines);
        let late = self.ground.has(Plant::CountFromAnswer);
        if let Some(guard) = &mut self.guard {
            match ask {
                Ask::Status => {}
                Ask::Enter { scope } => {
                    if !guard.enter(&scope, populated) {
                        why = Some("machines of another cluster run here".to_owned());
                    }
                }
                Ask::Grant(grant) => {
                    let sent = if late { boot_time() } else { grant.sent };
                    let grant = Grant { sent, ..grant };
                    if let Err(not) = guard.take(boot_time(), grant, populated && !keep) {
                        if let NotTaken::EndMachinesFirst { epoch } = not {
                            end_first = Some(epoch);
                        }
                        why = Some(not.to_string());
                    }
                }
                Ask::EndAll { epoch } => ended = Some(guard.end_all(epoch, populated && !keep)),
            }
            self.stored = guard.held().clone();
        }
        if let Some(ended) = ended {
            let word = if ended == EndAll::Done { "done" } else { "under way" };
            self.ground.trace(&self.name, &format!("end-all {word}"));
        }
        self.turn();
        let status = self.status();
        Reply { v: wire::VERSION, ok: why.is_none(), why, end_first, ended, status }
    }

    fn status(&self) -> Status {
        let held = &self.stored;
        let grant = held.grant;
        let until = |grant: Grant| match grant.lease.mode {
            Mode::Unlimited => cluster::lease::BootTime::from_nanos(u64::MAX),
            Mode::Proof => grant.ends_at(),
            Mode::SelfFence => grant.freeze_at(),
        };
        Status {
            pid: 1,
            group: "simulated".into(),
            now: boot_time(),
            stage: self.stage,
            epoch: held.epoch,
            key: grant.map(|grant| grant.lease.key),
            mode: grant.map(|grant| grant.lease.mode),
            start_until: grant.filter(|_| self.stage == Stage::Open).map(until),
            ends: grant
                .filter(|grant| grant.lease.mode != Mode::Unlimited)
                .map(|grant| grant.ends_at()),
            populated: !self.machines.is_empty(),
            frozen: self.frozen,
            watchdog_ms: 0,
            watchdog_armed: false,
            problem: None,
        }
    }
}

/// A VM's id, as the trace shows it.
pub(crate) fn short(vm: &VmId) -> String {
    format!("v{}", vm.uuid().as_u128() % 1_000)
}

#[async_trait]
impl GuardWay for Door {
    async fn connect(&self) -> Result<Box<dyn GuardLine>, GuardGone> {
        if lock(&self.0).guard.is_none() {
            return Err(GuardGone::new("there is none"));
        }
        Ok(Box::new(Line(self.0.clone())))
    }
}

#[async_trait]
impl GuardLine for Line {
    async fn ask(&mut self, ask: Ask) -> Result<Reply, GuardGone> {
        let mut body = lock(&self.0);
        if body.guard.is_none() {
            return Err(GuardGone::new("it has ended"));
        }
        Ok(body.answer(ask))
    }
}
