//! The task that owns the conversation with one guest.
//!
//! It does one thing at a time: a request of a caller first, then thawing, then the beat, then one
//! question about the guest. So no command waits behind more than one other, and whatever the guest
//! does costs one deadline. An error that is no answer ends the session; the next one begins with a
//! synchronisation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Services;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::AgentClient;
use super::client::AgentError;
use super::facts::GuestFacts;
use super::facts::Question;
use super::freeze::Consistency;
use super::freeze::FreezeMachine;
use super::heartbeat::HeartbeatMachine;
use super::host::Exchange;
use super::host::HostFacts;
use super::parts::PartKind;
use super::parts::Parts;
use super::services::Clock;
use super::services::Connect;
use super::services::Frozen;
use super::services::GuestConfig;
use super::services::GuestStatus;
use super::services::Request;
use super::services::ServiceError;
use super::session::Session;

/// Attempts to thaw after the last handle is gone; then only a new session of a new daemon helps.
const FAREWELL_THAWS_MAX: u32 = 10;

pub(super) struct Shell {
    connect: Arc<dyn Connect>,
    clock: Arc<dyn Clock>,
    services: Services,
    config: GuestConfig,
    publish: watch::Sender<GuestStatus>,
    /// All times of the machines are since this.
    epoch: Instant,
    heartbeat: HeartbeatMachine,
    freeze: FreezeMachine,
    session: Option<Session>,
    /// The agent may be another one than the session's: it is asked again what it can do. That goes
    /// with a beat, in place of the ping, so a guest that opens the port all the time costs nothing.
    came: Arc<AtomicBool>,
    /// The last agent that synchronised has answered something since. One that only synchronises is
    /// of no use to anybody and must not count as alive for ever.
    answered: bool,
    /// Differs for each connection.
    seed: u32,
    not_before: Duration,
    paused: bool,
    host: Option<Box<HostFacts>>,
    exchange: Exchange,
    facts: GuestFacts,
    /// Questions and errands of the present round.
    round: VecDeque<Errand>,
    next_beat: Duration,
    next_round: Duration,
    early: VecDeque<Duration>,
    /// Whether the next round is an early one, and not the last of them.
    early_look: bool,
}

/// What a round asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Whole,
    /// The one thing that changes soon after a boot. Many guests often boot together, and each
    /// question takes processor time from all of them.
    Addresses,
}

/// One step of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errand {
    /// A guest that was left frozen, by a daemon that died, is thawed.
    FindFrozen,
    Ask(Question),
    Count(PartKind),
    /// Write the host's file if it is not there.
    FindHostFile,
    WriteHostFile,
}

/// What the task does next.
enum Next {
    Request(Option<Request>),
    Contact(Result<AgentClient, AgentError>),
    Due,
}

impl Shell {
    pub(super) fn new(
        connect: Arc<dyn Connect>,
        clock: Arc<dyn Clock>,
        services: Services,
        config: GuestConfig,
        publish: watch::Sender<GuestStatus>,
        came: Arc<AtomicBool>,
    ) -> Self {
        let mut heartbeat = HeartbeatMachine::new(config.no_contact_after, config.lost_after);
        heartbeat.set_enabled(services.heartbeat);
        let freeze = FreezeMachine::new(config.freeze_limit, config.thaw_pause);
        let seed = (clock.unix_nanos() >> 10) as u32;
        Self {
            connect,
            clock,
            services,
            config,
            publish,
            epoch: Instant::now(),
            heartbeat,
            freeze,
            session: None,
            came,
            answered: true,
            seed,
            not_before: Duration::ZERO,
            paused: false,
            host: None,
            exchange: Exchange::None,
            facts: GuestFacts::default(),
            round: VecDeque::new(),
            next_beat: Duration::ZERO,
            next_round: Duration::ZERO,
            early: VecDeque::new(),
            early_look: false,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        loop {
            self.publish();
            match self.next(&mut inbox).await {
                Next::Request(Some(request)) => self.handle(request).await,
                Next::Request(None) => return self.farewell().await,
                Next::Contact(Ok(client)) => self.contact(client).await,
                Next::Contact(Err(error)) => self.failed(&error),
                Next::Due => self.do_due().await,
            }
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    async fn next(&mut self, inbox: &mut mpsc::Receiver<Request>) -> Next {
        let due = self.due().map(|due| self.epoch + due);
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let wants_session = self.session.is_none() && self.wanted() && !self.paused;
        self.seed = self.seed.wrapping_add(1);
        let connecting = connect(
            Arc::clone(&self.connect),
            self.epoch + self.not_before,
            self.seed,
            self.config.patience,
        );
        tokio::select! {
            biased;
            request = inbox.recv() => Next::Request(request),
            () = sleep => Next::Due,
            client = connecting, if wants_session => Next::Contact(client),
        }
    }

    /// Whether any service needs the agent by itself. Requests of others wait for contact too, so
    /// every switch counts.
    fn wanted(&self) -> bool {
        let s = &self.services;
        s.heartbeat || s.exchange || s.shutdown || s.time_sync || s.backup
    }

    /// When the task has something to do by itself.
    fn due(&self) -> Option<Duration> {
        let change = self.heartbeat.next_change(self.now());
        let mut due: Vec<Duration> = change.into_iter().collect();
        let thaw = self.freeze.due();
        if self.session.is_some() {
            due.extend(thaw);
            // A frozen agent takes thaw and little else; a paused one takes nothing.
            if thaw.is_none() && !self.paused {
                due.push(if self.round.is_empty() { self.next_beat } else { Duration::ZERO });
                due.push(self.next_round);
            }
        }
        due.into_iter().min()
    }

    async fn do_due(&mut self) {
        let now = self.now();
        if self.session.is_none() {
            return;
        }
        self.freeze.expire(now);
        if self.freeze.due().is_some_and(|due| due <= now) && self.freeze.is_thawing() {
            let _ = self.thaw_once().await;
            return;
        }
        if self.freeze.due().is_some() || self.paused {
            return;
        }
        if self.next_beat <= now {
            self.next_beat = now + self.config.beat;
            self.do_beat().await;
        } else if let Some(errand) = self.round.pop_front() {
            self.run_errand(errand).await;
        } else if self.next_round <= now {
            let round = if self.early_look { Round::Addresses } else { Round::Whole };
            let pause = self.early.pop_front();
            self.early_look = !self.early.is_empty();
            self.next_round = now + pause.unwrap_or(self.config.facts);
            self.begin_round(round);
            if round == Round::Whole {
                // Not every port tells who opens it, and of a flood of events some get lost.
                self.came.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Any answer does. One that has come since is asked what it can do.
    async fn do_beat(&mut self) {
        let Some(session) = self.session.as_mut() else { return };
        if !self.came.swap(false, Ordering::Relaxed) {
            let done = session.ping().await;
            return self.note(&done);
        }
        let met = session.meet().await;
        if met.is_ok() {
            self.facts.agent = Some(session.info().version.clone());
        }
        if let Ok(true) = met {
            tracing::info!(agent = session.info().version, "another guest agent answers");
            if self.exchange == Exchange::Refused {
                self.exchange = Exchange::None;
            }
            self.begin_round(Round::Whole);
        }
        self.note(&met);
    }

    /// An agent has answered. That is a heartbeat, and seen at once: what it can do is a long answer
    /// that takes a guest without hardware support a while.
    async fn contact(&mut self, client: AgentClient) {
        if std::mem::take(&mut self.answered) {
            self.heartbeat.beat(self.now());
            self.publish();
        }
        // Whoever came before this moment is asked now.
        self.came.store(false, Ordering::Relaxed);
        match Session::begin(client).await {
            Ok(session) => self.begin(session),
            Err(error) => self.failed(&error),
        }
    }

    fn begin(&mut self, session: Session) {
        tracing::info!(agent = session.info().version, "guest agent answers");
        let now = self.now();
        self.answered = true;
        self.heartbeat.beat(now);
        self.facts.agent = Some(session.info().version.clone());
        if self.exchange == Exchange::Refused {
            self.exchange = Exchange::None;
        }
        self.session = Some(session);
        self.next_beat = now + self.config.beat;
        self.early = self.config.facts_early.iter().copied().collect();
        let pause = self.early.pop_front();
        self.early_look = !self.early.is_empty();
        self.next_round = now + pause.unwrap_or(self.config.facts);
        self.begin_round(Round::Whole);
        // Nobody of this daemon's has frozen it: see whether one before did.
        if !self.freeze.is_thawing() {
            self.round.push_front(Errand::FindFrozen);
        }
    }

    fn begin_round(&mut self, round: Round) {
        self.round.clear();
        if !self.services.exchange {
            return;
        }
        let commands = self.session.as_ref().map(Session::info);
        let known = |question: &Question| {
            commands.is_some_and(|commands| commands.allows(question.command()))
        };
        let questions = match round {
            Round::Whole => &Question::ALL[..],
            Round::Addresses => &[Question::Interfaces],
        };
        self.round.extend(questions.iter().copied().filter(known).map(Errand::Ask));
        if round == Round::Addresses {
            return;
        }
        let countable = |kind: &PartKind| commands.is_some_and(|it| it.allows(kind.get()));
        let kinds = [PartKind::Processors, PartKind::Memory].into_iter();
        self.round.extend(kinds.filter(countable).map(Errand::Count));
        if self.host.is_some() && self.exchange != Exchange::Refused {
            self.round.push_back(Errand::FindHostFile);
        }
    }

    async fn run_errand(&mut self, errand: Errand) {
        let Some(session) = self.session.as_mut() else { return };
        let done = match errand {
            Errand::FindFrozen => match session.is_frozen().await {
                Ok(true) => {
                    tracing::warn!("guest was left frozen; it is thawed");
                    self.freeze.must_thaw(self.epoch.elapsed());
                    Ok(())
                }
                other => other.map(drop),
            },
            Errand::Ask(question) => session.ask(question, &mut self.facts).await,
            Errand::Count(kind) => {
                let counted = session.parts(kind).await;
                counted.map(|parts| self.facts.put_parts(kind, parts))
            }
            Errand::FindHostFile => {
                let found = match self.exchange {
                    Exchange::Written(path) => session.has_file(path).await,
                    _ => Ok(false),
                };
                if let Ok(false) = found {
                    self.round.push_front(Errand::WriteHostFile);
                }
                found.map(drop)
            }
            Errand::WriteHostFile => {
                let Some(host) = self.host.as_ref() else { return };
                let content = host.to_json();
                let written = session.write_host_file(&content).await;
                self.exchange = match &written {
                    Ok(path) => Exchange::Written(path),
                    Err(error) if error.is_answer() => Exchange::Refused,
                    Err(_) => self.exchange,
                };
                written.map(drop)
            }
        };
        self.note(&done);
    }

    /// Takes note of how a command ended: an answer is a sign of life, anything else ends the
    /// session. A wrong shape is an answer too, only a useless one.
    fn note<T>(&mut self, done: &Result<T, AgentError>) {
        match done {
            Ok(_) => self.heartbeat.beat(self.now()),
            Err(error) if error.is_answer() => self.heartbeat.beat(self.now()),
            Err(AgentError::WrongShape { .. }) => {
                tracing::debug!("guest agent answered wrongly");
                self.heartbeat.beat(self.now());
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(&mut self, error: &AgentError) {
        if self.session.take().is_some() {
            tracing::info!(%error, "guest agent does not answer");
        }
        self.round.clear();
        // Who talks nonsense or floods is asked less often: it must not cost us a core.
        let pause = match error {
            AgentError::Timeout { .. } | AgentError::Closed | AgentError::Io(_) => {
                self.config.reconnect
            }
            _ => self.config.beat * 2,
        };
        self.not_before = self.now() + pause;
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Configure(services) => self.configure(services),
            Request::Tell(host) => {
                if self.host != host {
                    self.host = host;
                    self.exchange = Exchange::None;
                    let write = self.host.is_some() && self.services.exchange;
                    if write && self.session.is_some() {
                        self.round.push_front(Errand::WriteHostFile);
                    }
                }
            }
            Request::Pause(paused) => {
                self.paused = paused;
                self.heartbeat.set_paused(self.now(), paused);
                self.next_beat = self.now();
            }
            Request::Refresh => {
                self.early_look = false;
                self.next_round = self.now();
            }
            Request::Shutdown(reply) => {
                let on = self.services.shutdown;
                let done = self.with("shutdown", on, async |s| s.shut_down().await).await;
                let _ = reply.send(done);
            }
            Request::SyncTime(reply) => {
                let (on, clock) = (self.services.time_sync, Arc::clone(&self.clock));
                let set = async |s: &mut Session| s.set_time(|| clock.unix_nanos()).await;
                let done = self.with("time synchronisation", on, set).await;
                let _ = reply.send(done);
            }
            Request::Freeze(reply) => {
                let done = self.freeze().await;
                // Nobody waits any more: nobody will thaw either.
                if let Err(Ok(_)) = reply.send(done) {
                    self.freeze.release(self.now());
                }
            }
            Request::Thaw(reply) => {
                let done = self.thaw().await;
                let _ = reply.send(done);
            }
            Request::BringOnline(kind, reply) => {
                let done = self.switch_parts(kind, async |s| s.bring_online(kind).await).await;
                let _ = reply.send(done);
            }
            Request::TakeOffline(keep, reply) => {
                let kind = PartKind::Processors;
                let done = self.switch_parts(kind, async |s| s.take_offline(keep).await).await;
                let _ = reply.send(done);
            }
            Request::Exec(request, reply) => {
                let done = self.with("exec", true, async |s| s.exec(&request).await).await;
                let _ = reply.send(done);
            }
        }
    }

    fn configure(&mut self, services: Services) {
        let exchange_came = services.exchange && !self.services.exchange;
        self.services = services;
        self.heartbeat.set_enabled(services.heartbeat);
        if exchange_came {
            self.early_look = false;
            self.next_round = self.now();
        }
        if !services.exchange {
            self.round.clear();
            self.facts = GuestFacts::default();
            self.exchange = Exchange::None;
        }
        if !self.wanted() && !self.freeze.is_thawing() {
            self.session = None;
        }
    }

    /// Runs one command of a service that is on.
    async fn with<T>(
        &mut self,
        name: &'static str,
        on: bool,
        command: impl AsyncFnOnce(&mut Session) -> Result<T, AgentError>,
    ) -> Result<T, ServiceError> {
        if !on {
            return Err(ServiceError::Off(name));
        }
        let session = self.session.as_mut().ok_or(ServiceError::NoContact)?;
        let done = command(session).await;
        self.note(&done);
        Ok(done?)
    }

    /// No service of its own: it belongs to a change of hardware that somebody has asked for.
    async fn switch_parts(
        &mut self,
        kind: PartKind,
        command: impl AsyncFnOnce(&mut Session) -> Result<Parts, AgentError>,
    ) -> Result<Parts, ServiceError> {
        if self.paused {
            return Err(ServiceError::NoContact);
        }
        let parts = self.with("processors and memory", true, command).await?;
        self.facts.put_parts(kind, parts);
        self.publish();
        Ok(parts)
    }

    async fn freeze(&mut self) -> Result<Frozen, ServiceError> {
        if !self.services.backup {
            return Err(ServiceError::Off("backup"));
        }
        let now = self.now();
        let session = self.session.as_mut().ok_or(ServiceError::NoContact)?;
        if !self.freeze.begin(now) {
            return Err(ServiceError::AlreadyFrozen);
        }
        let done = session.freeze(self.config.freeze_limit).await;
        self.note(&done);
        match done {
            Ok(filesystems @ 1..) => {
                self.freeze.frozen();
                self.publish();
                Ok(Frozen { filesystems })
            }
            other => {
                // Refused, unclear or empty: make sure that nothing is held.
                self.freeze.must_thaw(self.now());
                let _ = self.thaw_once().await;
                other?;
                Err(ServiceError::NothingToFreeze)
            }
        }
    }

    async fn thaw(&mut self) -> Result<Consistency, ServiceError> {
        let now = self.now();
        if self.freeze.release(now) {
            self.thaw_once().await?;
        }
        Ok(self.freeze.conclude())
    }

    async fn thaw_once(&mut self) -> Result<(), ServiceError> {
        let done = match self.session.as_mut() {
            None => Err(ServiceError::NoContact),
            Some(session) => {
                let done = session.thaw().await;
                self.note(&done);
                done.map_err(ServiceError::from)
            }
        };
        match &done {
            Ok(()) => self.freeze.thawed(),
            // An agent without the command never froze anything.
            Err(ServiceError::Agent(AgentError::NotAllowed { .. })) => self.freeze.thawed(),
            Err(error) => {
                tracing::warn!(%error, "guest was not thawed; trying again");
                self.freeze.thaw_failed(self.now());
            }
        }
        self.publish();
        done
    }

    /// The last handle is gone: leave no guest frozen.
    async fn farewell(mut self) {
        for _ in 0..FAREWELL_THAWS_MAX {
            if !self.freeze.release(self.now()) {
                return;
            }
            if self.session.is_none() {
                self.seed = self.seed.wrapping_add(1);
                let (connector, seed) = (Arc::clone(&self.connect), self.seed);
                let patience = self.config.patience.min(Duration::from_secs(5));
                let contact = connect(connector, Instant::now(), seed, patience).await;
                self.session = match contact {
                    Ok(client) => Session::begin(client).await.ok(),
                    Err(_) => None,
                };
            }
            if self.thaw_once().await.is_err() {
                tokio::time::sleep(self.config.thaw_pause).await;
            }
        }
    }

    fn publish(&self) {
        let heartbeat = self.heartbeat.state(self.now());
        let freeze = self.freeze.state();
        let known = self.services.exchange && self.facts.agent.is_some();
        let exchange = if self.services.exchange { self.exchange } else { Exchange::None };
        self.publish.send_if_modified(|status| {
            let same_facts = status.facts.as_deref() == known.then_some(&self.facts);
            let changed = status.heartbeat != heartbeat
                || status.freeze != freeze
                || status.exchange != exchange
                || !same_facts;
            status.heartbeat = heartbeat;
            status.freeze = freeze;
            status.exchange = exchange;
            if !same_facts {
                status.facts = known.then(|| Arc::new(self.facts.clone()));
            }
            changed
        });
    }
}

/// Connects and synchronises. Owns all it needs, so that dropping it half-way costs nothing.
async fn connect(
    connector: Arc<dyn Connect>,
    not_before: Instant,
    seed: u32,
    patience: Duration,
) -> Result<AgentClient, AgentError> {
    tokio::time::sleep_until(not_before).await;
    let stream = connector.connect().await?;
    Session::contact(stream, seed, patience).await
}
