//! What the parts of the daemon share.

use std::sync::Arc;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use api::ApiError;
use api::ErrorKind;
use model::Actor;
use model::Applied;
use model::Command;
use model::Millis;
use model::Name;
use model::NodeId;
use model::OpId;
use model::OpRequest;
use model::Proposal;
use model::UnixMillis;
use tokio::sync::Notify;
use uuid::Uuid;
use vm::engine::Ability;
use vm::engine::Engine;
use vm::engine::EngineError;

use crate::cluster::Peers;
use crate::cluster::Witness;
use crate::cluster::leave;
use crate::config::Config;
use crate::events::Events;
use crate::fencing::Fencing;
use crate::ha::Watch;
use crate::history::History;
use crate::hub::Hub;
use crate::ledger::Progresses;
use crate::luns::Luns;
use crate::migrate::Targets;
use crate::ports::SwitchPorts;
use crate::reconcile::Reconcilers;
use crate::sample::Samples;
use crate::truth::ProposeError;
use crate::truth::Truth;
use crate::validate::Validations;
use crate::volumes::Volumes;

/// Handles to everything. Each part gets what it needs from here and no more.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) node: NodeId,
    pub(crate) node_name: Name,
    pub(crate) started: UnixMillis,
    pub(crate) truth: Arc<dyn Truth>,
    pub(crate) events: Events,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) hub: Hub,
    pub(crate) progresses: Arc<Progresses>,
    pub(crate) ports: Arc<SwitchPorts>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) luns: Luns,
    pub(crate) samples: Arc<Samples>,
    pub(crate) history: History,
    pub(crate) reconcilers: Reconcilers,
    pub(crate) ha: Arc<Watch>,
    pub(crate) tls: Option<crate::tls::TlsInfo>,
    pub(crate) idle: crate::http::Idle,
    pub(crate) peers: Peers,
    pub(crate) witness: Witness,
    /// Told when the daemon shall start anew.
    pub(crate) restart: Arc<Notify>,
    pub(crate) fencing: Fencing,
    pub(crate) validations: Validations,
    pub(crate) targets: Targets,
}

/// The time now. The one place of the daemon that reads the wall clock.
pub(crate) fn now() -> UnixMillis {
    if let Some(clocks) = ::cluster::simulation::clocks() {
        return clocks.wall;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A new id, sortable by time.
pub(crate) fn new_uuid() -> Uuid {
    if let Some(clocks) = ::cluster::simulation::clocks() {
        let (seconds, millis) = (clocks.wall.get() / 1_000, clocks.wall.get() % 1_000);
        let nanos = u32::try_from(millis * 1_000_000).unwrap_or_default();
        return Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos));
    }
    Uuid::now_v7()
}

impl App {
    /// Proposes a command in the name of a caller.
    pub(crate) async fn propose(
        &self,
        actor: &Actor,
        command: Command,
    ) -> Result<Applied, ApiError> {
        let proposal = Proposal { at: now(), actor: actor.clone(), command };
        self.truth.propose(proposal).await.map_err(api_error)
    }

    /// Begins an operation in the name of a caller.
    pub(crate) async fn begin(
        &self,
        actor: &Actor,
        request: OpRequest,
        limit: Millis,
    ) -> Result<OpId, ApiError> {
        let op = OpId::new(new_uuid());
        self.propose(actor, Command::BeginOp { op, request: Box::new(request), limit }).await?;
        Ok(op)
    }

    /// Starts the daemon anew, after the present caller has got its answer.
    pub(crate) fn restart_soon(&self) {
        let restart = self.restart.clone();
        tokio::spawn(async move {
            tokio::time::sleep(leave::LAST_WORDS).await;
            restart.notify_one();
        });
    }

    pub(crate) async fn ability(&self) -> Result<Ability, EngineError> {
        self.engine.ability().await
    }
}

pub(crate) fn api_error(error: ProposeError) -> ApiError {
    match error {
        ProposeError::Refused(refused) => refused.into(),
        ProposeError::Unavailable(why) => ApiError::new(
            ErrorKind::Unavailable,
            "unavailable",
            format!("the state takes no changes now: {why}"),
            "try again in a moment; `muster cluster status` shows who votes and who is there",
        ),
        ProposeError::Unknown => ApiError::new(
            ErrorKind::Unavailable,
            "outcome_unknown",
            "the cluster did not answer in time: the change may have been made or not",
            "look whether it was made before you ask for it again",
        ),
    }
}
