//! Quick migration: a guest is saved, its VM given away, and the guest goes on from its memory elsewhere.
//! The rules of `save`, `start` and what undoes them in `vm/src/lifecycle/power.rs`, over simulated
//! time; who begins which step is real (`node::ha`).
//!
//! ```text
//!   save:     the guest stands -> its memory is on the volume -> the state says saved -> the machine ends
//!   resume:   the disks are claimed -> a machine with that memory -> the memory goes -> the guest goes on
//! ```

use model::Bytes;
use model::Generation;
use model::OpOutcome;
use model::OpRecord;
use model::Power;
use model::SavedState;
use model::VmRecord;

use super::Launch;
use super::Scene;
use super::source::failure;
use crate::guard::Machine;
use crate::guard::short;
use crate::host::Host;
use crate::host::TICK_MS;
use crate::plant::Plant;

/// A guest's memory that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saving {
    /// When the guest stopped.
    pub(crate) stood: u64,
    /// When all of it is written. The process writes, also when there is no daemon.
    pub(crate) until: u64,
}

impl Host {
    /// One turn of a save.
    pub(super) fn save(&mut self, scene: &mut Scene, record: &VmRecord, op: &OpRecord) {
        let (vm, run, now) = (record.id, record.generation, self.ground.now());
        if self.migrations.ended.get(&vm) == Some(&op.id) {
            return;
        }
        if self.launches.remove(&vm).is_some() {
            scene.body.machines.remove(&vm);
        }
        let left = op.deadline.since(scene.daemon.ledger().now()).get();
        let Some(machine) = scene.body.machines.get_mut(&vm) else {
            return self.finish(scene, vm, op.id, failure("not_running", None));
        };
        if op.cancel_requested() || left == 0 {
            // The memory goes before the guest goes on: its disks change then.
            scene.volume.memories.remove(&(vm, run));
            (machine.saving, machine.sent, machine.cpus) = (None, false, true);
            self.trace(&format!("{} goes on, and is not saved", short(&vm)));
            let outcome = OpOutcome::Cancelled { power: None };
            return self.finish(scene, vm, op.id, outcome);
        }
        let Some(saving) = machine.saving else {
            let until = now + self.ground.between(2, 60) * TICK_MS;
            machine.saving = Some(Saving { stood: now, until });
            machine.cpus = false;
            return self.trace(&format!("saves {} g{run}", short(&vm)));
        };
        if now < saving.until {
            return;
        }
        scene.volume.memories.insert((vm, run), saving.stood);
        self.ground.tally(|tally| tally.saved += 1);
        let saved = SavedState {
            generation: run,
            size: Bytes::mib(64),
            at: scene.daemon.ledger().now(),
            cpus: 1,
            boot_memory: Bytes::mib(128),
            memory: Bytes::mib(128),
        };
        self.finish(scene, vm, op.id, OpOutcome::Saved { saved });
    }

    /// One turn of a start by somebody, from memory if there is any.
    pub(super) fn start_vm(&mut self, scene: &mut Scene, record: &VmRecord, op: &OpRecord) {
        let (vm, run) = (record.id, record.generation);
        if self.migrations.ended.get(&vm) == Some(&op.id) {
            return;
        }
        let from = record.saved.map(|saved| saved.generation);
        let machine = scene.body.machines.get(&vm).copied();
        if machine.is_some_and(|machine| machine.cpus) {
            return self.finish(scene, vm, op.id, OpOutcome::Done);
        }
        let left = op.deadline.since(scene.daemon.ledger().now()).get();
        if op.cancel_requested() || left == 0 {
            return self.give_up_start(scene, record, op);
        }
        match (machine, self.launches.get(&vm).copied()) {
            (Some(_), Some(launch)) if self.ground.now() < launch.done => {}
            (Some(_), Some(launch)) => self.first_step(scene, record, op, launch),
            // An earlier daemon has launched it and ended before it ran.
            (Some(_), None) => drop(scene.body.machines.remove(&vm)),
            (None, Some(_)) => self.give_up_start(scene, record, op),
            (None, None) => self.begin_start(scene, record, op, from, run),
        }
    }

    fn begin_start(
        &mut self,
        scene: &mut Scene,
        record: &VmRecord,
        op: &OpRecord,
        from: Option<Generation>,
        run: Generation,
    ) {
        let (vm, word) = (record.id, short(&record.id));
        let memory = from.map(|from| scene.volume.memories.get(&(vm, from)).copied());
        let permit = scene.daemon.may_start();
        let claimed = scene.volume.claims.get(&vm).copied().unwrap_or_default();
        let (Ok(permit), false, false) = (permit, memory == Some(None), claimed > run) else {
            return self.give_up_start(scene, record, op);
        };
        scene.volume.claims.insert(vm, run);
        scene.volume.launched.insert(vm, run);
        let done = self.ground.now() + self.ground.between(2, 40) * TICK_MS;
        self.trace(&format!("launches {word} g{run} e{permit}, memory {memory:?}"));
        self.launches.insert(vm, Launch { generation: run, epoch: permit, done });
        let mut machine = Machine::new(run, permit);
        machine.memory = memory.flatten();
        scene.body.machines.insert(vm, machine);
    }

    /// The guest goes on, if the lease is still the one for which its machine was made.
    fn first_step(&mut self, scene: &mut Scene, record: &VmRecord, op: &OpRecord, launch: Launch) {
        let vm = record.id;
        self.launches.remove(&vm);
        let permit = scene.daemon.may_start();
        let held = permit.is_ok_and(|epoch| epoch == launch.epoch);
        let Some(machine) = scene.body.machines.get_mut(&vm) else { return };
        if !held && !self.ground.has(Plant::StartWithoutLease) {
            return self.give_up_start(scene, record, op);
        }
        // Before the guest goes on: it must not be there when its disks change.
        if let Some(saved) = record.saved.filter(|_| !self.ground.has(Plant::MemoryTwice)) {
            scene.volume.memories.remove(&(vm, saved.generation));
        }
        machine.cpus = true;
        if machine.memory.is_some() {
            self.ground.tally(|tally| tally.resumed += 1);
        }
        self.trace(&format!("runs {} g{}", short(&vm), launch.generation));
        self.finish(scene, vm, op.id, OpOutcome::Done);
    }

    fn give_up_start(&mut self, scene: &mut Scene, record: &VmRecord, op: &OpRecord) {
        let vm = record.id;
        self.launches.remove(&vm);
        scene.body.machines.remove(&vm);
        let there = record
            .saved
            .is_some_and(|saved| scene.volume.memories.contains_key(&(vm, saved.generation)));
        let power = if there { Power::Saved } else { Power::Off };
        self.finish(scene, vm, op.id, failure("not_started", Some(power)));
    }
}
