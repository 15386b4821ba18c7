//! A node's client as something that runs: `lease::Client` with a stream to the coordinator and a
//! device of its own.
//!
//! One task owns the machine and the connection; callers wait for their answers, as long as it
//! takes: a coordinator that dies, a path that is lost and a connection that breaks are pauses. What
//! has no answer is asked again on the next connection, calls with their number, so that the same
//! coordinator does them once.
//!
//! ```text
//!   open, io, call --> inbox --> one task --> device (through the gate) --> completions --.
//!                                 ^    |--> outbox --> stream --> coordinator             |
//!                                 '----+------------------ answers -----------------------'
//! ```
//!
//! Threads of the mount point step the machine, too, and ask the device themselves where that is all there
//! is to do ([`Client::begin`]); see `core`.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use model::NodeId;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::call::Call;
use super::call::Reply;
use super::core::Begun;
use super::core::Core;
use super::core::deed_of;
use super::path::LunPath;
use super::path::Pass;
use super::state::Seen;
use super::state::State;
use super::wire::Down;
use super::wire::Receiver;
use super::wire::Sender;
use super::wire::Up;
use super::wire::WireError;
use crate::block::BlockIo;
use crate::block::Busy;
use crate::block::Request;
use crate::lease::Access;
use crate::lease::Ask;
use crate::lease::Client as Machine;
use crate::lease::ClientEffect;
use crate::lease::ClientInput;
use crate::lease::DeviceDeed;
use crate::lease::Epoch;
use crate::lease::FileId;
use crate::lease::Io;
use crate::lease::IoError;
use crate::lease::IoMode;
use crate::lease::IoResult;
use crate::lease::Limits;
use crate::lease::Payload;
use crate::lease::Refusal;
use crate::lease::RegisterOutcome;
use crate::lease::ReservationKey;
use crate::lease::SessionId;
use crate::lease::Span;
use crate::lease::ToCoordinator;

/// Events that wait for the task: callers wait when it is full.
const INBOX_MAX: usize = 1024;

/// Messages that wait for the stream; more than that is a stream that stands still, and is closed.
const OUTBOX_MAX: usize = 512;

/// How long a connection that could not be made waits until it is tried again.
const DIAL_AGAIN: Duration = Duration::from_millis(50);

/// How long a coordinator may take to greet before the connection is made anew.
const GREETING: Duration = Duration::from_secs(5);

/// On a stream nothing is lost, so what has been asked is not repeated on it, but for this.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A connection to a node.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is being made.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes connections to the coordinator; each proves to both sides which nodes they are.
pub trait Dial: Send + Sync + 'static {
    /// Connects to that node's coordinator of the volume.
    fn dial(&self, coordinator: NodeId) -> Dialing;
}

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The volume's id in the replicated state.
    pub volume: uuid::Uuid,
    /// This node.
    pub node: NodeId,
    /// Greater than any hello that this node ever sent: counted on its disk, a new thousand million
    /// for each start will do.
    pub first_hello: u64,
    /// Times and bounds; the same as the coordinator's.
    pub limits: Limits,
}

enum Event {
    View(Epoch, NodeId),
    Open(FileId, Access, oneshot::Sender<Result<u64, Refusal>>),
    Close(u64),
    /// Blocks of a handle's file that will be written soon.
    Ahead(u64, u64),
    /// The length of a file that this node does not write any more is not to be told again.
    Written(FileId),
    /// To be answered when nothing is being closed.
    Closed(oneshot::Sender<()>),
    Io(Io, oneshot::Sender<IoResult>),
    Call(Call, oneshot::Sender<Reply>),
    Registered(ReservationKey, RegisterOutcome, Option<Arc<dyn BlockIo>>),
    LinkUp {
        link: u64,
        root: FileId,
        outbox: mpsc::Sender<Up>,
    },
    LinkDown {
        link: u64,
    },
    Heard {
        link: u64,
        down: Down,
    },
}

/// A running client. Cheap to clone; it ends with the last clone.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    inbox: mpsc::Sender<Event>,
    root: watch::Receiver<Option<FileId>>,
    state: watch::Receiver<State>,
}

/// Commands that have come back from the device.
#[derive(Default)]
struct Completions {
    done: Mutex<VecDeque<(u64, Option<Payload>)>>,
    some: Notify,
}

impl Client {
    /// Begins; without a path of its own everything goes through the coordinator.
    pub fn start(config: ClientConfig, path: Option<LunPath>, dial: impl Dial) -> Self {
        let (inbox, events) = mpsc::channel(INBOX_MAX);
        let (root_tell, root) = watch::channel(None);
        let (state_tell, state) = watch::channel(State::waiting());
        let core = Core::new(config.node, config.limits.clone(), config.first_hello, path);
        let core = Arc::new(core);
        let task = Task {
            life: config.first_hello,
            config,
            core: core.clone(),
            dial: Arc::new(dial),
            inbox: inbox.downgrade(),
            inputs: VecDeque::new(),
            view: None,
            link: 0,
            linking: None,
            outbox: None,
            asked: None,
            device: None,
            registering: false,
            losses: 0,
            register: None,
            backlog: VecDeque::new(),
            completions: Arc::default(),
            opening: BTreeMap::new(),
            calls: BTreeMap::new(),
            closed: Vec::new(),
            lengths: BTreeMap::new(),
            written: Vec::new(),
            root: root_tell,
            state: state_tell,
            seen: Seen::default(),
        };
        tokio::spawn(task.run(events));
        Self { core, inbox, root, state }
    }

    /// The replicated state names a coordinator; older news are ignored.
    pub async fn view(&self, epoch: Epoch, coordinator: NodeId) {
        self.send(Event::View(epoch, coordinator)).await;
    }

    /// How this node gets at the volume now.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The folder in which the volume's tree begins; waits for the first coordinator.
    pub async fn root(&self) -> FileId {
        let mut root = self.root.clone();
        loop {
            if let Some(root) = *root.borrow_and_update() {
                return root;
            }
            if root.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks the coordinator; waits for as long as there is none.
    pub async fn call(&self, call: Call) -> Reply {
        self.ask(|tell| Event::Call(call, tell)).await
    }

    /// Opens a file; the handle is closed by [`Client::close`] only.
    ///
    /// # Errors
    ///
    /// What the coordinator refused.
    pub async fn open(&self, file: FileId, access: Access) -> Result<u64, Refusal> {
        self.ask(|tell| Event::Open(file, access, tell)).await
    }

    /// A file grows by what is being written up to there: sees that the next blocks are leased before they
    /// are written. Costs a look where that is not due.
    pub(super) fn grows(&self, handle: u64, end: u64) {
        let half = self.core.growth_blocks() / 2;
        let Some(last) = end.checked_sub(1) else { return };
        let Some(run) = self.core.look(|machine| machine.leased_around(handle, last)) else {
            return;
        };
        // Only where it has been written from front to back for a while.
        if end - run.start >= half && run.end() - end < half {
            // If there is no room now, the next write comes soon.
            let _ = self.inbox.try_send(Event::Ahead(handle, run.end()));
        }
    }

    /// Closes a handle; its requests still end.
    pub async fn close(&self, handle: u64) {
        self.send(Event::Close(handle)).await;
    }

    /// Waits until the coordinator has answered all that was closed: the files have their lengths then.
    pub async fn closed(&self) {
        self.ask(Event::Closed).await;
    }

    /// This node writes a file no more: its length is the coordinator's to know.
    pub(super) async fn written(&self, file: FileId) {
        self.send(Event::Written(file)).await;
    }

    /// Reads, writes or flushes blocks; waits for as long as it takes.
    ///
    /// # Errors
    ///
    /// What the coordinator refused, or a request that cannot be.
    pub async fn io(&self, handle: u64, span: Span, mode: IoMode) -> IoResult {
        self.ask(|tell| Event::Io(Io { handle, span, mode }, tell)).await
    }

    /// Begins a request on a thread that may wait for the LUN. Its order to others is as if they had been
    /// asked for one after the other.
    pub(super) fn begin(&self, handle: u64, span: Span, mode: IoMode) -> Begun {
        self.core.begin(Io { handle, span, mode })
    }

    async fn send(&self, event: Event) {
        // The task lives as long as this handle.
        let _ = self.inbox.send(event).await;
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> T {
        let (tell, told) = oneshot::channel();
        self.send(event(tell)).await;
        match told.await {
            Ok(answer) => answer,
            // Never while this handle is there, and never answered wrongly.
            Err(_) => std::future::pending().await,
        }
    }
}

/// A call without an answer.
struct Called {
    call: Call,
    /// Was sent on some connection.
    sent: bool,
    tell: Option<oneshot::Sender<Reply>>,
}

struct Task {
    config: ClientConfig,
    life: u64,
    core: Arc<Core>,
    dial: Arc<dyn Dial>,
    inbox: mpsc::WeakSender<Event>,
    /// What is to be told to the machine, one after the other.
    inputs: VecDeque<ClientInput>,
    view: Option<(Epoch, NodeId)>,
    /// Counts the connections.
    link: u64,
    linking: Option<JoinHandle<()>>,
    outbox: Option<mpsc::Sender<Up>>,
    /// Of which session up to which number was asked on this connection, and since when.
    asked: Option<(SessionId, u64, Instant)>,
    device: Option<Arc<dyn BlockIo>>,
    registering: bool,
    /// Losses of the LUN's cache that this path knew of before its key was registered.
    losses: u64,
    register: Option<ReservationKey>,
    backlog: VecDeque<Request>,
    completions: Arc<Completions>,
    opening: BTreeMap<u64, oneshot::Sender<Result<u64, Refusal>>>,
    calls: BTreeMap<u64, Called>,
    closed: Vec<oneshot::Sender<()>>,
    /// What was last said of the length of a file that this node writes.
    lengths: BTreeMap<FileId, u64>,
    /// Files that this node has ended to write; their lengths go when the coordinator has closed them.
    written: Vec<FileId>,
    root: watch::Sender<Option<FileId>>,
    state: watch::Sender<State>,
    seen: Seen,
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(linking) = self.linking.take() {
            linking.abort();
        }
    }
}

impl Task {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut tick = tokio::time::interval(self.config.limits.resend);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (completions, core) = (self.completions.clone(), self.core.clone());
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                () = completions.some.notified() => {}
                () = core.some.notified() => {}
                _ = tick.tick() => self.inputs.push_back(ClientInput::Tick),
            }
            self.completed();
            self.perform();
            while let Some(input) = self.inputs.pop_front() {
                self.core.step(input);
                self.perform();
            }
            self.look_at_closing();
            self.publish();
        }
    }

    fn look_at_closing(&mut self) {
        if self.written.is_empty() && self.closed.is_empty() {
            return;
        }
        let (written, lengths) = (&mut self.written, &mut self.lengths);
        let closing = self.core.look(|machine| {
            written.retain(|file| {
                let closing = machine.is_closing_writer(*file);
                if !closing {
                    lengths.remove(file);
                }
                closing
            });
            machine.is_closing()
        });
        if !closing {
            for tell in self.closed.drain(..) {
                let _ = tell.send(());
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::View(epoch, coordinator) => {
                if self.view.is_none_or(|(known, _)| known < epoch) {
                    tracing::info!(epoch = epoch.0, %coordinator, "a coordinator is named");
                    self.view = Some((epoch, coordinator));
                    self.inputs.push_back(ClientInput::View { epoch, coordinator });
                    self.connect(epoch, coordinator);
                }
            }
            Event::Open(file, access, tell) => {
                let handle = self.core.number();
                self.opening.insert(handle, tell);
                self.inputs.push_back(ClientInput::Open { handle, file, access });
            }
            Event::Closed(tell) => self.closed.push(tell),
            Event::Written(file) => self.written.push(file),
            Event::Close(handle) => self.inputs.push_back(ClientInput::Close { handle }),
            Event::Ahead(handle, block) => {
                self.inputs.push_back(ClientInput::Ahead { handle, block });
            }
            Event::Io(what, tell) => self.core.submit(what, tell),
            Event::Call(call, tell) => {
                if let Call::Length { file, length, .. } = &call {
                    self.lengths.insert(*file, *length);
                }
                let number = self.core.number();
                self.calls.insert(number, Called { call, sent: false, tell: Some(tell) });
                self.say_call(number);
            }
            Event::Registered(key, outcome, device) => {
                self.registering = false;
                self.device = device.or(self.device.take());
                self.core.set_device(self.device.as_ref(), self.losses);
                self.inputs.push_back(ClientInput::Registered { key, outcome });
                self.begin_register();
            }
            Event::LinkUp { link, root, outbox } if link == self.link => {
                self.root.send_replace(Some(root));
                self.outbox = Some(outbox);
                self.asked = None;
                self.say_again();
                self.inputs.push_back(ClientInput::Tick);
            }
            Event::LinkDown { link } if link == self.link => self.outbox = None,
            Event::Heard { link, down } if link == self.link => self.heard(down),
            Event::LinkUp { .. } | Event::LinkDown { .. } | Event::Heard { .. } => {}
        }
    }

    // ---- the connection

    fn connect(&mut self, epoch: Epoch, coordinator: NodeId) {
        if let Some(linking) = self.linking.take() {
            linking.abort();
        }
        self.outbox = None;
        self.link += 1;
        let greeting = Up::Greet { volume: self.config.volume, epoch, life: self.life };
        let (dial, link, inbox) = (self.dial.clone(), self.link, self.inbox.clone());
        self.linking = Some(tokio::spawn(async move {
            loop {
                let stream = dial.dial(coordinator).await;
                if let Ok(stream) = stream {
                    let result = hold(stream, greeting.clone(), link, &inbox).await;
                    tracing::debug!(?result, "the connection to the coordinator is over");
                }
                let Some(inbox) = inbox.upgrade() else { return };
                if inbox.send(Event::LinkDown { link }).await.is_err() {
                    return;
                }
                drop(inbox);
                tokio::time::sleep(DIAL_AGAIN).await;
            }
        }));
    }

    fn heard(&mut self, down: Down) {
        match down {
            Down::Lease(message) => {
                let Some((_, from)) = self.view else { return };
                self.inputs.push_back(ClientInput::Message { from, message });
            }
            Down::Reply { number, reply } => {
                if let Some(tell) = self.calls.remove(&number).and_then(|called| called.tell) {
                    // Whoever asked may have gone.
                    let _ = tell.send(reply);
                }
            }
            // Said once, before all else.
            Down::Greeted { .. } | Down::Unwelcome(_) => {}
        }
    }

    fn say(&mut self, up: Up) -> bool {
        let Some(outbox) = &self.outbox else { return false };
        if outbox.try_send(up).is_ok() {
            return true;
        }
        // The stream stands still: a new one is made, on which all is asked again.
        self.outbox = None;
        false
    }

    fn say_call(&mut self, number: u64) {
        let done = self.calls.keys().next().copied().unwrap_or(number);
        let Some(called) = self.calls.get(&number) else { return };
        let (call, again) = (called.call.clone(), called.sent);
        if self.say(Up::Call { number, done, again, call })
            && let Some(called) = self.calls.get_mut(&number)
        {
            called.sent = true;
        }
    }

    /// On a new connection: first how long the files are that this node writes, then all else.
    fn say_again(&mut self) {
        let lengths: Vec<_> = self.lengths.iter().map(|(file, length)| (*file, *length)).collect();
        let waiting: Vec<u64> = self.calls.keys().copied().collect();
        for (file, length) in lengths {
            let call = Call::Length { file, length, modified: None, durable: false };
            let number = self.core.number();
            self.calls.insert(number, Called { call, sent: false, tell: None });
            self.say_call(number);
        }
        for number in waiting {
            self.say_call(number);
        }
    }

    // ---- the machine

    /// Performs what the machine has said, whoever stepped it.
    fn perform(&mut self) {
        while let Some(effect) = self.core.next_effect() {
            match effect {
                ClientEffect::Send { message, .. } => self.say_lease(message),
                ClientEffect::Device { part, key, deed, .. } => self.command(part, key, deed),
                ClientEffect::Register(key) => {
                    self.register = Some(key);
                    self.begin_register();
                }
                ClientEffect::Opened { handle, result } => {
                    if let Some(tell) = self.opening.remove(&handle) {
                        let opened = result.is_ok();
                        let told = tell.send(result.map(|_| handle));
                        if opened && told.is_err() {
                            self.inputs.push_back(ClientInput::Close { handle });
                        }
                    }
                }
                ClientEffect::Complete { io, result } => {
                    if let Some(tell) = self.core.waits(io) {
                        let _ = tell.send(result);
                    }
                }
            }
        }
    }

    fn say_lease(&mut self, message: ToCoordinator) {
        if let ToCoordinator::Ask { session, number, ask, .. } = &message {
            let (session, number) = (*session, *number);
            let told = self.asked.filter(|(of, _, _)| *of == session);
            if told.is_some_and(|(_, upto, since)| number <= upto && since.elapsed() < ASK_AGAIN) {
                return;
            }
            if matches!(ask, Ask::Read { .. } | Ask::Write { .. })
                && self.core.look(Machine::is_direct)
            {
                self.seen.redirected();
            }
            let since = told.map_or_else(Instant::now, |(_, _, since)| since);
            let fresh = since.elapsed() < ASK_AGAIN;
            let upto = told.map_or(number, |(_, upto, _)| upto.max(number));
            self.asked = Some((session, upto, if fresh { since } else { Instant::now() }));
        }
        self.say(Up::Lease(message));
    }

    fn begin_register(&mut self) {
        if self.registering {
            return;
        }
        let path = self.core.path().cloned();
        let (Some(key), Some(path)) = (self.register.take(), path) else { return };
        self.registering = true;
        // Before anything is written under it.
        self.losses = path.fence().losses();
        // The machine asks only when nothing is on the way, so this closes an idle device.
        let old = self.device.take();
        self.core.set_device(None, self.losses);
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let done = tokio::task::spawn_blocking(move || {
                drop(old);
                path.register(key)
            });
            let (outcome, device) = done.await.unwrap_or((RegisterOutcome::Failed, None));
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(Event::Registered(key, outcome, device)).await;
            }
        });
    }

    /// Gives the device a command, if the gate lets it through.
    fn command(&mut self, part: u64, key: ReservationKey, deed: DeviceDeed) {
        let pass = self.core.path().and_then(|path| path.enter(key));
        let (Some(pass), Some(_)) = (pass, &self.device) else {
            return self.inputs.push_back(ClientInput::Device { part, result: None });
        };
        let deed = deed_of(deed);
        let done = finish(self.completions.clone(), part, pass, self.losses);
        self.backlog.push_back(Request { deed, done });
        self.submit();
    }

    /// Gives the device what it takes; the rest waits. There is never more than the machine allows.
    fn submit(&mut self) {
        let Some(device) = &self.device else { return };
        while let Some(request) = self.backlog.pop_front() {
            if let Err(Busy(request)) = device.submit(request) {
                self.backlog.push_front(request);
                return;
            }
        }
    }

    fn completed(&mut self) {
        loop {
            let mut done = self.completions.done.lock().unwrap_or_else(PoisonError::into_inner);
            let next = done.pop_front();
            drop(done);
            let Some((part, result)) = next else { break };
            self.inputs.push_back(ClientInput::Device { part, result });
        }
        self.submit();
    }

    fn publish(&mut self) {
        let direct = self.core.look(Machine::is_direct);
        let state = self.seen.look(self.outbox.is_some(), direct, self.core.path().is_some());
        self.state.send_if_modified(|now| {
            let changed = !now.is_like(&state);
            if changed {
                tracing::info!(way = ?state.way, "the way to the volume has changed");
                *now = state;
            }
            changed
        });
    }
}

fn finish(
    completions: Arc<Completions>,
    part: u64,
    pass: Pass,
    losses: u64,
) -> Box<dyn FnOnce(crate::block::Outcome) + Send> {
    Box::new(move |outcome| {
        // A LUN that lost its cache meanwhile did this and may have lost what was before: in doubt.
        let sure = pass.losses() == losses;
        let result = outcome.ok().filter(|_| sure).map(Payload::from);
        drop(pass);
        let mut done = completions.done.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as the device has taken, which has its own bound.
        done.push_back((part, result));
        drop(done);
        completions.some.notify_one();
    })
}

/// One connection, from the greeting to its end.
async fn hold(
    stream: Box<dyn Stream>,
    greeting: Up,
    link: u64,
    inbox: &mpsc::WeakSender<Event>,
) -> Result<(), WireError> {
    let over = || WireError::Stream(io::ErrorKind::ConnectionAborted.into());
    let tell = async |event: Event| match inbox.upgrade() {
        Some(inbox) => inbox.send(event).await.map_err(|_| over()),
        None => Err(over()),
    };
    let (read, write) = tokio::io::split(stream);
    let (mut receiver, mut sender) = (Receiver::new(read), Sender::new(write));
    let greet = async {
        sender.send(greeting).await?;
        receiver.receive::<Down>().await
    };
    let greeted = tokio::time::timeout(GREETING, greet).await.map_err(|_| over())??;
    let root = match greeted {
        Down::Greeted { root } => root,
        Down::Unwelcome(why) => {
            tracing::debug!(%why, "the coordinator does not greet");
            return Ok(());
        }
        Down::Lease(_) | Down::Reply { .. } => return Err(WireError::Message(None)),
    };
    let (outbox, mut messages) = mpsc::channel(OUTBOX_MAX);
    tell(Event::LinkUp { link, root, outbox }).await?;
    let incoming = async {
        loop {
            let down = receiver.receive().await?;
            tell(Event::Heard { link, down }).await?;
        }
    };
    let outgoing = async {
        while let Some(message) = messages.recv().await {
            sender.send(message).await?;
        }
        Err(over())
    };
    tokio::select! {
        result = incoming => result,
        result = outgoing => result,
    }
}

/// What a refusal is as an error number of Linux.
pub(super) fn errno_of(error: &IoError) -> i32 {
    match error {
        IoError::NotOpen => libc::EBADF,
        IoError::Invalid => libc::EINVAL,
        IoError::Limit => libc::EAGAIN,
        IoError::Refused(refusal) => errno_of_refusal(refusal),
    }
}

/// What a refusal is as an error number of Linux.
pub(super) const fn errno_of_refusal(refusal: &Refusal) -> i32 {
    match refusal {
        Refusal::Busy { .. } => libc::EBUSY,
        Refusal::Grace | Refusal::Limit | Refusal::NotRegistered => libc::EAGAIN,
        Refusal::NoSuchFile | Refusal::Taken => libc::ESTALE,
        Refusal::NotOpen => libc::EBADF,
        Refusal::Full => libc::ENOSPC,
        Refusal::Invalid => libc::EINVAL,
        Refusal::FileSystem(_) => libc::EIO,
    }
}
