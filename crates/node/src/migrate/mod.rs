//! Live migration between nodes: what goes over the wire beside the guest's memory.
//!
//! ```text
//!   call MIGRATE   Plan     may this VM of yours go there? (asked by whoever has an API call for it)
//!                  Outlook  what would these of yours take to go there?
//!                  Check    may this VM come to you? reasons, not just yes or no
//!                  Prepare  make a machine that waits for it
//!                  Abandon  it is not needed
//!                  Rehearse  make durable what has come of its disks
//!                  Settle   all of its disks are there
//!   stream "migrate:<op>"         one connection of the machine's, byte for byte
//!   stream "migrate-disks:<op>"   one of a disk that comes with it
//!   stream "migrate-files:<op>"   the files of a machine without a process (vm::lifecycle::migrate::parcel)
//!   stream "migrate-probe"  measures the way
//! ```
//!
//! All of it runs in TLS with the cluster's certificates; the receiving node believes nothing that
//! the replicated state does not say: a machine is made only for a migration that is under way there,
//! from its present owner to this node, and goes on only when the state says that it is this node's.

mod along;
mod check;
mod counted;
mod outlook;
mod probe;
mod storage;
mod target;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use api::migrate::CheckView;
use async_trait::async_trait;
use model::NodeId;
use model::OpFailure;
use model::OpId;
use model::StorageTarget;
use model::VmId;
use model::VmPlace;
use model::Way;
use peer::CallError;
use peer::Method;
use peer::PeerStream;
use serde::Deserialize;
use serde::Serialize;
use vm::lifecycle::Lane;
use vm::lifecycle::Mover;
use vm::lifecycle::Offer;
use vm::lifecycle::Ready;
use vm::lifecycle::Wire;

use crate::cluster::peers::Peers;
use counted::Counted;

pub(crate) use check::plan;
pub(crate) use outlook::Outlook;
pub(crate) use outlook::expected;
pub(crate) use probe::PROBE_STREAM;
pub(crate) use storage::plan as plan_storage;
pub(crate) use target::Targets;
pub(crate) use target::under_way;

/// Begin of the name of a stream that carries a migration's connection, of its memory, of its disks, and
/// of the files of a machine without a process.
const STREAM: &str = "migrate:";
const DISKS_STREAM: &str = "migrate-disks:";
const FILES_STREAM: &str = "migrate-files:";

/// What a stream carries, and of which migration, by its name.
pub(crate) fn lane(name: &str) -> Option<(Lane, &str)> {
    let lanes = [(STREAM, Lane::Memory), (DISKS_STREAM, Lane::Disks), (FILES_STREAM, Lane::Files)];
    lanes.into_iter().find_map(|(begin, lane)| Some((lane, name.strip_prefix(begin)?)))
}

/// How long a node may take to make a machine: QEMU on a busy host, and what is left of an earlier
/// machine of the same VM goes first.
const PREPARE_MAX: Duration = Duration::from_secs(60);

/// Start of a preferred network before the next one: connections come about within it on a network
/// that works, also while others fill it.
const WAY_PATIENCE: Duration = Duration::from_secs(1);

/// How long the target may take to make a VM's directory durable, while its guest stands. All of its
/// disks are flushed before.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// How long it may take to make durable what has come of a VM's disks while its guest works: caches that
/// are full of them, and storage that is slow.
const REHEARSE_MAX: Duration = Duration::from_secs(300);

/// How long it may take to answer a question.
const ASK_MAX: Duration = Duration::from_secs(5);

/// A question of one node to another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Question {
    /// To the owner: whether a VM of its could go to a node.
    Plan {
        /// Which.
        vm: VmId,
        /// Where to.
        to: NodeId,
        /// Where its files go with it.
        #[serde(default)]
        storage: Option<VmPlace>,
    },
    /// To the owner: what live migrations of VMs of its would take, each to a node.
    Outlook {
        /// Which, and where to.
        moves: Vec<(VmId, NodeId)>,
    },
    /// To the owner: whether a VM's storage could go to a place.
    Storage {
        /// Which.
        vm: VmId,
        /// Where to.
        to: VmPlace,
    },
    /// To the target: whether a VM could come.
    Check {
        /// Which.
        vm: VmId,
        /// Where its files come with it, and what they take.
        #[serde(default)]
        storage: Option<(StorageTarget, model::Bytes)>,
    },
    /// Make a machine for it.
    Prepare {
        /// What it is like.
        offer: Box<Offer>,
    },
    /// Make durable what has come of its disks.
    Rehearse {
        /// By which migration.
        op: OpId,
    },
    /// All of its disks are there.
    Settle {
        /// By which migration.
        op: OpId,
    },
    /// It is not needed.
    Abandon {
        /// For which migration it was made.
        op: OpId,
    },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// What the owner and the target have found.
    Planned {
        /// All of it.
        checks: Vec<CheckView>,
    },
    /// What was expected of each of the migrations that were asked for, in their order.
    Expected {
        /// A forecast, or why there is none.
        each: Vec<Outlook>,
    },
    /// What the target has found.
    Found {
        /// All of it.
        found: check::Found,
    },
    /// It waits.
    Ready {
        /// All of its files are there already (see [`vm::lifecycle::Ready::whole`]).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole: bool,
    },
    /// It cannot be.
    Cannot {
        /// Why.
        failure: OpFailure,
    },
    /// It was heard.
    Done,
}

/// The way to other nodes, as drivers use it.
pub(crate) struct PeerMover {
    peers: Peers,
    /// Bytes that went to other nodes.
    carried: Arc<AtomicU64>,
}

impl PeerMover {
    pub(crate) fn new(peers: Peers) -> Self {
        Self { peers, carried: Arc::default() }
    }

    /// Where the bytes are counted that go to other nodes.
    pub(crate) fn carried(&self) -> Arc<AtomicU64> {
        self.carried.clone()
    }

    /// Asks for something that is done, or cannot be.
    async fn ask_done(
        &self,
        to: NodeId,
        question: &Question,
        limit: Duration,
    ) -> Result<(), OpFailure> {
        let asked = self.peers.ask(to, Method::MIGRATE, question, limit).await;
        match asked.map_err(|error| unreachable(&error))? {
            Answer::Done => Ok(()),
            Answer::Cannot { failure } => Err(failure),
            Answer::Planned { .. }
            | Answer::Expected { .. }
            | Answer::Found { .. }
            | Answer::Ready { .. } => Err(garbled()),
        }
    }
}

/// Opens a stream that carries much, by the networks that are for it.
async fn open(peers: &Peers, to: NodeId, name: &str) -> Result<(PeerStream, SocketAddr), String> {
    let links = peers.links().ok_or("this host is in no cluster")?;
    let ways = peers.migration_ways(to);
    if ways.is_empty() {
        return Err("no network with the migration role leads there, and no other may be used \
                    (muster cluster network list)"
            .to_owned());
    }
    let addresses = ways.into_iter().map(|way| way.address).collect();
    let opened = links.stream_by(to, name, addresses, WAY_PATIENCE).await;
    opened.map_err(|error| error.to_string())
}

/// What is to be said where the way that was taken is not the one that should be.
fn fallback(ways: &[Way], by: SocketAddr) -> Option<String> {
    let taken = ways.iter().find(|way| way.address == by)?;
    let wanted = ways.first().filter(|first| first.address != by)?.network.as_ref()?;
    let over = match &taken.network {
        Some(network) => format!("over {network} ({})", by.ip()),
        None => format!("over {}, a network without the migration role", by.ip()),
    };
    Some(format!("{wanted} does not carry its migration; it goes {over}"))
}

fn unreachable(error: &CallError) -> OpFailure {
    OpFailure {
        code: "unreachable".to_owned(),
        message: error.to_string(),
        hint: "see the nodes: muster cluster status".to_owned(),
    }
}

fn garbled() -> OpFailure {
    OpFailure {
        code: "protocol".to_owned(),
        message: "the other node answered something else than it was asked".to_owned(),
        hint: "give both nodes the same version of Muster".to_owned(),
    }
}

#[async_trait]
impl Mover for PeerMover {
    async fn prepare(&self, to: NodeId, offer: Offer) -> Result<Ready, OpFailure> {
        let question = Question::Prepare { offer: Box::new(offer) };
        let ask = self.peers.ask(to, Method::MIGRATE, &question, PREPARE_MAX);
        let (answer, measured) = tokio::join!(ask, probe::measure(&self.peers, to));
        match answer.map_err(|error| unreachable(&error))? {
            Answer::Ready { whole } => Ok(Ready {
                whole,
                bandwidth: measured.map(|(bandwidth, _)| bandwidth),
                fallback: measured.and_then(|(_, by)| fallback(&self.peers.migration_ways(to), by)),
            }),
            Answer::Cannot { failure } => Err(failure),
            Answer::Planned { .. }
            | Answer::Expected { .. }
            | Answer::Found { .. }
            | Answer::Done => Err(garbled()),
        }
    }

    async fn connect(&self, to: NodeId, op: OpId, lane: Lane) -> Result<Box<dyn Wire>, String> {
        let begin = match lane {
            Lane::Memory => STREAM,
            Lane::Disks => DISKS_STREAM,
            Lane::Files => FILES_STREAM,
        };
        let (stream, _) = open(&self.peers, to, &format!("{begin}{op}")).await?;
        Ok(Box::new(Counted { stream, carried: self.carried.clone() }))
    }

    async fn rehearse(&self, to: NodeId, op: OpId) -> Result<(), OpFailure> {
        self.ask_done(to, &Question::Rehearse { op }, REHEARSE_MAX).await
    }

    async fn settle(&self, to: NodeId, op: OpId) -> Result<(), OpFailure> {
        self.ask_done(to, &Question::Settle { op }, SETTLE_MAX).await
    }

    async fn abandon(&self, to: NodeId, op: OpId) {
        let asked: Result<Answer, _> =
            self.peers.ask(to, Method::MIGRATE, &Question::Abandon { op }, ASK_MAX).await;
        if let Err(error) = asked {
            tracing::info!(%op, %error, "the target of a migration was not told of its end");
        }
    }
}
