//! Tests: a state of some nodes and VMs, changed by commands only.

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
use model::Refused;
use model::Speaker;
use model::UnixMillis;
use model::VmId;
use model::VmRecord;
use model::VmSpec;
use model::VolumeId;
use model::VolumeKind;
use uuid::Uuid;

pub(crate) const VOLUME: VolumeId = VolumeId::new(Uuid::from_u128(9));

pub(crate) fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(100 + n))
}

pub(crate) fn vm(n: u128) -> VmId {
    VmId::new(Uuid::from_u128(1_000 + n))
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) struct World {
    pub(crate) state: ClusterState,
    pub(crate) now: UnixMillis,
    ids: u128,
}

impl World {
    /// The nodes are one cluster from here on.
    pub(crate) fn form_cluster(&mut self) {
        self.state.cluster = Some(std::sync::Arc::new(model::ClusterRecord {
            id: model::ClusterId::new(Uuid::from_u128(8)),
            name: name("lab"),
            ca_certificate: String::new(),
            ca_key: model::SecretText::new(String::new()),
            created: self.now,
        }));
    }

    /// Nodes `n1`, `n2`... with room for eight VMs each, and a shared volume.
    pub(crate) fn new(nodes: u128) -> Self {
        let now = UnixMillis::new(10_000_000);
        let mut world = Self { state: ClusterState::default(), now, ids: 50_000 };
        for n in 1..=nodes {
            let capacity = NodeCapacity { cpus: 4, memory: Bytes::mib(8 * (128 + 64)) };
            let name = name(&format!("n{n}"));
            world.ok(Command::NodeStarted { node: node(n), name, capacity });
        }
        let kind = VolumeKind::Share { path: "/share".to_owned() };
        world.ok(Command::VolumeCreate { volume: VOLUME, name: name("shared"), kind });
        world
    }

    pub(crate) fn propose(&mut self, command: Command) -> Result<(), Refused> {
        let proposal = Proposal { at: self.now, actor: Actor::new("test"), command };
        self.state.apply(&proposal).map(drop)
    }

    pub(crate) fn ok(&mut self, command: Command) {
        self.propose(command.clone()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }

    pub(crate) fn begin(&mut self, request: OpRequest) -> OpId {
        self.ids += 1;
        let op = OpId::new(Uuid::from_u128(self.ids));
        let limit = Millis::from_secs(1);
        self.ok(Command::BeginOp { op, request: Box::new(request), limit });
        op
    }

    pub(crate) fn finish(&mut self, op: OpId, by: NodeId, outcome: OpOutcome) {
        let epoch = self.state.node(by).unwrap().epoch;
        let outcome = Box::new(outcome);
        self.ok(Command::FinishOp { op, outcome, by: Speaker { node: by, epoch } });
    }

    pub(crate) fn run(&mut self, request: OpRequest, by: NodeId) {
        let op = self.begin(request);
        self.finish(op, by, OpOutcome::Done);
    }

    /// Makes VM `n`, named `v<n>`, and starts it on a node.
    pub(crate) fn add(&mut self, n: u128, on: NodeId, ha: HaSpec) {
        self.add_in(n, on, ha, Some(VOLUME));
    }

    /// The same, on a volume or on that node's own disks.
    pub(crate) fn add_in(&mut self, n: u128, on: NodeId, ha: HaSpec, volume: Option<VolumeId>) {
        let mut spec = VmSpec::new(1, Bytes::mib(128));
        spec.ha = ha;
        let request = OpRequest::VmCreate {
            vm: vm(n),
            name: name(&format!("v{n}")),
            spec: Box::new(spec),
            pinned: pinned(),
            owner: on,
            volume,
        };
        self.run(request, on);
        self.run(OpRequest::VmStart { vm: vm(n) }, on);
    }

    pub(crate) fn vm(&self, n: u128) -> &VmRecord {
        self.state.vm(vm(n)).unwrap()
    }

    pub(crate) fn owner(&self, n: u128) -> NodeId {
        self.vm(n).owner
    }
}

fn pinned() -> Pinned {
    Pinned {
        config_version: 1,
        machine_type: "pc-q35-10.0".to_owned(),
        cpu_model: "qemu64".to_owned(),
    }
}
