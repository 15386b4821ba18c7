//! The machines of `volume::lease` over a real file system on the LUN: node 0 is the coordinator and has
//! it mounted, node 1 is a client with a path of its own. Messages go straight from one to the other.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use std::time::Instant;

use model::NodeId;
use volume::block::BlockIo;
use volume::block::Buffer;
use volume::block::Deed as BlockDeed;
use volume::block::Request;
use volume::block::RingIo;
use volume::extent::leasable;
use volume::extent::prepare;
use volume::lease::Access;
use volume::lease::BLOCK_BYTES;
use volume::lease::Client;
use volume::lease::ClientEffect;
use volume::lease::ClientInput;
use volume::lease::Coordinator;
use volume::lease::CoordinatorEffect;
use volume::lease::CoordinatorInput;
use volume::lease::Deed;
use volume::lease::DeedOutcome;
use volume::lease::DeviceDeed;
use volume::lease::Epoch;
use volume::lease::FileId;
use volume::lease::Io;
use volume::lease::IoMode;
use volume::lease::IoResult;
use volume::lease::Limits;
use volume::lease::OpenId;
use volume::lease::Payload;
use volume::lease::RegisterOutcome;
use volume::lease::ReservationKey;
use volume::lease::Span;
use volume::lease::ToClient;
use volume::lease::ToCoordinator;

use crate::rig::Rig;
use crate::rig::run;
use crate::work::direct;

const SIZE: u64 = 320 << 20;
const SECRET: u8 = 0x5E;
const EPOCH: Epoch = Epoch(1);

fn node(number: usize) -> NodeId {
    NodeId::new(uuid::Uuid::from_u128(number as u128 + 1))
}

fn bytes(seed: u8, blocks: u64) -> Payload {
    (0..blocks * BLOCK_BYTES).map(|at| 0x80 | seed ^ (at / 512) as u8).collect()
}

/// Both sides, and what is between them.
struct Pair<'a> {
    rig: &'a Rig,
    begun: Instant,
    coordinator: Coordinator,
    writers: BTreeMap<FileId, (NodeId, OpenId)>,
    client: Client,
    path: RingIo,
    up: VecDeque<ToCoordinator>,
    down: VecDeque<ToClient>,
    tell: SyncSender<(u64, Option<Payload>)>,
    told: Receiver<(u64, Option<Payload>)>,
    /// The client is deaf and dumb, with its path to the LUN as it was.
    cut: bool,
    done: BTreeMap<u64, IoResult>,
    open: Vec<u64>,
    direct: u64,
    fenced: u64,
    next: u64,
}

impl<'a> Pair<'a> {
    fn new(rig: &'a Rig) -> Self {
        let limits = Limits {
            recall: Duration::from_millis(300),
            silence: Duration::from_millis(400),
            resend: Duration::from_millis(20),
            growth_blocks: 64,
            ..Limits::default()
        };
        let own = ReservationKey::of_coordinator(EPOCH);
        rig.server().lun().register(0, own.word()).expect("the coordinator's key");
        let coordinator = Coordinator::new(EPOCH, limits.clone(), [].into(), Duration::ZERO);
        let (tell, told) = sync_channel(256);
        Self {
            rig,
            begun: Instant::now(),
            coordinator,
            writers: BTreeMap::new(),
            client: Client::new(node(1), limits, 1),
            path: RingIo::open(rig.device(1)).expect("the client's path"),
            up: VecDeque::new(),
            down: VecDeque::new(),
            tell,
            told,
            cut: false,
            done: BTreeMap::new(),
            open: Vec::new(),
            direct: 0,
            fenced: 0,
            next: 1,
        }
    }

    fn file(&self, file: FileId) -> File {
        direct(&self.rig.root().join(format!("file{}", file.0)))
    }

    fn coordinate(&mut self, input: CoordinatorInput) {
        let effects = self.coordinator.step(self.begun.elapsed(), input);
        for effect in effects {
            match effect {
                CoordinatorEffect::Send { message, .. } if self.cut => drop(message),
                CoordinatorEffect::Send { message, .. } => self.down.push_back(message),
                CoordinatorEffect::Fence(key) => {
                    self.fenced += 1;
                    self.rig.server().lun().preempt_and_abort(0, key.word()).expect("a fence");
                    self.coordinate(CoordinatorInput::Fenced(key));
                }
                CoordinatorEffect::Do { id, deed } => {
                    let outcome = self.perform(&deed);
                    self.coordinate(CoordinatorInput::Did { id, outcome });
                }
            }
        }
    }

    /// What a coordinator does with the file system that it has mounted.
    fn perform(&mut self, deed: &Deed) -> DeedOutcome {
        let failed = |error: std::io::Error| DeedOutcome::Failed(error.to_string());
        match deed {
            Deed::Inspect { file } => {
                let length = self.file(*file).metadata().expect("a length").len();
                let writer = self.writers.get(file).copied();
                DeedOutcome::File { blocks: length / BLOCK_BYTES, writer }
            }
            Deed::SetWriter { file, writer } => {
                match writer {
                    Some(writer) => drop(self.writers.insert(*file, *writer)),
                    None => drop(self.writers.remove(file)),
                }
                DeedOutcome::Done
            }
            Deed::Prepare { file, ahead: span, .. } => match prepare(&self.file(*file), *span) {
                Ok(extents) => DeedOutcome::Extents(extents),
                Err(error) => DeedOutcome::Failed(error.to_string()),
            },
            Deed::Map { file, span } => {
                leasable(&self.file(*file), *span).map_or_else(failed, DeedOutcome::Extents)
            }
            Deed::Read { file, span } => DeedOutcome::Data(self.read(*file, *span)),
            Deed::Write { file, span, data } => {
                let file = self.file(*file);
                prepare(&file, *span).expect("blocks");
                let written = file.write_all_at(&Buffer::from(&data[..]), span.start * BLOCK_BYTES);
                written.map_or_else(failed, |()| DeedOutcome::Done)
            }
            Deed::Truncate { file, blocks } => {
                let file = self.file(*file);
                file.set_len(blocks * BLOCK_BYTES).expect("a length");
                file.sync_all().expect("a commit");
                DeedOutcome::Done
            }
            Deed::Flush => {
                self.file(FileId(1)).sync_data().map_or_else(failed, |()| DeedOutcome::Done)
            }
            other => panic!("this test has no {other:?}"),
        }
    }

    /// Through the file system, past its cache; behind the end there are zeroes.
    fn read(&self, file: FileId, span: Span) -> Payload {
        let length = usize::try_from(span.count * BLOCK_BYTES).expect("a short range");
        let mut buffer = Buffer::zeroed(length);
        let mut at = 0;
        while at < length {
            let place = span.start * BLOCK_BYTES + at as u64;
            match self.file(file).read_at(&mut buffer[at..], place).expect("a read") {
                0 => break,
                count => at += count,
            }
        }
        buffer[..].into()
    }

    fn serve(&mut self, input: ClientInput) {
        let effects = self.client.step(self.begun.elapsed(), input);
        for effect in effects {
            match effect {
                ClientEffect::Send { message, .. } if self.cut => drop(message),
                ClientEffect::Send { message, .. } => self.up.push_back(message),
                ClientEffect::Device { part, deed, .. } => self.command(part, deed),
                ClientEffect::Register(key) => {
                    let registered = self.rig.server().lun().register(1, key.word());
                    let keys = self.rig.server().lun().keys(1).unwrap_or_default();
                    let newer =
                        keys.iter().any(|it| ReservationKey::from_word(*it).epoch() > EPOCH);
                    assert!(!newer, "there is one epoch only");
                    let outcome = match registered {
                        Ok(()) => RegisterOutcome::Registered,
                        Err(_) => RegisterOutcome::Failed,
                    };
                    self.serve(ClientInput::Registered { key, outcome });
                }
                ClientEffect::Opened { handle, result } => {
                    result.expect("an open file");
                    self.open.push(handle);
                }
                ClientEffect::Complete { io, result } => drop(self.done.insert(io, result)),
            }
        }
    }

    fn command(&mut self, part: u64, deed: DeviceDeed) {
        self.direct += 1;
        let range = |span: Span| (span.start * BLOCK_BYTES, span.count * BLOCK_BYTES);
        let deed = match deed {
            DeviceDeed::Read(span) => {
                let (offset, length) = range(span);
                BlockDeed::Read { offset, length }
            }
            DeviceDeed::Write(span, data) => {
                BlockDeed::Write { offset: range(span).0, data: Buffer::from(&data[..]) }
            }
            DeviceDeed::Flush => BlockDeed::Flush,
        };
        let tell = self.tell.clone();
        let done = Box::new(move |outcome: volume::block::Outcome| {
            tell.send((part, outcome.ok().map(|data| data[..].into()))).expect("told");
        });
        assert!(self.path.submit(Request { deed, done }).is_ok(), "the queue is full");
    }

    /// Goes on until something holds; a minute is too long.
    fn until(&mut self, mut holds: impl FnMut(&mut Self) -> bool) {
        while !holds(self) {
            assert!(self.begun.elapsed() < Duration::from_secs(60), "it does not come to that");
            while let Some(message) = self.up.pop_front() {
                self.coordinate(CoordinatorInput::Message { from: node(1), message });
            }
            while let Some(message) = self.down.pop_front() {
                self.serve(ClientInput::Message { from: node(0), message });
            }
            // Waits for the LUN, and lets time go by.
            if let Ok((part, result)) = self.told.recv_timeout(Duration::from_millis(2)) {
                self.serve(ClientInput::Device { part, result });
            }
            self.serve(ClientInput::Tick);
            self.coordinate(CoordinatorInput::Tick);
        }
    }

    fn submit(&mut self, handle: u64, span: Span, mode: IoMode) -> u64 {
        let io = self.next;
        self.next += 1;
        self.serve(ClientInput::Submit { io, what: Io { handle, span, mode } });
        io
    }

    fn wait(&mut self, handle: u64, span: Span, mode: IoMode) -> Payload {
        let io = self.submit(handle, span, mode);
        self.until(|pair| pair.done.contains_key(&io));
        self.done.remove(&io).expect("it is done").expect("no guest is told an error")
    }

    fn start(&mut self, files: &[u64]) {
        self.serve(ClientInput::View { epoch: EPOCH, coordinator: node(0) });
        self.serve(ClientInput::Path(true));
        for file in files {
            let (file, handle) = (FileId(*file), *file);
            self.serve(ClientInput::Open { handle, file, access: Access::Write });
        }
        let wanted = files.len();
        self.until(|pair| pair.open.len() == wanted && pair.client.is_direct());
    }
}

fn mounted(rig: &Rig, mkfs: &[&str], test: fn(&mut Pair)) {
    let device = rig.device(0).to_string_lossy().into_owned();
    let root = rig.root().to_string_lossy().into_owned();
    let arguments: Vec<&str> = mkfs[1..].iter().copied().chain([&*device]).collect();
    run(mkfs[0], &arguments);
    run("mount", &[&device, &root]);
    let mut pair = Pair::new(rig);
    test(&mut pair);
    drop(pair);
    run("umount", &[&root]);
    match mkfs[0] {
        "mkfs.xfs" => run("xfs_repair", &["-n", &device]),
        _ => run("e2fsck", &["-f", "-n", &device]),
    };
}

fn on_both(test: fn(&mut Pair)) {
    let ext4 = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard"];
    let xfs = ["mkfs.xfs", "-q", "-f", "-K"];
    mounted(&Rig::new(SIZE, 2, SECRET), &ext4, test);
    mounted(&Rig::new(SIZE, 2, SECRET), &xfs, test);
}

#[test]
fn a_node_writes_files_directly_that_another_one_has_mounted() {
    on_both(|pair| {
        pair.start(&[1]);
        for round in 0..6_u8 {
            let span = Span::new(u64::from(round) * 40, 8);
            pair.wait(1, span, IoMode::Write(bytes(round, 8)));
            assert_eq!(pair.read(FileId(1), span), bytes(round, 8), "the coordinator's view");
            assert_eq!(pair.wait(1, span, IoMode::Read), bytes(round, 8));
        }
        assert!(pair.direct > 10, "it was not direct: {}", pair.direct);
        let flushes = pair.rig.server().lun().flushes();
        pair.wait(1, Span::new(0, 0), IoMode::Flush);
        assert!(pair.rig.server().lun().flushes() > flushes, "a flush has not come to the LUN");
        // What was written ahead is zeroes, what is cut is gone, by both ways.
        assert!(pair.wait(1, Span::new(10, 4), IoMode::Read).iter().all(|byte| *byte == 0));
        pair.wait(1, Span::new(2, 0), IoMode::Truncate);
        assert_eq!(pair.file(FileId(1)).metadata().expect("a length").len(), 2 * BLOCK_BYTES);
        let cut = pair.wait(1, Span::new(0, 8), IoMode::Read);
        assert_eq!(cut[..8192], bytes(0, 8)[..8192]);
        assert!(cut[8192..].iter().all(|byte| *byte == 0), "cut bytes are there");
    });
}

#[test]
fn a_lost_path_is_a_pause_and_the_coordinators_way() {
    on_both(|pair| {
        pair.start(&[1]);
        pair.wait(1, Span::new(0, 8), IoMode::Write(bytes(1, 8)));
        pair.rig.server().lun().set_path(1, false).expect("a path");
        // Fails directly, is fenced, and goes through the coordinator; the guest sees nothing of it.
        pair.wait(1, Span::new(4, 8), IoMode::Write(bytes(2, 8)));
        assert!(!pair.client.is_direct());
        assert_eq!(pair.read(FileId(1), Span::new(4, 8)), bytes(2, 8));
        pair.wait(1, Span::new(0, 0), IoMode::Flush);
        pair.rig.server().lun().set_path(1, true).expect("a path");
        pair.until(|pair| pair.client.is_direct());
        let before = pair.direct;
        assert_eq!(pair.wait(1, Span::new(4, 8), IoMode::Read), bytes(2, 8));
        assert!(pair.direct > before, "it did not go direct again");
    });
}

/// The zombie writer: cut off from the coordinator but not from the LUN, it writes where it may no more.
#[test]
fn a_fenced_node_lands_nothing() {
    on_both(|pair| {
        pair.start(&[1]);
        pair.wait(1, Span::new(0, 64), IoMode::Write(bytes(1, 64)));
        let held = leasable(&pair.file(FileId(1)), Span::new(0, 64)).expect("extents");
        pair.wait(1, Span::new(0, 0), IoMode::Flush);
        pair.cut = true;
        pair.up.clear();
        pair.down.clear();
        // It still may: nobody has taken anything back.
        let io = pair.submit(1, Span::new(0, 1), IoMode::Write(bytes(2, 1)));
        pair.until(|pair| pair.done.contains_key(&io));
        pair.until(|pair| pair.fenced > 0);
        // Its blocks are somebody else's now.
        pair.file(FileId(1)).set_len(0).expect("a length");
        pair.file(FileId(1)).sync_all().expect("a commit");
        let other = pair.file(FileId(2));
        prepare(&other, Span::new(0, 64)).expect("blocks");
        other.write_all_at(&Buffer::from(&bytes(9, 64)[..]), 0).expect("another file");
        other.sync_all().expect("a commit");
        let own = direct(pair.rig.device(0));
        let image = |own: &File| {
            let mut all = Vec::new();
            for extent in &held {
                let length = usize::try_from(extent.span.count * BLOCK_BYTES).expect("a length");
                let mut buffer = Buffer::zeroed(length);
                own.read_exact_at(&mut buffer, extent.device * BLOCK_BYTES).expect("the LUN");
                all.extend_from_slice(&buffer);
            }
            all
        };
        let before = image(&own);
        let writes: Vec<u64> = (0..20)
            .map(|at| pair.submit(1, Span::new(at, 1), IoMode::Write(bytes(3, 1))))
            .collect();
        let begun = pair.begun.elapsed();
        pair.until(|pair| pair.begun.elapsed() > begun + Duration::from_millis(200));
        assert!(
            writes.iter().all(|io| !pair.done.contains_key(io)),
            "a late write was acknowledged"
        );
        assert!(image(&own) == before, "a late block has landed");
    });
}
