//! The handle to a guest's integration services, and what is visible of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use model::Services;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::client::AgentError;
use super::client::AgentStream;
use super::facts::GuestFacts;
use super::freeze::Consistency;
use super::freeze::FreezeState;
use super::heartbeat::Heartbeat;
use super::host::Exchange;
use super::host::HostFacts;
use super::parts::PartKind;
use super::parts::Parts;
use super::probe::ExecOutput;
use super::probe::ExecRequest;
use super::shell::Shell;

/// Requests that wait; the task answers one within seconds, so more is a caller gone wild.
const INBOX_MAX: usize = 16;

/// Opens a connection to the agent's port of one VM.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// A fresh connection; it may take the place of an older one.
    ///
    /// # Errors
    /// What the host said; it is tried again later.
    async fn connect(&self) -> io::Result<Box<dyn AgentStream>>;
}

/// The host's clock, as far as guests are given it.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since 1970, UTC.
    fn unix_nanos(&self) -> i64;
}

/// The clock of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn unix_nanos(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.ok().and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0)
    }
}

/// Times of the services.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Pause between two beats. 5 s: 50 VMs cost ten tiny messages a second.
    pub beat: Duration,
    /// Silence after which contact counts as missing.
    pub no_contact_after: Duration,
    /// Silence after which the guest counts as lost.
    pub lost_after: Duration,
    /// How long a connection waits for an agent that has not answered yet. The question stands in
    /// the port all the while, so an agent that starts is seen at once.
    pub patience: Duration,
    /// Pause before a new connection after one that failed.
    pub reconnect: Duration,
    /// Pause between two looks at the guest's facts.
    pub facts: Duration,
    /// Earlier looks at its addresses after first contact, when they are still being given out.
    pub facts_early: Vec<Duration>,
    /// Hard limit of a freeze, from its request on.
    pub freeze_limit: Duration,
    /// Pause between two attempts to thaw.
    pub thaw_pause: Duration,
}

impl Default for GuestConfig {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            beat: s(5),
            no_contact_after: s(15),
            lost_after: s(60),
            patience: s(30),
            reconnect: s(1),
            facts: s(60),
            facts_early: vec![s(2), s(5), s(15)],
            freeze_limit: s(10),
            thaw_pause: s(1),
        }
    }
}

/// What is visible of a guest's services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestStatus {
    /// Whether the guest answers.
    pub heartbeat: Heartbeat,
    /// What it tells of itself, if it has and data exchange is on.
    pub facts: Option<Arc<GuestFacts>>,
    /// Whether it has the host's facts.
    pub exchange: Exchange,
    /// Whether its file systems are held.
    pub freeze: FreezeState,
}

/// Why a service did not do what was asked.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The VM's switch for the service is off.
    #[error("the {0} service of this VM is switched off; switch it on to use it")]
    Off(&'static str),
    /// No agent answers at present.
    #[error("no guest agent answers; install and start qemu-guest-agent in the guest")]
    NoContact,
    /// The agent was asked and failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Something is frozen already.
    #[error("the guest's file systems are frozen for another copy; try again in some seconds")]
    AlreadyFrozen,
    /// Nothing was frozen.
    #[error("the guest has no file system that can be frozen; make the copy without it")]
    NothingToFreeze,
    /// Too many requests.
    #[error("the guest's services are busy; try again")]
    Busy,
    /// The task has ended with its VM.
    #[error("the VM does not run; start it first")]
    Gone,
}

/// File systems at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen {
    /// How many file systems.
    pub filesystems: u64,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

pub(super) enum Request {
    Configure(Services),
    Tell(Option<Box<HostFacts>>),
    Pause(bool),
    Refresh,
    Shutdown(Reply<()>),
    SyncTime(Reply<()>),
    Freeze(Reply<Frozen>),
    Thaw(Reply<Consistency>),
    BringOnline(PartKind, Reply<Parts>),
    TakeOffline(u64, Reply<Parts>),
    Exec(Box<ExecRequest>, Reply<ExecOutput>),
}

/// The integration services of one running VM. Cheap to clone; the task ends when the last handle
/// is dropped, and thaws what it has frozen before.
#[derive(Clone, Debug)]
pub struct GuestServices {
    inbox: mpsc::Sender<Request>,
    status: watch::Receiver<GuestStatus>,
    /// See [`GuestServices::agent_came`]. Not a request: those are answered before a connection that
    /// waits for its first answer, and begin it anew.
    came: Arc<AtomicBool>,
}

impl GuestServices {
    /// Starts the services of one run of a VM. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(
        connect: Arc<dyn Connect>,
        clock: Arc<dyn Clock>,
        services: Services,
        config: GuestConfig,
    ) -> Self {
        let (inbox, requests) = mpsc::channel(INBOX_MAX);
        let (publish, status) = watch::channel(GuestStatus::default());
        let came = Arc::new(AtomicBool::new(false));
        let shell = Shell::new(connect, clock, services, config, publish, Arc::clone(&came));
        tokio::spawn(shell.run(requests));
        Self { inbox, status, came }
    }

    /// What is visible now, and every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<GuestStatus> {
        self.status.clone()
    }

    /// Sets the switches; what is on takes effect at once.
    ///
    /// # Errors
    /// `Busy`, `Gone`.
    pub fn configure(&self, services: Services) -> Result<(), ServiceError> {
        self.send(Request::Configure(services))
    }

    /// Sets what the guest may know of its host; written into the guest on each change and after
    /// each boot. `None`: nothing more is written (what is there stays until the next boot).
    ///
    /// # Errors
    /// `Busy`, `Gone`.
    pub fn tell(&self, facts: Option<HostFacts>) -> Result<(), ServiceError> {
        self.send(Request::Tell(facts.map(Box::new)))
    }

    /// The VM's processors were stopped or go on: a stopped guest misses no beat.
    ///
    /// # Errors
    /// `Busy`, `Gone`.
    pub fn set_paused(&self, paused: bool) -> Result<(), ServiceError> {
        self.send(Request::Pause(paused))
    }

    /// Looks at the guest's facts soon: something about it changed.
    ///
    /// # Errors
    /// `Busy`, `Gone`.
    pub fn refresh(&self) -> Result<(), ServiceError> {
        self.send(Request::Refresh)
    }

    /// A program in the guest has opened the agent's port: the agent may be another one now, such as
    /// after an upgrade in the guest, and is asked again what it can do, with the next beat.
    pub fn agent_came(&self) {
        self.came.store(true, Ordering::Relaxed);
    }

    /// Asks the guest to shut down. Success means that the agent did not refuse.
    ///
    /// # Errors
    /// Any [`ServiceError`]: press the power button instead.
    pub async fn shut_down(&self) -> Result<(), ServiceError> {
        self.ask(Request::Shutdown).await
    }

    /// Sets the guest's clock to the host's, as after a resume.
    ///
    /// # Errors
    /// `Off` where time synchronisation is switched off; see [`ServiceError`].
    pub async fn sync_time(&self) -> Result<(), ServiceError> {
        self.ask(Request::SyncTime).await
    }

    /// Freezes the guest's file systems. They are thawed after the limit in any case.
    ///
    /// # Errors
    /// See [`ServiceError`]; nothing stays frozen then.
    pub async fn freeze(&self) -> Result<Frozen, ServiceError> {
        self.ask(Request::Freeze).await
    }

    /// Thaws what [`GuestServices::freeze`] has frozen and says how good the copy is. If the guest
    /// does not answer, thawing goes on in the background.
    ///
    /// # Errors
    /// See [`ServiceError`]; the copy counts as [`Consistency::Crash`] then.
    pub async fn thaw(&self) -> Result<Consistency, ServiceError> {
        self.ask(Request::Thaw).await
    }

    /// Brings all processors or all memory that the guest has into use, and tells what it has then.
    /// What the guest refuses stays out of use.
    ///
    /// # Errors
    /// See [`ServiceError`]: most guests do this by themselves, so it may not matter.
    pub async fn bring_online(&self, kind: PartKind) -> Result<Parts, ServiceError> {
        self.ask(|reply| Request::BringOnline(kind, reply)).await
    }

    /// Takes the highest processors out of use so that `keep` stay in it, as far as the guest can,
    /// and tells what it has then.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn take_offline(&self, keep: u32) -> Result<Parts, ServiceError> {
        self.ask(|reply| Request::TakeOffline(u64::from(keep), reply)).await
    }

    /// Runs a program in the guest (tests only, see [`super::probe`]).
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, ServiceError> {
        self.ask(|reply| Request::Exec(Box::new(request), reply)).await
    }

    fn send(&self, request: Request) -> Result<(), ServiceError> {
        self.inbox.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ServiceError::Busy,
            mpsc::error::TrySendError::Closed(_) => ServiceError::Gone,
        })
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        answer.await.unwrap_or(Err(ServiceError::Gone))
    }
}
