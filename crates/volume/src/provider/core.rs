//! A client's machine, shared by its task and by the threads that serve programs.
//!
//! ```text
//!   thread that serves a program                                  task
//!     begin: step(Submit) --.                                       |
//!       |                   |-- every other effect --> pending --> performs them in order
//!       v                   |                             ^
//!     a command at the LUN  |                             |
//!     of its own: done here |                             |
//!       v                   |                             |
//!     end: step(Device) ----'-- every other effect -------'
//! ```
//!
//! A request whose blocks are leased costs no change of thread: the thread that has it asks the LUN, and
//! waits for it. Nothing else is different from a request of the task's (invariant 45, decision 0037): it is admitted by
//! the machine, under the lease, key and order that the machine gives it; it goes through the gate or is
//! not done; and the machine is told of its end before anybody is answered, so that recalls, fences and new
//! keys wait for it. What the machine says otherwise (wait, ask the coordinator, do it again) is the
//! task's to perform, and whoever asked waits for it.
//!
//! The lock is held for a step of the machine, never for I/O.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use model::NodeId;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::path::LunPath;
use super::path::Pass;
use crate::block::BlockError;
use crate::block::BlockIo;
use crate::block::Buffer;
use crate::block::Busy;
use crate::block::Deed;
use crate::block::Payload;
use crate::block::Request;
use crate::lease::BLOCK_BYTES;
use crate::lease::Client as Machine;
use crate::lease::ClientEffect;
use crate::lease::ClientInput;
use crate::lease::DeviceDeed;
use crate::lease::FileId;
use crate::lease::Io;
use crate::lease::IoResult;
use crate::lease::Limits;
use crate::lease::Part;
use crate::lease::ReservationKey;

/// What task and threads share.
pub(super) struct Core {
    state: Mutex<State>,
    /// There is something for the task.
    pub(super) some: Notify,
    path: Option<LunPath>,
    growth_blocks: u64,
    begun: Instant,
}

struct State {
    machine: Machine,
    /// What the task has not performed yet, in the machine's order.
    pending: VecDeque<ClientEffect>,
    /// Who waits for a request.
    ios: BTreeMap<u64, oneshot::Sender<IoResult>>,
    /// The device under the key that is registered. The task has it: a thread of the device's own, which
    /// ends with it, may be the last to hold this.
    device: Option<Weak<dyn BlockIo>>,
    /// Losses of the LUN's cache that were known before that key was registered.
    losses: u64,
    /// Numbers handles, requests and calls.
    next: u64,
}

/// A command at the LUN, which the machine has given and the gate let through. Dropped without an end it
/// has failed.
pub(super) struct Command(Option<Going>);

struct Going {
    core: Arc<Core>,
    io: u64,
    part: Part,
    at: (FileId, u64),
    key: ReservationKey,
    deed: DeviceDeed,
    device: Arc<dyn BlockIo>,
    pass: Pass,
    losses: u64,
}

/// What became of a request.
pub(super) enum Begun {
    /// The LUN can be asked now, by whoever has this.
    Direct(Command),
    /// It goes its way, and is answered there.
    Waiting(oneshot::Receiver<IoResult>),
}

/// How a command has ended.
pub(super) enum Ended {
    /// With its request; what was read is in the command's buffer.
    Done(IoResult),
    /// It failed, or nobody knows: the request goes on another way, and is answered there, with the data.
    Waiting(oneshot::Receiver<IoResult>),
}

impl Core {
    pub(super) fn new(
        node: NodeId,
        limits: Limits,
        first_hello: u64,
        path: Option<LunPath>,
    ) -> Self {
        let growth_blocks = limits.growth_blocks;
        let mut machine = Machine::new(node, limits, first_hello);
        let first = machine.step(Duration::ZERO, ClientInput::Path(path.is_some()));
        assert!(first.is_empty(), "a client without a coordinator has something to do");
        let state = State {
            machine,
            pending: VecDeque::new(),
            ios: BTreeMap::new(),
            device: None,
            losses: 0,
            next: 1,
        };
        let (state, some) = (Mutex::new(state), Notify::new());
        Self { state, some, path, growth_blocks, begun: Instant::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A step that panics is a mistake of ours: nothing it left half done is believed.
        self.state.lock().unwrap_or_else(|_| std::process::abort())
    }

    pub(super) const fn path(&self) -> Option<&LunPath> {
        self.path.as_ref()
    }

    /// The step in which files grow.
    pub(super) const fn growth_blocks(&self) -> u64 {
        self.growth_blocks
    }

    /// A look at the machine.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.state().machine)
    }

    pub(super) fn number(&self) -> u64 {
        self.state().number()
    }

    // ---- the task's

    /// One step; its effects are pending then.
    pub(super) fn step(&self, input: ClientInput) {
        let mut state = self.state();
        let effects = state.machine.step(self.begun.elapsed(), input);
        state.pending.extend(effects);
    }

    /// What is to be performed next.
    pub(super) fn next_effect(&self) -> Option<ClientEffect> {
        self.state().pending.pop_front()
    }

    /// Who waits for a request that is complete.
    pub(super) fn waits(&self, io: u64) -> Option<oneshot::Sender<IoResult>> {
        self.state().ios.remove(&io)
    }

    /// The device that is open now, and the losses that were known before.
    pub(super) fn set_device(&self, device: Option<&Arc<dyn BlockIo>>, losses: u64) {
        let mut state = self.state();
        state.device = device.map(Arc::downgrade);
        state.losses = losses;
    }

    /// Submits a request for the task to perform.
    pub(super) fn submit(&self, what: Io, tell: oneshot::Sender<IoResult>) {
        let mut state = self.state();
        // In one go, so that requests are numbered in the order in which the machine gets them.
        let io = state.number();
        state.ios.insert(io, tell);
        let effects = state.machine.step(self.begun.elapsed(), ClientInput::Submit { io, what });
        state.pending.extend(effects);
    }

    // ---- the threads'

    /// Submits a request, and gives its command at the LUN to the caller where it has just one.
    pub(super) fn begin(self: &Arc<Self>, what: Io) -> Begun {
        let mut state = self.state();
        let io = state.number();
        let mut effects =
            state.machine.step(self.begun.elapsed(), ClientInput::Submit { io, what });
        let own = |machine: &Machine, effect: &ClientEffect| matches!(effect, ClientEffect::Device { part, .. } if machine.asker(*part) == Some(io));
        let mut places = (0..effects.len()).filter(|at| own(&state.machine, &effects[*at]));
        let command = match (places.next(), places.next()) {
            (Some(at), None) => Some(effects.remove(at)),
            _ => None,
        };
        self.put_off(&mut state, effects);
        if let Some(ClientEffect::Device { part, at, key, deed }) = command {
            let pass = self.path.as_ref().and_then(|path| path.enter(key));
            let device = state.device.as_ref().and_then(Weak::upgrade);
            if let (Some(pass), Some(device)) = (pass, device) {
                let (core, losses) = (self.clone(), state.losses);
                let going = Going { core, io, part, at, key, deed, device, pass, losses };
                return Begun::Direct(Command(Some(going)));
            }
            // The gate is shut: it was not begun, and the machine is told as of any that failed.
            let input = ClientInput::Device { part, result: None };
            let effects = state.machine.step(self.begun.elapsed(), input);
            self.put_off(&mut state, effects);
        }
        Begun::Waiting(state.wait(io))
    }

    fn put_off(&self, state: &mut State, effects: Vec<ClientEffect>) {
        if !effects.is_empty() {
            state.pending.extend(effects);
            self.some.notify_one();
        }
    }

    /// Tells the machine that a command is over: nothing of it is on the way any more.
    fn ended(&self, io: u64, part: Part, good: bool) -> Ended {
        let mut state = self.state();
        // What was read stays with whoever read it.
        let result = good.then(Payload::default);
        let input = ClientInput::Device { part, result };
        let mut effects = state.machine.step(self.begun.elapsed(), input);
        let own = |effect: &ClientEffect| matches!(effect, ClientEffect::Complete { io: of, .. } if *of == io);
        let complete = effects.iter().position(own).map(|at| effects.remove(at));
        self.put_off(&mut state, effects);
        match complete {
            Some(ClientEffect::Complete { result, .. }) => Ended::Done(result),
            _ => Ended::Waiting(state.wait(io)),
        }
    }
}

impl State {
    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn wait(&mut self, io: u64) -> oneshot::Receiver<IoResult> {
        let (tell, told) = oneshot::channel();
        self.ios.insert(io, tell);
        told
    }
}

impl Going {
    fn end(self, good: bool) -> Ended {
        let Self { core, io, part, device, pass, losses, .. } = self;
        // A LUN that lost its cache meanwhile did this and may have lost what was before: in doubt.
        let sure = pass.losses() == losses;
        // First these: when the machine hears of the end it may have a new key registered.
        drop(device);
        drop(pass);
        core.ended(io, part, good && sure)
    }
}

impl Command {
    fn take(&mut self) -> Going {
        match self.0.take() {
            Some(going) => going,
            None => panic!("a command has two ends"),
        }
    }

    /// Has the LUN do it, on this thread. A read fills the front of `buffer`, which has room for it.
    pub(super) fn now(mut self, buffer: &mut [u8]) -> Ended {
        let going = self.take();
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES);
        let done = match &going.deed {
            DeviceDeed::Read(span) => {
                let length = usize::try_from(bytes(span.count)).unwrap_or(usize::MAX);
                let room = buffer.get_mut(..length).ok_or(BlockError::Short);
                room.and_then(|room| going.device.read_now(bytes(span.start), room))
            }
            DeviceDeed::Write(span, data) => match data.blocks() {
                Some(blocks) => going.device.write_now(bytes(span.start), blocks),
                None => going.device.write_now(bytes(span.start), &Buffer::from(&data[..])),
            },
            DeviceDeed::Flush => going.device.flush_now(),
        };
        going.end(done.is_ok())
    }

    /// Has the LUN do it beside others; `done` is called on the LUN's thread, with what was read, and must
    /// not wait. What the device does not take at once the task gives it later.
    pub(super) fn later(mut self, done: impl FnOnce(Ended, Buffer) + Send + 'static) {
        let Going { core, io, part, at, key, deed, device, pass, losses } = self.take();
        let wanted = deed_of(deed.clone());
        let asked = Arc::new(Mutex::new(Some((pass, done))));
        let (own, taken) = (core.clone(), asked.clone());
        let request = Request {
            deed: wanted,
            done: Box::new(move |outcome| {
                let Some((pass, done)) = taken_out(&taken) else { return };
                let sure = pass.losses() == losses;
                drop(pass);
                let good = sure && outcome.is_ok();
                done(own.ended(io, part, good), outcome.unwrap_or_else(|_| Buffer::empty()));
            }),
        };
        let Err(Busy(_)) = device.submit(request) else { return };
        let Some((pass, done)) = taken_out(&asked) else { return };
        drop((device, pass));
        let waiting = {
            let mut state = core.state();
            let effect = ClientEffect::Device { part, at, key, deed };
            core.put_off(&mut state, vec![effect]);
            state.wait(io)
        };
        done(Ended::Waiting(waiting), Buffer::empty());
    }
}

fn taken_out<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Drop for Command {
    fn drop(&mut self) {
        if let Some(going) = self.0.take() {
            // Whoever asked has gone, and nobody knows how far it came.
            let _ = going.end(false);
        }
    }
}

/// A command of the machine's as the device takes it.
pub(super) fn deed_of(deed: DeviceDeed) -> Deed {
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES);
    match deed {
        DeviceDeed::Read(span) => {
            Deed::Read { offset: bytes(span.start), length: bytes(span.count) }
        }
        DeviceDeed::Write(span, data) if data.blocks().is_some() => {
            Deed::WriteShared { offset: bytes(span.start), data }
        }
        DeviceDeed::Write(span, data) => {
            Deed::Write { offset: bytes(span.start), data: Buffer::from(&data[..]) }
        }
        DeviceDeed::Flush => Deed::Flush,
    }
}
