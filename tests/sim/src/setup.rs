//! How the cluster of a schedule comes about, through the same commands as a real one.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::raft::LeaderError;
use cluster::raft::Metrics;
use cluster::raft::ProposeError;
use model::Applied;
use model::Bytes;
use model::ClusterId;
use model::ClusterState;
use model::Command;
use model::FenceDevice;
use model::FenceDeviceId;
use model::HaSpec;
use model::JoinTokenId;
use model::Millis;
use model::Name;
use model::NodeCapacity;
use model::NodeFacts;
use model::NodeId;
use model::OpId;
use model::OpOutcome;
use model::OpRequest;
use model::Pinned;
use model::Proposal;
use model::SecretText;
use model::Speaker;
use model::UnixMillis;
use model::VmId;
use model::VmSpec;
use model::VolumeId;
use model::VolumeKind;
use model::WitnessPlace;
use node::simulation::Disguise;
use node::truth::RaftTruth;
use node::truth::Truth;
use tokio::sync::watch;
use uuid::Uuid;

use crate::chapters::Chapters;
use crate::ground::Ground;
use crate::host::id_of;
use crate::host::proposal;
use crate::plant::Plant;
use crate::vault::Vault;
use crate::vault::WITNESS;

/// The shared volume.
pub(crate) const VOLUME: VolumeId = VolumeId::new(Uuid::from_u128(9));

const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(77));

/// Ids of the operations that found it begin here.
const OPERATIONS: u128 = 5_000;

/// A VM of the schedule.
pub(crate) const fn vm_of(index: usize) -> VmId {
    VmId::new(Uuid::from_u128(1_001 + index as u128))
}

/// What leases and fencing see of the state, if not the state.
pub(crate) fn door(ground: &Ground) -> Option<Disguise> {
    ground.has(Plant::NoBarrier).then_some(|truth| Arc::new(NoBarrier(truth)))
}

/// A state whose barrier waits for nobody.
struct NoBarrier(Arc<dyn Truth>);

#[async_trait]
impl Truth for NoBarrier {
    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        self.0.propose(proposal).await
    }

    fn state(&self) -> Arc<ClusterState> {
        self.0.state()
    }

    fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.0.watch()
    }

    async fn barrier(&self) -> Result<(), LeaderError> {
        Ok(())
    }

    fn metrics(&self) -> watch::Receiver<Metrics> {
        self.0.metrics()
    }
}

/// What is founded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) vms: usize,
    /// Whether there is a fence device for each node.
    pub(crate) devices: bool,
    /// Whether there is a witness.
    pub(crate) witness: bool,
    /// What it has besides.
    pub(crate) chapters: Chapters,
}

/// Makes the cluster, on the first node.
pub(crate) async fn found(truth: Arc<RaftTruth>, plan: Plan, vault: Arc<Vault>) {
    let capacity = NodeCapacity { cpus: 8, memory: Bytes::mib(16 * 1024) };
    for index in 0..plan.nodes {
        let (node, name) = (id_of(index), name(&format!("n{}", index + 1)));
        if index == 1 {
            form(&truth, plan.nodes).await;
        }
        propose(&truth, Command::NodeStarted { node, name, capacity }).await;
    }
    // The leader makes voters of them by itself.
    let ids: BTreeSet<NodeId> = (0..plan.nodes).map(id_of).collect();
    while truth.metrics().borrow().members.members.voters != [ids.clone()] {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if plan.witness {
        set_witness(&truth, &vault).await;
    }
    if plan.devices {
        let nodes = (0..plan.nodes).map(|at| (id_of(at), Some(at.to_string()))).collect();
        let device = FenceDevice {
            id: FenceDeviceId::new(Uuid::from_u128(70)),
            name: name("bmc"),
            agent: "fence_simulated".to_owned(),
            options: BTreeMap::new(),
            secrets: BTreeMap::new(),
            nodes,
            level: 1,
            timeout_s: 5,
            created: UnixMillis::new(0),
        };
        propose(&truth, Command::FenceDeviceAdd { device: Box::new(device) }).await;
    }
    let kind = VolumeKind::Share { path: "/share".to_owned() };
    propose(&truth, Command::VolumeCreate { volume: VOLUME, name: name("shared"), kind }).await;
    for index in 0..plan.vms {
        add_vm(&truth, index, index % plan.nodes, plan.chapters.failback).await;
    }
}

/// The leader makes a voter of it by itself.
async fn set_witness(truth: &RaftTruth, vault: &Vault) {
    while cluster::witness::create(&*vault.way(0), CLUSTER, WITNESS).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let place = Box::new(WitnessPlace::Directory { path: "/simulated".to_owned() });
    propose(truth, Command::WitnessSet { witness: WITNESS, place }).await;
    while !truth.metrics().borrow().voters().contains(&WITNESS) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The first node makes a cluster, and the others join it.
async fn form(truth: &RaftTruth, nodes: usize) {
    let create = Command::ClusterCreate {
        cluster: CLUSTER,
        name: name("sim"),
        ca_certificate: "certificate".to_owned(),
        ca_key: SecretText::new("key"),
        node: id_of(0),
        key: key(id_of(0)),
    };
    let token = Command::JoinTokenCreate {
        token: JoinTokenId::new(Uuid::from_u128(78)),
        digest: digest(),
        expires: UnixMillis::new(u64::MAX),
        uses: 64,
    };
    propose(truth, create).await;
    propose(truth, token).await;
    for index in 1..nodes {
        propose(truth, join(index, id_of(index))).await;
    }
}

/// A node's public key, as the state has it.
fn key(node: NodeId) -> String {
    format!("{:064x}", node.uuid().as_u128())
}

/// The secret of the token with which all join.
fn digest() -> String {
    format!("{:064x}", 99)
}

/// The host at that place asks to be taken in as that node.
pub(crate) fn join(index: usize, node: NodeId) -> Command {
    let address = SocketAddr::from(([10, 0, 0, u8::try_from(index).unwrap_or(255)], 7444));
    let facts = NodeFacts { addresses: vec![address], ..NodeFacts::default() };
    Command::NodeJoin {
        node,
        name: name(&format!("n{}", index + 1)),
        key: key(node),
        facts: Box::new(facts),
        digest: digest(),
    }
}

/// Whether that operation is one of those by which the cluster comes about.
pub(crate) fn founds(op: OpId) -> bool {
    (OPERATIONS..OPERATIONS + 1_000).contains(&op.uuid().as_u128())
}

async fn add_vm(truth: &RaftTruth, index: usize, node: usize, failback: bool) {
    let owner = id_of(node);
    let mut spec = VmSpec::new(1, Bytes::mib(128));
    // No limit of takeovers: each fault is one.
    spec.ha = HaSpec { enabled: true, failures_max: 100, ..HaSpec::default() };
    if failback {
        (spec.ha.failback, spec.ha.preferred) = (true, vec![name(&format!("n{}", node + 1))]);
    }
    let request = OpRequest::VmCreate {
        vm: vm_of(index),
        name: name(&format!("v{}", index + 1)),
        spec: Box::new(spec),
        pinned: Pinned {
            config_version: 1,
            machine_type: "pc-q35-10.0".to_owned(),
            cpu_model: "qemu64".to_owned(),
        },
        owner,
        volume: Some(VOLUME),
    };
    let requests = [request, OpRequest::VmStart { vm: vm_of(index) }];
    for (step, request) in requests.into_iter().enumerate() {
        let op = OpId::new(Uuid::from_u128(OPERATIONS + (index * 2 + step) as u128));
        let limit = Millis::from_secs(60);
        propose(truth, Command::BeginOp { op, request: Box::new(request), limit }).await;
        let by = Speaker { node: owner, epoch: 0 };
        let outcome = Box::new(OpOutcome::Done);
        propose(truth, Command::FinishOp { op, outcome, by }).await;
    }
}

/// Proposes until it is taken or refused: a refusal says that it was taken before.
async fn propose(truth: &RaftTruth, command: Command) {
    loop {
        match truth.propose(proposal(command.clone())).await {
            Ok(_) | Err(ProposeError::Refused(_)) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("it is a name")
}
