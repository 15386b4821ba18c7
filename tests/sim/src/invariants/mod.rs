//! What must hold after every turn, whatever goes wrong; one file each. Numbers are those of the
//! table in README.md.

mod i01_one_leader;
mod i04_same_state;
mod i05_terms;
mod i06_positions;
mod i08_witness;
mod i11_one_machine;
mod i12_generations;
mod i13_proof;
mod i22_handover;
mod i28_leader_again;
mod i29_caught_up;
mod lease;
mod reign;
mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::raft::Metrics;
use model::ClusterState;
use model::Generation;
use model::NodeId;
use model::VmId;

use crate::ground::lock;
use crate::guard::Machine;
use crate::host::Host;
use crate::host::Volume;
use crate::vault::Vault;

/// A host, as one who sees everything sees it.
pub(crate) struct HostSeen {
    name: String,
    id: NodeId,
    /// The log as its daemon knows it, while that is up.
    metrics: Option<Metrics>,
    state: Option<Arc<ClusterState>>,
    /// Its machines, and whether each runs: its processors, its group and its host go on.
    machines: Vec<(VmId, Machine, bool)>,
    /// When its machines were ended last by a loss of power or by its guard.
    emptied: Option<u64>,
    /// When its daemon was ended last.
    killed: Option<u64>,
    /// How often it has lost its log.
    logs: u64,
}

/// Everything at one moment.
pub(crate) struct Seen {
    /// Milliseconds since the schedule began.
    now: u64,
    /// Since when there are no faults.
    healing: Option<u64>,
    hosts: Vec<HostSeen>,
    /// The newest state that anybody has applied.
    newest: Option<Arc<ClusterState>>,
    /// Memories of saved guests on the volume: of which run, and when the guest stopped.
    memories: BTreeMap<(VmId, Generation), u64>,
}

trait Invariant {
    fn check(&mut self, seen: &Seen) -> Result<(), String>;
}

/// All of them.
pub(crate) struct Invariants {
    healing: Option<u64>,
    all: Vec<(&'static str, Box<dyn Invariant>)>,
    newest: (u64, Option<Arc<ClusterState>>),
    takeovers: u64,
    handovers: u64,
    moves: u64,
}

impl Invariants {
    pub(crate) fn new(vault: Option<&Arc<Vault>>) -> Self {
        let mut all: Vec<(&'static str, Box<dyn Invariant>)> = vec![
            ("(1) one leader per term", Box::<i01_one_leader::OneLeader>::default()),
            ("(3, 4) same state at the same index", Box::<i04_same_state::SameState>::default()),
            ("(5) vote and term never go back", Box::<i05_terms::Terms>::default()),
            ("(6) snapshot <= applied <= last", Box::new(i06_positions::Positions)),
            ("(11) one machine", Box::new(i11_one_machine::OneMachine)),
            ("(12) generations grow", Box::<i12_generations::Generations>::default()),
            ("(13) no takeover without proof", Box::<i13_proof::Proof>::default()),
            ("(22) one place in a migration", Box::<i22_handover::Handover>::default()),
            ("(41) who was saved goes on once", Box::<saved::Saved>::default()),
            ("(lease) who runs has the present epoch", Box::new(lease::Lease)),
            ("(reign) one grants at a time", Box::<reign::Reign>::default()),
            ("(28) one leader in 10 s", Box::new(i28_leader_again::LeaderAgain::default())),
            ("(29) all caught up in 60 s", Box::new(i29_caught_up::CaughtUp::default())),
        ];
        if let Some(vault) = vault {
            let witness = Box::new(i08_witness::Witness::new(vault.clone()));
            all.push(("(8, 9) the witness's record only grows", witness));
        }
        Self { healing: None, all, newest: (0, None), takeovers: 0, handovers: 0, moves: 0 }
    }

    /// There are no faults from now on.
    pub(crate) fn heal(&mut self, now: u64) {
        self.healing = Some(now);
    }

    /// Whether faults have stopped.
    pub(crate) fn heals(&self) -> bool {
        self.healing.is_some()
    }

    pub(crate) fn takeovers(&self) -> u64 {
        self.takeovers
    }

    pub(crate) fn handovers(&self) -> u64 {
        self.handovers
    }

    /// The newest state that anybody has applied.
    pub(crate) fn newest(&self) -> Option<Arc<ClusterState>> {
        self.newest.1.clone()
    }

    /// Moves that somebody or the leader began.
    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }

    pub(crate) fn check(
        &mut self,
        now: u64,
        hosts: &[Host],
        volume: &Volume,
    ) -> Result<(), String> {
        let hosts: Vec<HostSeen> = hosts.iter().map(look).collect();
        for host in &hosts {
            if let (Some(metrics), Some(state)) = (&host.metrics, &host.state)
                && metrics.applied_next > self.newest.0
            {
                let before = self.newest.1.replace(state.clone());
                self.newest.0 = metrics.applied_next;
                if let Some(before) = before {
                    self.takeovers += taken_over(&before, state);
                    self.handovers += handed_over(&before, state);
                    self.moves += moved(&before, state);
                }
            }
        }
        let newest = self.newest.1.clone();
        let memories = volume.memories.clone();
        let seen = Seen { now, healing: self.healing, hosts, newest, memories };
        for (name, invariant) in &mut self.all {
            invariant.check(&seen).map_err(|what| format!("{name}: {what}"))?;
        }
        Ok(())
    }
}

fn taken_over(before: &ClusterState, after: &ClusterState) -> u64 {
    let count = |state: &ClusterState| -> u64 {
        state.vms.values().map(|vm| vm.takeovers.len() as u64).sum()
    };
    count(after).saturating_sub(count(before))
}

fn handed_over(before: &ClusterState, after: &ClusterState) -> u64 {
    let arrival = |vm: &VmId| before.vms.get(vm).and_then(|vm| vm.arrival);
    let new = after.vms.values().filter(|vm| vm.arrival != arrival(&vm.id));
    new.count() as u64
}

fn moved(before: &ClusterState, after: &ClusterState) -> u64 {
    let moving = |vm: &VmId| before.vms.get(vm).and_then(|vm| vm.moving);
    let new = after.vms.values().filter(|vm| vm.moving.is_some() && moving(&vm.id).is_none());
    new.count() as u64
}

fn look(host: &Host) -> HostSeen {
    let goes = host.powered && !host.stands();
    let body = lock(&host.body);
    let machines = body
        .machines
        .iter()
        .map(|(vm, machine)| (*vm, *machine, goes && machine.cpus && !body.frozen))
        .collect();
    HostSeen {
        name: host.name.to_string(),
        id: host.id,
        metrics: host.metrics(),
        state: host.state(),
        machines,
        emptied: body.emptied,
        killed: host.killed,
        logs: host.logs,
    }
}
