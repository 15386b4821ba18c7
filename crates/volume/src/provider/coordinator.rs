//! The coordinator of a volume as something that runs: `lease::Coordinator` over the file system that
//! it has mounted, for clients that come over streams.
//!
//! ```text
//!   client --stream--> reader --.                           .--> deeds, calls: blocking threads
//!                               |--> inbox --> one task ----|--> fences: the LUN's reservations
//!   client <--stream-- writer <-- one queue for each client '--> visible state (watch)
//! ```
//!
//! One task owns the machine; all else sends it events. A client's queue that is full means a client
//! that does not read: its connection is closed, and it asks again on the next.
//!
//! **How it begins** is [`Takeover`]: drain, abort, register, look, preempt, mount. **How it ends**:
//! by [`Coordinator::stop`], after which the file system is unmounted and the key taken back; or
//! because the LUN fails or refuses it, or a deed has failed so that nobody knows what it did: then
//! nothing is answered any more, and [`Coordinator::ended`] says why. Whoever holds it then stops it and
//! tells the replicated state, which names another. A coordinator whose host dies is fenced by the next.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::NodeId;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::call::Call;
use super::call::Reply;
use super::deeds;
use super::mount::Mounted;
use super::mount::flush_buffers;
use super::names;
use super::path::LunPath;
use super::store::Store;
use super::wire::Down;
use super::wire::Receiver;
use super::wire::Sender;
use super::wire::Unwelcome;
use super::wire::Up;
use super::wire::WireError;
use crate::lease::Coordinator as Machine;
use crate::lease::CoordinatorEffect;
use crate::lease::CoordinatorInput;
use crate::lease::DeedOutcome;
use crate::lease::Epoch;
use crate::lease::Limits;
use crate::lease::ReservationKey;
use crate::lease::Takeover;
use crate::lease::TakeoverEffect;
use crate::lease::TakeoverInput;
use crate::lease::ToClient;

/// Events that wait for the task: readers wait when it is full.
const INBOX_MAX: usize = 1024;

/// Messages that wait for one client's stream: more than it can have questions.
const OUTBOX_MAX: usize = 512;

/// Calls of one client that are in work or whose answers are kept.
const CALLS_MAX: usize = 1024;

/// Calls and deeds that the file system does at a time.
const WORK_MAX: usize = 64;

/// How long a fence that failed waits until it is tried again.
const FENCE_AGAIN: Duration = Duration::from_millis(100);

/// What a coordinator needs to know.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// The volume's id in the replicated state.
    pub volume: uuid::Uuid,
    /// This reign, which the replicated state has given to this node and to no other.
    pub epoch: Epoch,
    /// Nodes that may be clients, this one among them; they may have files open from before.
    pub members: BTreeSet<NodeId>,
    /// Where the file system is mounted for the coordinator alone: an empty folder that is there.
    pub mount: PathBuf,
    /// Further options of the file system, for instance `nouuid` where one kernel serves all nodes
    /// of a lab. Not for users.
    pub mount_options: String,
    /// UUID of the file system, where that is known: another one is not mounted.
    pub uuid: Option<uuid::Uuid>,
    /// Times and bounds.
    pub limits: Limits,
}

/// Why a coordinator did not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The LUN has a key of a higher epoch, or took this one's away.
    #[error("another node has taken the volume over; wait for the newest state")]
    Superseded,
    /// The LUN's reservations do not work.
    #[error("the LUN does not do what reservations need; look at this node's path to it")]
    Fence(#[source] io::Error),
    /// The device cannot be opened or read.
    #[error("the LUN's device cannot be read; look at this node's path to it")]
    Device(#[source] io::Error),
    /// Somebody on this node has it mounted, or uses it alone.
    #[error("this node has the LUN mounted or in use already; unmount it (lsblk shows where)")]
    InUse,
    /// Neither ext4 nor XFS is on it, or not the one that is named.
    #[error("the LUN does not have the volume's file system; look at what it is: muster disk list")]
    Foreign,
    /// The kernel does not mount it.
    #[error("the file system cannot be mounted; check it with the volume offline")]
    Mount(#[source] io::Error),
    /// The file system or the LUN has failed while it was served.
    #[error("the file system has failed; another node has to take the volume over")]
    FileSystem(#[source] Arc<io::Error>),
    /// It could not be unmounted.
    #[error("the file system cannot be unmounted; find what uses it, then stop again")]
    Unmount(#[source] io::Error),
}

enum Event {
    Attach { node: NodeId, life: u64, link: u64, outbox: mpsc::Sender<Down> },
    Detach { node: NodeId, link: u64 },
    Said { node: NodeId, link: u64, said: Up },
    Did { id: u64, outcome: DeedOutcome },
    Called { node: NodeId, life: u64, number: u64, reply: Reply },
    Fenced(ReservationKey),
    Failed(io::Error),
    Stop(oneshot::Sender<()>),
}

/// A node's client, as the task has it.
struct Peer {
    life: u64,
    link: u64,
    outbox: Option<mpsc::Sender<Down>>,
    /// Answers that may be asked for again; `None` while it is in work.
    calls: BTreeMap<u64, Option<Reply>>,
}

/// What all parts share.
struct Shared {
    config: CoordinatorConfig,
    store: Arc<Store>,
    path: LunPath,
    /// Losses of the LUN's cache that were known before it was mounted.
    losses: u64,
    work: Arc<Semaphore>,
    inbox: mpsc::Sender<Event>,
    ended: watch::Sender<Option<Arc<io::Error>>>,
}

/// A coordinator that serves. Dropped, it serves no more, but what it mounted stays: see
/// [`Coordinator::stop`].
pub struct Coordinator {
    shared: Arc<Shared>,
    mounted: Mounted,
    task: JoinHandle<()>,
    links: std::sync::atomic::AtomicU64,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Coordinator {
    /// Takes the volume over and begins to serve. May take as long as the LUN and the replay of the
    /// journal take.
    ///
    /// # Errors
    ///
    /// See [`CoordinatorError`]; the key is taken back then, as far as the LUN answers.
    pub async fn start(path: LunPath, config: CoordinatorConfig) -> Result<Self, CoordinatorError> {
        let losses = path.fence().losses();
        let mounted = take_over(&path, &config).await?;
        let (mount, device) = (config.mount.clone(), path.device().to_owned());
        let store = match blocking(move || Store::open(&mount, &device)).await {
            Ok(store) => Arc::new(store),
            Err(error) => {
                let _ = blocking(move || mounted.unmount()).await;
                give_up(&path).await;
                return Err(CoordinatorError::Mount(error));
            }
        };
        let (inbox, events) = mpsc::channel(INBOX_MAX);
        let work = Arc::new(Semaphore::new(WORK_MAX));
        let (ended, _) = watch::channel(None);
        tracing::info!(epoch = config.epoch.0, mount = %config.mount.display(), "the volume is served");
        let shared = Arc::new(Shared { config, store, path, losses, work, inbox, ended });
        let task = tokio::spawn(Task::new(shared.clone()).run(events));
        let links = std::sync::atomic::AtomicU64::new(1);
        Ok(Self { shared, mounted, task, links })
    }

    /// Serves a client over a stream, whose other end `node` is proved to have. Returns when the
    /// connection is over; the session outlives it.
    ///
    /// # Errors
    ///
    /// Why the connection is over; nothing else is.
    pub async fn serve<S>(&self, node: NodeId, stream: S) -> Result<(), WireError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let link = self.links.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        serve(self.shared.clone(), node, link, stream).await
    }

    /// The same as a task of its own, for callers that keep no connection.
    pub fn accept<S>(&self, node: NodeId, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let link = self.links.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(shared, node, link, stream).await {
                tracing::debug!(%node, %error, "a client's connection is over");
            }
        });
    }

    /// Clears up after a coordinator of this node that was not stopped, or could not be: what it has
    /// mounted at `mount` is unmounted, and its key is taken back. Where nothing is left, nothing is done.
    ///
    /// # Errors
    ///
    /// If it cannot be unmounted, or the LUN does not answer.
    pub async fn clear(path: &LunPath, mount: PathBuf) -> Result<(), CoordinatorError> {
        blocking(move || Mounted::left_at(&mount)).await.map_err(CoordinatorError::Unmount)?;
        let own = path.clone();
        let key = blocking(move || own.fence().own()).await.map_err(CoordinatorError::Fence)?;
        if key.is_none_or(|key| key == ReservationKey::of_coordinator(key.epoch())) {
            give_up(path).await;
        }
        Ok(())
    }

    /// Resolves when it cannot go on, with the reason.
    pub async fn ended(&self) -> CoordinatorError {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(error)) => CoordinatorError::FileSystem(error),
            // The sender lives as long as this.
            Ok(None) | Err(_) => CoordinatorError::Superseded,
        }
    }

    /// Stops to serve, unmounts and takes the key back. What clients have no answer for they ask the
    /// next coordinator.
    ///
    /// # Errors
    ///
    /// If it cannot be unmounted; the key stays then, for the next coordinator to preempt, and this
    /// node must not register another while it is mounted.
    pub async fn stop(self) -> Result<(), CoordinatorError> {
        let (tell, told) = oneshot::channel();
        if self.shared.inbox.send(Event::Stop(tell)).await.is_ok() {
            // Without an answer the task is over already.
            let _ = told.await;
        }
        // All that is in work has ended: nothing of it is begun after the task.
        let all = u32::try_from(WORK_MAX).unwrap_or(64);
        let _idle = self.shared.work.acquire_many(all).await;
        // The client beside it loses its way to the LUN with the key.
        self.shared.path.shut(None).await;
        let mounted = Mounted::clone(&self.mounted);
        self.shared.store.close();
        blocking(move || mounted.unmount()).await.map_err(CoordinatorError::Unmount)?;
        give_up(&self.shared.path).await;
        tracing::info!(
            epoch = self.shared.config.epoch.0,
            "the volume is not served here any more"
        );
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn give_up(path: &LunPath) {
    let own = path.clone();
    let done = blocking(move || {
        let done = own.fence().unregister();
        own.set_reign(None);
        done
    });
    if let Err(error) = done.await {
        tracing::warn!(%error, "the key could not be taken back; the next coordinator preempts it");
    }
}

/// Runs [`Takeover`] to its end.
async fn take_over(
    path: &LunPath,
    config: &CoordinatorConfig,
) -> Result<Mounted, CoordinatorError> {
    let (mut machine, first) = Takeover::new(config.epoch);
    let (own, epoch) = (path.clone(), config.epoch);
    let begun = blocking(move || {
        own.set_reign(Some(epoch));
        Ok(())
    });
    begun.await.map_err(CoordinatorError::Fence)?;
    let mut orders = vec![first];
    let mut mounted = None;
    let mut why = CoordinatorError::Superseded;
    while let Some(order) = orders.pop() {
        let own = path.clone();
        let fence = |work: fn(&LunPath, ReservationKey) -> io::Result<Vec<ReservationKey>>, key| {
            blocking(move || work(&own, key))
        };
        let none = ReservationKey::from_word(0);
        let did = match order {
            TakeoverEffect::Drain => {
                path.shut(None).await;
                if let Err(error) = clear(path, config).await {
                    give_up(path).await;
                    return Err(error);
                }
                Ok(TakeoverInput::Drained)
            }
            TakeoverEffect::AbortOwn => {
                fence(|path, _| abort_own(path), none).await.map(|_| TakeoverInput::Aborted)
            }
            TakeoverEffect::Register(key) => {
                fence(|path, key| path.fence().register(key).map(|()| Vec::new()), key)
                    .await
                    .map(|_| TakeoverInput::Registered)
            }
            TakeoverEffect::ReadKeys => {
                fence(|path, _| path.fence().keys(), none).await.map(TakeoverInput::Keys)
            }
            TakeoverEffect::Preempt(key) => {
                fence(|path, key| path.fence().preempt(key).map(|()| Vec::new()), key)
                    .await
                    .map(|_| TakeoverInput::Preempted(key))
            }
            TakeoverEffect::Mount => match mount(path, config).await {
                Ok(done) => {
                    mounted = Some(done);
                    Ok(TakeoverInput::Mounted)
                }
                Err(error) => {
                    why = error;
                    Ok(TakeoverInput::Refused)
                }
            },
            TakeoverEffect::Serve => break,
            TakeoverEffect::GiveUp => {
                give_up(path).await;
                return Err(why);
            }
        };
        let input = did.unwrap_or_else(|error| {
            why = CoordinatorError::Fence(error);
            TakeoverInput::Refused
        });
        orders.extend(machine.step(input));
    }
    mounted.ok_or(why)
}

async fn mount(path: &LunPath, config: &CoordinatorConfig) -> Result<Mounted, CoordinatorError> {
    let (device, at) = (path.device().to_owned(), config.mount.clone());
    let (options, uuid) = (config.mount_options.clone(), config.uuid);
    let done = tokio::task::spawn_blocking(move || Mounted::mount(&device, &at, &options, uuid));
    done.await.unwrap_or_else(|error| Err(CoordinatorError::Mount(io::Error::other(error))))
}

/// What a process of this node before has left mounted is unmounted; then nothing on this node uses the
/// device, whatever name space it is in, or it is not taken over.
async fn clear(path: &LunPath, config: &CoordinatorConfig) -> Result<(), CoordinatorError> {
    let (device, mount) = (path.clone(), config.mount.clone());
    let done = blocking(move || {
        Mounted::left_at(&mount)?;
        device.is_free()
    });
    match done.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(CoordinatorError::InUse),
        Err(error) => Err(CoordinatorError::Device(error)),
    }
}

/// This path's key of before is preempted, with all commands under it; and what the kernel still has of
/// the device is thrown away while it cannot be written.
fn abort_own(path: &LunPath) -> io::Result<Vec<ReservationKey>> {
    if let Some(key) = path.fence().own()? {
        path.fence().preempt(key)?;
    }
    if let Ok(device) = std::fs::File::open(path.device()) {
        // Fails where there is something to write, which is then lost, as it must be.
        let _ = flush_buffers(&device);
    }
    Ok(Vec::new())
}

impl Shared {
    /// What was done is worth nothing if the LUN may have lost what the kernel takes for written: only
    /// a new mount, which replays the journal, knows what is there (decision 0026).
    ///
    /// Its key goes first: what the kernel still writes of this mount, at the latest when it is
    /// unmounted, would mark the journal as done with.
    async fn sure<T>(&self, done: T) -> io::Result<T> {
        if self.path.fence().losses() == self.losses {
            return Ok(done);
        }
        let path = self.path.clone();
        blocking(move || path.fence().unregister()).await?;
        Err(io::Error::other("the LUN has lost its volatile cache under the mounted file system"))
    }
}

async fn serve<S>(shared: Arc<Shared>, node: NodeId, link: u64, stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let (mut receiver, mut sender) = (Receiver::new(read), Sender::new(write));
    let config = &shared.config;
    if shared.ended.borrow().is_some() {
        return Err(WireError::Stream(io::ErrorKind::ConnectionRefused.into()));
    }
    let Up::Greet { volume, epoch, life } = receiver.receive().await? else {
        return Err(WireError::Message(None));
    };
    let unwelcome = if volume != config.volume {
        Some(Unwelcome::OtherVolume)
    } else if epoch != config.epoch {
        Some(Unwelcome::OtherEpoch(config.epoch))
    } else if !config.members.contains(&node) {
        Some(Unwelcome::Stranger(node))
    } else {
        None
    };
    if let Some(unwelcome) = unwelcome {
        return sender.send(Down::Unwelcome(unwelcome)).await;
    }
    sender.send(Down::Greeted { root: shared.store.root_id() }).await?;
    let (outbox, mut messages) = mpsc::channel(OUTBOX_MAX);
    let over = || WireError::Stream(io::ErrorKind::ConnectionAborted.into());
    let attach = Event::Attach { node, life, link, outbox };
    shared.inbox.send(attach).await.map_err(|_| over())?;
    let incoming = async {
        loop {
            let said = receiver.receive().await?;
            shared.inbox.send(Event::Said { node, link, said }).await.map_err(|_| over())?;
        }
    };
    let outgoing = async {
        while let Some(message) = messages.recv().await {
            sender.send(message).await?;
        }
        Err(over())
    };
    let result: Result<(), WireError> = tokio::select! {
        result = incoming => result,
        result = outgoing => result,
    };
    // If the task is over, so is everything.
    let _ = shared.inbox.send(Event::Detach { node, link }).await;
    result
}

/// The one that owns the machine.
struct Task {
    shared: Arc<Shared>,
    machine: Machine,
    begun: Instant,
    peers: BTreeMap<NodeId, Peer>,
    failed: bool,
}

impl Task {
    fn new(shared: Arc<Shared>) -> Self {
        let config = &shared.config;
        let machine = Machine::new(
            config.epoch,
            config.limits.clone(),
            config.members.clone(),
            Duration::ZERO,
        );
        Self { shared, machine, begun: Instant::now(), peers: BTreeMap::new(), failed: false }
    }

    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut tick = tokio::time::interval(self.shared.config.limits.resend);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = tick.tick() => {
                    self.step(CoordinatorInput::Tick);
                    let machine = &self.machine;
                    self.shared.store.sweep(|file| machine.is_used(file));
                    self.look_at_losses();
                    continue;
                }
            };
            match event {
                None => return,
                Some(Event::Stop(tell)) => {
                    let _ = tell.send(());
                    return;
                }
                // Answers of a file system that has failed are worth nothing.
                Some(_) if self.failed => {}
                Some(event) => self.handle(event),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Attach { node, life, link, outbox } => {
                let calls = match self.peers.remove(&node) {
                    Some(peer) if peer.life == life => peer.calls,
                    _ => BTreeMap::new(),
                };
                let outbox = Some(outbox);
                self.peers.insert(node, Peer { life, link, outbox, calls });
            }
            Event::Detach { node, link } => {
                if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.link == link) {
                    peer.outbox = None;
                }
            }
            Event::Said { node, link, said } => {
                if self.peers.get(&node).is_some_and(|peer| peer.link == link) {
                    self.said(node, said);
                }
            }
            Event::Did { id, outcome } => self.step(CoordinatorInput::Did { id, outcome }),
            Event::Fenced(key) => self.step(CoordinatorInput::Fenced(key)),
            Event::Called { node, life, number, reply } => {
                let Some(peer) = self.peers.get_mut(&node).filter(|it| it.life == life) else {
                    return;
                };
                if let Some(slot) = peer.calls.get_mut(&number) {
                    *slot = Some(reply.clone());
                }
                self.send(node, Down::Reply { number, reply });
            }
            Event::Failed(error) => {
                tracing::error!(%error, "the file system has failed; this reign is over");
                self.failed = true;
                self.peers.clear();
                self.shared.ended.send_replace(Some(Arc::new(error)));
            }
            Event::Stop(_) => {}
        }
    }

    fn said(&mut self, node: NodeId, said: Up) {
        match said {
            // A second greeting on one connection is a mad client.
            Up::Greet { .. } => self.drop_link(node),
            Up::Lease(message) => {
                self.step(CoordinatorInput::Message { from: node, message });
            }
            Up::Call { number, done, again, call } => self.call(node, number, done, again, call),
        }
    }

    fn call(&mut self, node: NodeId, number: u64, done: u64, again: bool, call: Call) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.calls.retain(|number, reply| *number >= done || reply.is_none());
        match peer.calls.get(&number) {
            Some(None) => return,
            Some(Some(reply)) => {
                let message = Down::Reply { number, reply: reply.clone() };
                return self.send(node, message);
            }
            None => {}
        }
        if number < done {
            return;
        }
        if peer.calls.len() >= CALLS_MAX {
            return self.drop_link(node);
        }
        peer.calls.insert(number, None);
        let (life, shared) = (peer.life, self.shared.clone());
        tokio::spawn(async move {
            let Ok(permit) = shared.work.clone().acquire_owned().await else { return };
            let store = shared.store.clone();
            let reply = blocking(move || names::perform(&store, node, call, again)).await;
            let reply = match reply {
                Ok(reply) => shared.sure(reply).await,
                Err(error) => Err(error),
            };
            let event = match reply {
                Ok(reply) => Event::Called { node, life, number, reply },
                Err(error) => Event::Failed(error),
            };
            drop(permit);
            // Nobody waits for it when the task is over.
            let _ = shared.inbox.send(event).await;
        });
    }

    fn step(&mut self, input: CoordinatorInput) {
        let effects = self.machine.step(self.begun.elapsed(), input);
        for effect in effects {
            match effect {
                CoordinatorEffect::Send { to, message } => self.send(to, Down::Lease(message)),
                CoordinatorEffect::Fence(key) => self.fence(key),
                CoordinatorEffect::Do { id, deed } => {
                    let shared = self.shared.clone();
                    tokio::spawn(async move {
                        let Ok(permit) = shared.work.clone().acquire_owned().await else { return };
                        let store = shared.store.clone();
                        let outcome = blocking(move || deeds::perform(&store, deed)).await;
                        let outcome = match outcome {
                            Ok(outcome) => shared.sure(outcome).await,
                            Err(error) => Err(error),
                        };
                        let event = match outcome {
                            Ok(outcome) => Event::Did { id, outcome },
                            Err(error) => Event::Failed(error),
                        };
                        drop(permit);
                        let _ = shared.inbox.send(event).await;
                    });
                }
            }
        }
    }

    /// A reign over a file system that the LUN has forgotten half of ends also when nobody asks.
    fn look_at_losses(&self) {
        if self.failed || self.shared.path.fence().losses() == self.shared.losses {
            return;
        }
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Err(error) = shared.sure(()).await {
                let _ = shared.inbox.send(Event::Failed(error)).await;
            }
        });
    }

    /// Until the LUN answers: there is no giving up, but with the reign.
    fn fence(&self, key: ReservationKey) {
        let shared = self.shared.clone();
        tracing::info!(?key, "a session's key is fenced");
        tokio::spawn(async move {
            // Of the client on this node, whose key does not stand at the LUN.
            shared.path.shut(Some(key)).await;
            loop {
                let path = shared.path.clone();
                match blocking(move || path.fence().preempt(key)).await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(%error, ?key, "a fence has failed"),
                }
                if shared.inbox.is_closed() {
                    return;
                }
                tokio::time::sleep(FENCE_AGAIN).await;
            }
            let _ = shared.inbox.send(Event::Fenced(key)).await;
        });
    }

    fn send(&mut self, to: NodeId, message: Down) {
        let outbox = self.peers.get(&to).and_then(|peer| peer.outbox.as_ref());
        let Some(outbox) = outbox else { return };
        // A sign of life is not missed: the next one follows.
        let lossy = matches!(message, Down::Lease(ToClient::Pong { .. }));
        if outbox.try_send(message).is_err() && !lossy {
            self.drop_link(to);
        }
    }

    fn drop_link(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            // The writer ends with its queue, and the reader with it.
            peer.outbox = None;
        }
    }
}
