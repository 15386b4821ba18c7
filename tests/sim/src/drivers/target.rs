//! The target's side of a migration: machines that wait, by the rule of `node/src/migrate/target.rs`
//! and `vm/src/lifecycle/migrate/arrival.rs`.

use model::ClusterState;
use model::Generation;
use model::NodeId;
use model::OpId;
use model::VmId;
use model::VmRecord;
use node::simulation::migration_under_way;

use super::Attempt;
use super::Scene;
use super::Word;
use crate::guard::Arrival;
use crate::guard::Machine;
use crate::guard::short;
use crate::host::Host;
use crate::host::TICK_MS;
use crate::wire::Content;
use crate::wire::Letter;

/// How long the state of this node may be behind the source's, and what is left of an earlier
/// machine may take to go.
const BEHIND_MAX: u64 = 5_000;

/// Somebody wants a machine that waits.
pub(super) struct Asked {
    from: usize,
    attempt: Attempt,
    vm: VmId,
    generation: Generation,
    until: u64,
}

/// A machine that waits, or is being made.
pub(super) struct Waiting {
    from: usize,
    attempt: Attempt,
    /// For which epoch of this node it is made.
    permit: u64,
    /// When it is made.
    made: u64,
    /// Whether the source was told that it waits.
    told: bool,
}

/// What becomes of a machine that waits.
enum Fate {
    /// It waits on, or its driver takes it as soon as it looks.
    Stays,
    /// The VM is this node's by a takeover: its driver ends what it finds.
    TakenOver,
    /// Nobody needs it.
    Ends,
}

fn fate(state: &ClusterState, vm: VmId, op: OpId, from: NodeId, me: NodeId) -> Fate {
    if migration_under_way(state, op, from, me).is_some() {
        return Fate::Stays;
    }
    match state.vms.get(&vm).filter(|vm| vm.owner == me) {
        Some(vm) if vm.arrived_by() == Some(op) => Fate::Stays,
        Some(_) => Fate::TakenOver,
        None => Fate::Ends,
    }
}

impl Host {
    /// Words of other hosts, and machines that wait.
    pub(super) fn receive(&mut self, scene: &mut Scene) {
        for (from, word) in std::mem::take(&mut self.migrations.mail) {
            match word {
                Word::Prepare { attempt, vm, generation } => {
                    self.asked(scene, Asked { from, attempt, vm, generation, until: 0 });
                }
                Word::Last { attempt, stood } => self.load(scene, from, attempt, stood),
                Word::Abandon(op) => self.abandoned(scene, from, op),
                word => self.migrations.heard(&word),
            }
        }
        for asked in std::mem::take(&mut self.migrations.asked) {
            self.prepare(scene, asked);
        }
        self.look_at_waiting(scene);
    }

    fn say(&self, scene: &Scene, to: usize, word: Word) {
        scene.wire.send(Letter { from: self.index, to, content: Content::Word(word) });
    }

    /// A question that came twice is one.
    fn asked(&mut self, scene: &Scene, asked: Asked) {
        let attempt = asked.attempt;
        if self.migrations.asked.iter().any(|other| other.attempt == attempt) {
            return;
        }
        match self.migrations.waiting.get(&asked.vm) {
            Some(waiting) if waiting.attempt == attempt => {
                if waiting.told {
                    self.say(scene, asked.from, Word::Ready(attempt));
                }
            }
            _ => {
                let until = self.ground.now() + BEHIND_MAX;
                self.migrations.asked.push(Asked { until, ..asked });
            }
        }
    }

    /// Makes a machine that waits, as soon as the state knows of the migration and nothing of an
    /// earlier stay of the VM is here.
    fn prepare(&mut self, scene: &mut Scene, asked: Asked) {
        let Asked { from, attempt, vm, generation, until } = asked;
        let now = self.ground.now();
        if now > until {
            return self.say(scene, from, Word::Cannot(attempt));
        }
        let known = migration_under_way(scene.state, attempt.op, scene.wire.node(from), self.id);
        if known.is_some() && self.migrations.waiting.contains_key(&vm) {
            self.take_away(scene, vm, "an older attempt");
        }
        let permit = scene.daemon.may_start().ok();
        let (Some(record), Some(permit), false) =
            (known, permit, scene.body.machines.contains_key(&vm))
        else {
            return self.migrations.asked.push(asked);
        };
        if !self.claim(scene, record, generation) {
            return self.say(scene, from, Word::Cannot(attempt));
        }
        let run = generation.next();
        self.trace(&format!("makes {} g{run} e{permit}, which waits", short(&vm)));
        let mut machine = Machine::new(run, permit);
        machine.arrival = Some(Arrival { attempt, full: None });
        scene.body.machines.insert(vm, machine);
        let made = now + self.ground.between(2, 30) * TICK_MS;
        self.migrations.waiting.insert(vm, Waiting { from, attempt, permit, made, told: false });
    }

    /// Claims the VM's disks for the run to come, before anything of it could run here.
    fn claim(&self, scene: &mut Scene, record: &VmRecord, generation: Generation) -> bool {
        let claimed = scene.volume.claims.entry(record.id).or_default();
        let run = generation.next();
        let fits = record.generation == generation && *claimed <= run;
        if fits {
            *claimed = run;
        }
        fits
    }

    /// The last of the guest has come.
    fn load(&mut self, scene: &mut Scene, from: usize, attempt: Attempt, stood: u64) {
        let all = &self.migrations.waiting;
        let vm = all.iter().find(|(_, waiting)| waiting.attempt == attempt && waiting.told);
        let machine = vm.and_then(|(vm, _)| scene.body.machines.get_mut(vm));
        let word = match machine.and_then(|machine| machine.arrival.as_mut()) {
            Some(arrival) => {
                arrival.full = Some(stood);
                Word::Loaded(attempt)
            }
            None => Word::Cannot(attempt),
        };
        self.say(scene, from, word);
    }

    /// The source does not need it any more. Nobody else's word counts.
    fn abandoned(&mut self, scene: &mut Scene, from: usize, op: OpId) {
        let mut waiting = self.migrations.waiting.iter();
        let Some((vm, _)) = waiting.find(|(_, waiting)| waiting.attempt.op == op) else { return };
        let vm = *vm;
        let over = scene.state.ops.get(&op).is_none_or(|op| !op.is_running());
        if over || migration_under_way(scene.state, op, scene.wire.node(from), self.id).is_some() {
            let owned = scene.state.vms.get(&vm).is_some_and(|vm| vm.owner == self.id);
            match (owned, fate(scene.state, vm, op, scene.wire.node(from), self.id)) {
                (true, Fate::Stays) => {}
                (true, _) => drop(self.migrations.waiting.remove(&vm)),
                (false, _) => self.take_away(scene, vm, "abandoned"),
            }
        }
    }

    fn look_at_waiting(&mut self, scene: &mut Scene) {
        let now = self.ground.now();
        let all: Vec<VmId> = self.migrations.waiting.keys().copied().collect();
        for vm in all {
            let Some(waiting) = self.migrations.waiting.get_mut(&vm) else { continue };
            let (attempt, from) = (waiting.attempt, waiting.from);
            match fate(scene.state, vm, attempt.op, scene.wire.node(from), self.id) {
                Fate::Stays => {}
                Fate::TakenOver => {
                    self.migrations.waiting.remove(&vm);
                    continue;
                }
                Fate::Ends => {
                    self.take_away(scene, vm, "its migration is over");
                    continue;
                }
            }
            let there = scene.body.machines.contains_key(&vm);
            if !there {
                // The guard has ended it.
                self.migrations.waiting.remove(&vm);
                self.say(scene, from, Word::Cannot(attempt));
            } else if !waiting.told && now >= waiting.made {
                waiting.told = true;
                if scene.daemon.may_start().is_ok_and(|epoch| epoch == waiting.permit) {
                    self.say(scene, from, Word::Ready(attempt));
                } else {
                    self.take_away(scene, vm, "no lease");
                    self.say(scene, from, Word::Cannot(attempt));
                }
            }
        }
    }

    fn take_away(&mut self, scene: &mut Scene, vm: VmId, why: &str) {
        self.trace(&format!("takes {} away, which waits: {why}", short(&vm)));
        self.migrations.waiting.remove(&vm);
        scene.body.machines.remove(&vm);
    }
}
