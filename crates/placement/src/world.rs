//! Tests: a state of some nodes and VMs, changed by commands only.

use std::collections::BTreeSet;

use model::Actor;
use model::Bytes;
use model::ClusterState;
use model::Command;
use model::HaSpec;
use model::Millis;
use model::Name;
use model::NodeCapacity;
use model::NodeId;
use model::OpId;
use model::OpOutcome;
use model::OpRequest;
use model::Pinned;
use model::Proposal;
use model::RuleId;
use model::RuleKind;
use model::RuleRecord;
use model::Speaker;
use model::UnixMillis;
use model::VmId;
use model::VmSpec;
use model::VolumeId;
use model::VolumeKind;
use uuid::Uuid;

use crate::Plan;
use crate::fail_over;

pub(crate) const VOLUME: VolumeId = VolumeId::new(Uuid::from_u128(9));
pub(crate) const NOW: UnixMillis = UnixMillis::new(10_000_000);

pub(crate) fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(100 + n))
}

pub(crate) fn vm_id(n: u128) -> VmId {
    VmId::new(Uuid::from_u128(1_000 + n))
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) struct World {
    pub(crate) state: ClusterState,
    ids: u128,
}

/// A VM of a test: on which node, how large, and what else is special about it.
pub(crate) struct Vm {
    pub(crate) on: u128,
    pub(crate) mib: u64,
    pub(crate) ha: HaSpec,
    pub(crate) tags: Vec<Name>,
    pub(crate) local: bool,
}

pub(crate) fn vm(on: u128, mib: u64) -> Vm {
    Vm { on, mib, ha: HaSpec::default(), tags: Vec::new(), local: false }
}

impl World {
    /// Nodes `n0`, `n1`... with that much memory each.
    pub(crate) fn new(nodes: u128, mib: u64) -> Self {
        let mut world = Self { state: ClusterState::default(), ids: 50_000 };
        for n in 0..nodes {
            world.propose(Command::NodeStarted {
                node: node(n),
                name: name(&format!("n{n}")),
                capacity: NodeCapacity { cpus: 4, memory: Bytes::mib(mib) },
            });
        }
        world.propose(Command::VolumeCreate {
            volume: VOLUME,
            name: name("shared"),
            kind: VolumeKind::Share { path: "/share".to_owned() },
        });
        world
    }

    pub(crate) fn propose(&mut self, command: Command) {
        let proposal = Proposal { at: NOW, actor: Actor::new("test"), command };
        self.state.apply(&proposal).unwrap();
    }

    pub(crate) fn run(&mut self, request: OpRequest, by: NodeId) {
        self.ids += 1;
        let op = OpId::new(Uuid::from_u128(self.ids));
        let limit = Millis::from_secs(1);
        self.propose(Command::BeginOp { op, request: Box::new(request), limit });
        let by = Speaker { node: by, epoch: 0 };
        self.propose(Command::FinishOp { op, outcome: Box::new(OpOutcome::Done), by });
    }

    /// Makes a VM and starts it.
    pub(crate) fn add(&mut self, n: u128, vm: Vm) -> VmId {
        let mut spec = VmSpec::new(1, Bytes::mib(vm.mib));
        spec.ha = vm.ha;
        spec.tags = vm.tags;
        let pinned = Pinned {
            config_version: 1,
            machine_type: "pc-q35-10.0".to_owned(),
            cpu_model: "qemu64".to_owned(),
        };
        let request = OpRequest::VmCreate {
            vm: vm_id(n),
            name: name(&format!("v{n}")),
            spec: Box::new(spec),
            pinned,
            owner: node(vm.on),
            volume: (!vm.local).then_some(VOLUME),
        };
        self.run(request, node(vm.on));
        self.run(OpRequest::VmStart { vm: vm_id(n) }, node(vm.on));
        vm_id(n)
    }

    pub(crate) fn rule(&mut self, kind: RuleKind, hard: bool) {
        self.ids += 1;
        let id = RuleId::new(Uuid::from_u128(self.ids));
        let rule =
            RuleRecord { id, name: name(&format!("r{}", self.ids)), tag: name("web"), kind, hard };
        self.propose(Command::RuleCreate { rule });
    }

    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        self.state.nodes.keys().copied().collect()
    }

    pub(crate) fn lose(&self, n: u128) -> Plan {
        let mut alive = self.alive();
        alive.remove(&node(n));
        fail_over(&self.state, &alive, node(n), NOW)
    }
}

pub(crate) fn places(plan: &Plan) -> Vec<(VmId, NodeId)> {
    plan.steps.iter().map(|step| (step.vm, step.to)).collect()
}

pub(crate) fn web(on: u128, mib: u64) -> Vm {
    Vm { tags: vec![name("Web")], ..vm(on, mib) }
}
