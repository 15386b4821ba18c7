//! Invariant 45: what a program's thread does at the LUN is a command like any other.

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use super::*;
use crate::lease::Access;
use crate::lease::Answer;
use crate::lease::Ask;
use crate::lease::Epoch;
use crate::lease::Extent;
use crate::lease::IoMode;
use crate::lease::OpenId;
use crate::lease::RegisterOutcome;
use crate::lease::SessionId;
use crate::lease::Span;
use crate::lease::ToClient;
use crate::lease::ToCoordinator;
use crate::provider::path::Fence;

const FILE: FileId = FileId(40);
const HANDLE: u64 = 900;
/// Where block 0 of the file lies on the LUN.
const PLACE: u64 = 16;
const SESSION: SessionId = SessionId { epoch: Epoch(1), number: 3 };

fn node(number: u128) -> NodeId {
    NodeId::new(uuid::Uuid::from_u128(number))
}

/// A LUN for which the keys of one path are all there are.
#[derive(Default)]
struct Keys {
    own: Mutex<Option<ReservationKey>>,
    losses: Arc<AtomicU64>,
}

impl Fence for Keys {
    fn register(&self, key: ReservationKey) -> std::io::Result<()> {
        *self.own.lock().expect("a key") = Some(key);
        Ok(())
    }

    fn unregister(&self) -> std::io::Result<()> {
        *self.own.lock().expect("a key") = None;
        Ok(())
    }

    fn keys(&self) -> std::io::Result<Vec<ReservationKey>> {
        Ok(self.own.lock().expect("a key").iter().copied().collect())
    }

    fn own(&self) -> std::io::Result<Option<ReservationKey>> {
        Ok(*self.own.lock().expect("a key"))
    }

    fn preempt(&self, key: ReservationKey) -> std::io::Result<()> {
        let mut own = self.own.lock().expect("a key");
        *own = own.filter(|it| *it != key);
        Ok(())
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }
}

struct Rig {
    core: Arc<Core>,
    path: LunPath,
    losses: Arc<AtomicU64>,
    disk: tempfile::NamedTempFile,
    _device: Arc<dyn BlockIo>,
}

impl Rig {
    /// A client with a session, a key, an open file and a lease of eight of its blocks.
    fn new() -> Self {
        // On a real file system, since tmpfs may not know O_DIRECT.
        let program = std::env::current_exe().expect("this program");
        let folder = program.parent().expect("its folder");
        let disk = tempfile::NamedTempFile::new_in(folder).expect("a file");
        disk.as_file().set_len(1 << 20).expect("a size");
        let keys = Keys::default();
        let losses = keys.losses.clone();
        let path = LunPath::new(disk.path(), keys);
        let core = Arc::new(Core::new(node(1), Limits::default(), 1, Some(path.clone())));
        core.step(ClientInput::View { epoch: SESSION.epoch, coordinator: node(2) });
        let hello = sent(&core).into_iter().find_map(|said| match said {
            ToCoordinator::Hello { nonce, .. } => Some(nonce),
            _ => None,
        });
        hear(&core, ToClient::Welcome { nonce: hello.expect("a hello"), session: SESSION });
        let (outcome, device) = path.register(SESSION.key());
        assert_eq!(outcome, RegisterOutcome::Registered);
        let device = device.expect("a device");
        core.set_device(Some(&device), 0);
        core.step(ClientInput::Registered { key: SESSION.key(), outcome });
        let access = Access::Write;
        core.step(ClientInput::Open { handle: HANDLE, file: FILE, access });
        let open = OpenId { epoch: SESSION.epoch, number: 1 };
        let opened = Answer::Opened { open, blocks: 8 };
        answer(&core, |ask| matches!(ask, Ask::Open { .. }), opened);
        core.step(ClientInput::Ahead { handle: HANDLE, block: 0 });
        let extents = vec![Extent { span: Span::new(0, 8), device: PLACE }];
        let granted = Answer::Granted { file: FILE, number: 1, access, extents };
        answer(&core, |ask| matches!(ask, Ask::Acquire { .. }), granted);
        sent(&core);
        Self { core, path, losses, disk, _device: device }
    }

    fn write(&self, block: u64, byte: u8) -> Begun {
        let mode = IoMode::Write(Payload::from(vec![byte; 4096]));
        self.core.begin(Io { handle: HANDLE, span: Span::new(block, 1), mode })
    }

    fn command(&self, block: u64, byte: u8) -> Command {
        match self.write(block, byte) {
            Begun::Direct(command) => command,
            Begun::Waiting(_) => panic!("a leased block is not written at once"),
        }
    }

    fn on_disk(&self, block: u64) -> u8 {
        let mut bytes = [0; 4096];
        self.disk.as_file().read_exact_at(&mut bytes, (PLACE + block) * 4096).expect("a read");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "half a block");
        bytes[0]
    }
}

/// What the machine wants to be said.
fn sent(core: &Core) -> Vec<ToCoordinator> {
    let effects = std::iter::from_fn(|| core.next_effect());
    let said = effects.filter_map(|effect| match effect {
        ClientEffect::Send { message, .. } => Some(message),
        _ => None,
    });
    said.collect()
}

fn hear(core: &Core, message: ToClient) {
    core.step(ClientInput::Message { from: node(2), message });
}

fn answer(core: &Core, to: impl Fn(&Ask) -> bool, answer: Answer) {
    let number = sent(core).into_iter().find_map(|said| match said {
        ToCoordinator::Ask { number, ask, .. } if to(&ask) => Some(number),
        _ => None,
    });
    let number = number.expect("the question");
    hear(core, ToClient::Answer { session: SESSION, number, answer });
}

fn gives_up(core: &Core) -> bool {
    sent(core).iter().any(|said| matches!(said, ToCoordinator::Hello { .. }))
}

#[test]
fn a_leased_block_is_read_and_written_at_once() {
    let rig = Rig::new();
    let ended = rig.command(2, 7).now(&mut []);
    assert!(matches!(ended, Ended::Done(Ok(_))));
    assert_eq!((rig.on_disk(2), rig.on_disk(3)), (7, 0));
    let read = Io { handle: HANDLE, span: Span::new(2, 2), mode: IoMode::Read };
    let Begun::Direct(command) = rig.core.begin(read) else { panic!("not at once") };
    let mut back = Buffer::zeroed(16384);
    assert!(matches!(command.now(&mut back), Ended::Done(Ok(_))));
    assert_eq!((back[0], back[4096]), (7, 0));
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    rig.command(5, 9).later(move |ended, _| {
        tell.send(matches!(ended, Ended::Done(Ok(_)))).expect("somebody waits");
    });
    assert_eq!((told.recv(), rig.on_disk(5)), (Ok(true), 9));
}

#[test]
fn two_changes_of_a_block_are_never_on_the_way_together() {
    let rig = Rig::new();
    let first = rig.command(2, 7);
    assert!(matches!(rig.write(2, 8), Begun::Waiting(_)));
    let other = rig.command(3, 9);
    assert!(matches!(other.now(&mut []), Ended::Done(Ok(_))));
    assert!(matches!(first.now(&mut []), Ended::Done(Ok(_))));
    // Now the second one is the task's to do.
    let next = rig.core.next_effect();
    assert!(matches!(next, Some(ClientEffect::Device { at: (FILE, 2), .. })), "{next:?}");
}

#[test]
fn a_recall_waits_for_what_a_thread_has_on_the_way() {
    let rig = Rig::new();
    let command = rig.command(2, 7);
    let span = Span::new(0, 8);
    hear(&rig.core, ToClient::Recall { session: SESSION, file: FILE, upto: 1, span });
    assert!(matches!(rig.write(3, 8), Begun::Waiting(_)), "a recalled lease is used");
    let released = || {
        let said = sent(&rig.core);
        said.iter().any(|it| matches!(it, ToCoordinator::Released { .. }))
    };
    assert!(!released());
    assert!(matches!(command.now(&mut []), Ended::Done(Ok(_))));
    assert!(released());
}

#[test]
fn a_fence_waits_for_what_a_thread_has_on_the_way_and_lets_nothing_through_after() {
    let rig = Rig::new();
    let command = rig.command(2, 7);
    let mut shut = pin!(rig.path.shut(Some(SESSION.key())));
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(shut.as_mut().poll(&mut context), Poll::Pending);
    // What comes meanwhile is not done, and the machine asks for a new session.
    assert!(matches!(rig.write(3, 8), Begun::Waiting(_)));
    assert!(gives_up(&rig.core));
    assert_eq!(shut.as_mut().poll(&mut context), Poll::Pending);
    // Of a session that is given up nothing is believed.
    assert!(matches!(command.now(&mut []), Ended::Waiting(_)));
    assert_eq!(shut.as_mut().poll(&mut context), Poll::Ready(()));
    assert_eq!((rig.on_disk(2), rig.on_disk(3)), (7, 0));
}

#[test]
fn what_nobody_knows_the_end_of_has_failed() {
    let rig = Rig::new();
    drop(rig.command(2, 7));
    assert!(gives_up(&rig.core));
    assert!(rig.core.look(Machine::is_drained));

    let rig = Rig::new();
    let command = rig.command(2, 7);
    rig.losses.fetch_add(1, Ordering::SeqCst);
    assert!(matches!(command.now(&mut []), Ended::Waiting(_)), "the cache may be lost");
    assert!(gives_up(&rig.core));

    let rig = Rig::new();
    rig.disk.as_file().set_len(4096).expect("a device that shrinks");
    let read = Io { handle: HANDLE, span: Span::new(0, 1), mode: IoMode::Read };
    let Begun::Direct(command) = rig.core.begin(read) else { panic!("not at once") };
    assert!(matches!(command.now(&mut Buffer::zeroed(4096)), Ended::Waiting(_)));
    assert!(gives_up(&rig.core));
}
