//! What the drivers of the VMs do on a host: the rules of `vm::lifecycle`, with a fake process.
//!
//! ```text
//!   each turn:  words of other hosts, machines that wait   (target.rs)
//!               nothing more before the newest state is known (node::hub)
//!               machines of VMs that are not this host's   end
//!               a VM with a migration under way            (source.rs)
//!               every other one                            vm::lifecycle::machine::settle
//! ```
//!
//! What a daemon knows of migrations ends with it ([`Migrations`]); machines stay.

mod saved;
mod source;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use model::ClusterState;
use model::Command;
use model::Generation;
use model::OpId;
use model::OpRequest;
use model::UnixMillis;
use model::VmId;
use model::VmRecord;
use node::simulation::Daemon;
use node::truth::Truth;
use vm::lifecycle::machine::Actual;
use vm::lifecycle::machine::Cpus;
use vm::lifecycle::machine::Settle;
use vm::lifecycle::machine::is_of_present_run;
use vm::lifecycle::machine::settle;

pub(crate) use saved::Saving;

use crate::guard::Body;
use crate::guard::Machine;
use crate::guard::short;
use crate::host::EPOCH_MS;
use crate::host::Host;
use crate::host::TICK_MS;
use crate::host::Volume;
use crate::host::proposal;
use crate::plant::Plant;
use crate::wire::Wire;

/// One attempt to migrate: a connection, in the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) op: OpId,
    /// When the source began with it, in milliseconds.
    pub(crate) begun: u64,
}

/// What the two ends of a migration say to each other.
#[derive(Debug, Clone)]
pub(crate) enum Word {
    /// Make a machine that waits.
    Prepare { attempt: Attempt, vm: VmId, generation: Generation },
    /// It waits.
    Ready(Attempt),
    /// It cannot be, or it is not there any more.
    Cannot(Attempt),
    /// The last of the guest's memory, as it was when its processors stopped at that time.
    Last { attempt: Attempt, stood: u64 },
    /// The target has everything.
    Loaded(Attempt),
    /// The machine is not needed.
    Abandon(OpId),
}

/// What a daemon knows of migrations.
#[derive(Default)]
pub(crate) struct Migrations {
    /// What was said to this host since its last turn, and by whom.
    pub(crate) mail: Vec<(usize, Word)>,
    sending: BTreeMap<VmId, source::Sending>,
    /// Operations whose end is being reported, or is another node's to report.
    ended: BTreeMap<VmId, OpId>,
    /// Of those, what the state has refused lately: performed again while it goes on, as a driver does.
    refused: Arc<Mutex<Vec<(VmId, OpId)>>>,
    asked: Vec<target::Asked>,
    waiting: BTreeMap<VmId, target::Waiting>,
}

/// A machine that is being launched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    generation: Generation,
    epoch: u64,
    done: u64,
}

/// What a driver has before it.
struct Scene<'a> {
    daemon: &'a Arc<Daemon>,
    state: &'a ClusterState,
    body: &'a mut Body,
    volume: &'a mut Volume,
    wire: &'a Wire,
}

impl Migrations {
    /// The daemon has ended, and its connections with it: an engine that has not sent everything
    /// lets its guest go on by itself.
    pub(crate) fn break_off(&mut self, body: &mut Body) {
        for (vm, _) in self.sending.iter().filter(|(_, sending)| sending.is_unfinished()) {
            if let Some(machine) = body.machines.get_mut(vm) {
                machine.cpus = true;
            }
        }
        *self = Self::default();
    }
}

impl Host {
    /// One turn of all drivers.
    pub(crate) fn drive(&mut self, wire: &Wire, volume: &mut Volume) {
        let Some(daemon) = self.daemon() else { return };
        let state = daemon.truth().state();
        let body = self.body.clone();
        let mut body = crate::ground::lock(&body);
        let scene = &mut Scene { daemon: &daemon, state: &state, body: &mut body, volume, wire };
        self.receive(scene);
        if !self.knows_the_newest() {
            return;
        }
        self.end_strays(scene);
        self.migrations.forget(&state, self.id);
        let me = self.id;
        for record in state.vms.values().filter(|vm| vm.owner == me) {
            let op = record.busy().and_then(|op| state.ops.get(&op));
            match op.map(|op| (op, &op.request)) {
                Some((op, OpRequest::VmMigrate { to, .. })) => {
                    self.end_older(record, scene);
                    self.migrate(scene, record, op, *to);
                }
                Some((op, OpRequest::VmSave { .. })) => {
                    self.end_older(record, scene);
                    self.save(scene, record, op);
                }
                Some((op, OpRequest::VmStart { .. } | OpRequest::VmResume { .. }))
                    if !crate::setup::founds(op.id) =>
                {
                    self.end_older(record, scene);
                    self.start_vm(scene, record, op);
                }
                // Whoever founds the cluster ends the others itself.
                Some(_) => {}
                None => {
                    self.end_older(record, scene);
                    self.settle(scene, record);
                }
            }
        }
    }

    /// Ends machines of VMs that are not this host's, but for those that wait.
    fn end_strays(&mut self, scene: &mut Scene) {
        if self.ground.has(Plant::OldGeneration) {
            return;
        }
        let owned = |vm: &VmId| scene.state.vms.get(vm).is_some_and(|vm| vm.owner == self.id);
        let waits = |vm: &VmId| self.migrations.waiting.contains_key(vm);
        let all = scene.body.machines.keys();
        let strays: Vec<VmId> = all.filter(|vm| !owned(vm) && !waits(vm)).copied().collect();
        for vm in strays {
            self.trace(&format!("ends {}, which is not its own", short(&vm)));
            scene.body.machines.remove(&vm);
            self.launches.remove(&vm);
        }
    }

    /// Ends a machine of another run: what a driver does with what it finds at its start.
    fn end_older(&mut self, record: &VmRecord, scene: &mut Scene) {
        let Some(machine) = scene.body.machines.get(&record.id) else { return };
        let arrival = match self.ground.has(Plant::AnyArrival) {
            true => record.arrived_by(),
            false => machine.arrival.map(|arrival| arrival.attempt.op),
        };
        let heedless = self.ground.has(Plant::OldGeneration);
        if !heedless && !is_of_present_run(record, machine.generation, arrival) {
            self.trace(&format!("ends {}, which is of another run", short(&record.id)));
            scene.body.machines.remove(&record.id);
            self.launches.remove(&record.id);
        }
    }

    fn settle(&mut self, scene: &mut Scene, record: &VmRecord) {
        let (vm, heedless) = (record.id, self.ground.has(Plant::OldGeneration));
        let actual = match scene.body.machines.get(&vm) {
            None => Actual::Absent,
            Some(machine) if heedless && machine.cpus => return,
            Some(machine) => {
                let cpus = if machine.cpus { Cpus::Run } else { Cpus::Stand };
                // Half of a guest has no right to run, whatever its number.
                let half = machine.arrival.is_some_and(|arrival| arrival.full.is_none());
                let generation = match half && !self.ground.has(Plant::AnyArrival) {
                    true => Generation::default(),
                    false => machine.generation,
                };
                Actual::Present { generation, cpus }
            }
        };
        match settle(record.power, record.generation, actual) {
            Settle::Launch => self.launch(scene, record),
            Settle::Continue => self.go_on(scene, vm),
            Settle::Reap | Settle::ReportShutdown => {
                self.trace(&format!("ends {}, which has no right to run", short(&vm)));
                scene.body.machines.remove(&vm);
                self.launches.remove(&vm);
            }
            _ => {}
        }
    }

    fn launch(&mut self, scene: &mut Scene, record: &VmRecord) {
        let (vm, generation, word) = (record.id, record.generation, short(&record.id));
        let now = self.ground.now();
        let launched = scene.volume.launched.get(&vm) == Some(&generation);
        if self.launches.remove(&vm).is_some() || launched || record.arrived_by().is_some() {
            // It was there, and is not any more.
            if self.reported.get(&vm).is_none_or(|at| now >= at + 1_000) {
                self.reported.insert(vm, now);
                self.report(scene.daemon, record);
            }
            return;
        }
        let permit = match scene.daemon.may_start() {
            Ok(epoch) => epoch,
            Err(_) if self.ground.has(Plant::StartWithoutLease) => scene.daemon.epoch(),
            Err(_) => return,
        };
        let claimed = scene.volume.claims.get(&vm).copied().unwrap_or_default();
        if claimed > generation && !self.ground.has(Plant::OldGeneration) {
            // The disk is the second line; a lease with an old state is the fault.
            self.ground.complain(format!(
                "(12) {} would launch {word} g{generation}, and its disks have a newer run",
                self.name
            ));
            return;
        }
        scene.volume.claims.insert(vm, generation.max(claimed));
        scene.volume.launched.insert(vm, generation);
        let done = now + self.ground.between(2, 40) * TICK_MS;
        self.trace(&format!("launches {word} g{generation} e{permit}"));
        self.launches.insert(vm, Launch { generation, epoch: permit, done });
        scene.body.machines.insert(vm, Machine::new(generation, permit));
    }

    /// A machine that stands gets its processors: one that was launched, if the lease is still the
    /// same; one that has stood for a migration as it is.
    fn go_on(&mut self, scene: &mut Scene, vm: VmId) {
        let word = short(&vm);
        let Some(machine) = scene.body.machines.get_mut(&vm) else { return };
        if machine.sent || machine.arrival.is_some() {
            self.ground.trace(self.name.as_str(), &format!("{word} goes on"));
            (machine.sent, machine.cpus) = (false, true);
            return;
        }
        let Some(launch) = self.launches.get(&vm).copied() else {
            // An earlier daemon has launched it and ended before it ran.
            scene.body.machines.remove(&vm);
            return;
        };
        if self.ground.now() < launch.done {
            return;
        }
        self.launches.remove(&vm);
        let permit = scene.daemon.may_start();
        if permit.is_ok_and(|epoch| epoch == launch.epoch)
            || self.ground.has(Plant::StartWithoutLease)
        {
            machine.cpus = true;
            self.trace(&format!("runs {word} g{}", launch.generation));
        } else {
            self.trace(&format!("gives {word} up: no lease"));
            scene.body.machines.remove(&vm);
        }
    }

    fn report(&self, daemon: &Arc<Daemon>, record: &VmRecord) {
        let (vm, generation) = (record.id, record.generation);
        self.trace(&format!("reports {} g{generation} as gone", short(&vm)));
        let exit = model::Exit {
            kind: model::ExitKind::HostRestart,
            detail: "the machine is no longer there".to_owned(),
            at: UnixMillis::new(EPOCH_MS + self.ground.now()),
        };
        let command = Command::VmExited { vm, generation, exit };
        let truth = daemon.truth().clone();
        self.spawn(async move {
            // What the state does not take now is told again.
            let _ = truth.propose(proposal(command)).await;
        });
    }
}
