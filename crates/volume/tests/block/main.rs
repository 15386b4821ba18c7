//! What every `BlockIo` must do, on a file and on a loop device: run for each implementation.

use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::sync_channel;

use volume::block::BlockError;
use volume::block::BlockIo;
use volume::block::Buffer;
use volume::block::Deed;
use volume::block::Outcome;
use volume::block::Payload;
use volume::block::PlainIo;
use volume::block::QUEUE_MAX;
use volume::block::REQUEST_BYTES_MAX;
use volume::block::Request;
use volume::block::RingIo;

const SIZE: u64 = 8 << 20;

type Open = fn(&Path) -> std::io::Result<Box<dyn BlockIo>>;

const ALL: [(&str, Open); 2] = [
    ("plain", |path| Ok(Box::new(PlainIo::open(path)?))),
    ("ring", |path| Ok(Box::new(RingIo::open(path)?))),
];

/// Does one thing and waits for what comes of it.
fn wait(device: &dyn BlockIo, deed: Deed) -> Outcome {
    let (tell, told) = sync_channel(1);
    let done = Box::new(move |outcome| tell.send(outcome).expect("told once"));
    assert!(device.submit(Request { deed, done }).is_ok(), "an empty queue is full");
    told.recv().expect("every request ends")
}

fn pattern(seed: u64, length: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    for (at, word) in buffer.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed ^ (at as u64).wrapping_mul(0x9E37_79B9)).to_le_bytes());
    }
    buffer
}

fn file(folder: &Path) -> PathBuf {
    let path = folder.join("disk");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(SIZE).expect("its size");
    path
}

/// A folder on a real file system, since tmpfs may not know O_DIRECT.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// A loop device that is taken away when it is not needed any more.
struct Loop(PathBuf);

impl Loop {
    fn on(file: &Path) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--direct-io=on"]).arg(file);
        let out = losetup.output().expect("losetup runs; this test needs root");
        assert!(out.status.success(), "losetup: {}", String::from_utf8_lossy(&out.stderr));
        Self(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn reads_what_was_written(device: &dyn BlockIo) {
    assert_eq!((device.size(), device.alignment()), (SIZE, 4096));
    for (offset, length) in [(0, 4096), (8192, 1 << 20), (SIZE - 4096, 4096)] {
        let data = pattern(offset, length);
        let written = wait(device, Deed::Write { offset, data });
        assert_eq!(written.expect("a write").len(), 0);
        let read = wait(device, Deed::Read { offset, length: length as u64 }).expect("a read");
        assert_eq!(read[..], pattern(offset, length)[..]);
    }
    wait(device, Deed::Flush).expect("a flush");
    wait(device, Deed::Discard { offset: 8192, length: 8192 }).expect("a discard");
    let read = wait(device, Deed::Read { offset: 8192, length: 12288 }).expect("a read");
    assert!(read[..8192].iter().all(|byte| *byte == 0), "discarded bytes are there");
    assert_eq!(read[8192..], pattern(8192, 1 << 20)[8192..12288], "a discard took too much");
}

fn refuses_what_cannot_be(device: &dyn BlockIo) {
    let before = wait(device, Deed::Read { offset: 0, length: 8192 }).expect("a read");
    let odd: [Deed; 6] = [
        Deed::Read { offset: 512, length: 4096 },
        Deed::Read { offset: 0, length: 512 },
        Deed::Read { offset: 0, length: 0 },
        Deed::Write { offset: 1, data: pattern(1, 4096) },
        Deed::Write { offset: 0, data: pattern(1, 8) },
        Deed::Read { offset: 0, length: REQUEST_BYTES_MAX + 4096 },
    ];
    for deed in odd {
        let words = format!("{deed:?}");
        let refused = wait(device, deed);
        assert!(matches!(refused, Err(BlockError::Unaligned { .. })), "{words}: {refused:?}");
    }
    for deed in [
        Deed::Read { offset: SIZE, length: 4096 },
        Deed::Write { offset: SIZE - 4096, data: pattern(1, 8192) },
        Deed::Discard { offset: u64::MAX - 4095, length: 4096 },
    ] {
        let words = format!("{deed:?}");
        let refused = wait(device, deed);
        assert!(matches!(refused, Err(BlockError::OutOfRange { .. })), "{words}: {refused:?}");
    }
    let after = wait(device, Deed::Read { offset: 0, length: 8192 }).expect("a read");
    assert_eq!(before[..], after[..], "something was done");
}

/// On the caller's own thread: the same rules.
fn does_the_same_at_once(device: &dyn BlockIo) {
    for (offset, length) in [(4096, 4096), (1 << 20, 1 << 20), (SIZE - 4096, 4096)] {
        device.write_now(offset, &pattern(offset ^ 5, length)).expect("a write");
        let queued = wait(device, Deed::Read { offset, length: length as u64 }).expect("a read");
        assert_eq!(queued[..], pattern(offset ^ 5, length)[..]);
        let data = Payload::from(pattern(offset ^ 6, length));
        wait(device, Deed::WriteShared { offset, data: data.clone() }).expect("a write");
        let mut read = Buffer::zeroed(length);
        device.read_now(offset, &mut read).expect("a read");
        assert_eq!(read[..], data[..]);
    }
    device.flush_now().expect("a flush");
    let mut bytes = Buffer::zeroed(8192);
    let odd = [
        device.read_now(512, &mut bytes[..4096]),
        device.read_now(0, &mut bytes[..512]),
        device.read_now(0, &mut bytes[512..4608]),
        device.write_now(0, &bytes[..0]),
        device.write_now(0, &bytes[512..4608]),
        wait(device, Deed::WriteShared { offset: 0, data: [7; 100].into() }).map(|_| ()),
    ];
    for refused in odd {
        assert!(matches!(refused, Err(BlockError::Unaligned { .. })), "{refused:?}");
    }
    let beyond = device.write_now(SIZE - 4096, &bytes);
    assert!(matches!(beyond, Err(BlockError::OutOfRange { .. })), "{beyond:?}");
}

/// Each request is answered once, none is lost, and the queue has an end.
fn takes_many_and_not_too_many(device: &dyn BlockIo) {
    let (tell, told) = sync_channel(100_000);
    let (gate_open, gate) = sync_channel::<()>(0);
    // The first one holds the device's thread, so that the queue fills.
    let first = tell.clone();
    let done = Box::new(move |_: Outcome| {
        let _ = gate.recv();
        first.send(0).expect("told");
    });
    assert!(device.submit(Request { deed: Deed::Flush, done }).is_ok());
    let mut taken = 1;
    let busy = loop {
        let (number, tell) = (taken, tell.clone());
        let offset = (number % 100) * 4096;
        let deed = Deed::Write { offset, data: pattern(number, 4096) };
        let done = Box::new(move |outcome: Outcome| {
            outcome.expect("a write");
            tell.send(number).expect("told");
        });
        match device.submit(Request { deed, done }) {
            Ok(()) => taken += 1,
            Err(busy) => break busy,
        }
        assert!(taken < 10_000, "the queue has no end");
    };
    assert!(taken >= QUEUE_MAX as u64, "the queue is short: {taken}");
    assert!(matches!(busy.0.deed, Deed::Write { .. }), "the request does not come back");
    drop(gate_open);
    let mut numbers: Vec<u64> = (0..taken).map(|_| told.recv().expect("an answer")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..taken).collect::<Vec<_>>(), "not each request is answered once");
}

fn conformance(device: &dyn BlockIo) {
    reads_what_was_written(device);
    refuses_what_cannot_be(device);
    does_the_same_at_once(device);
    takes_many_and_not_too_many(device);
}

#[test]
fn files_keep_the_contract() {
    for (name, open) in ALL {
        let folder = folder();
        println!("{name}");
        conformance(&*open(&file(folder.path())).expect("a device"));
    }
}

#[test]
fn loop_devices_keep_the_contract() {
    for (name, open) in ALL {
        let folder = folder();
        let device = Loop::on(&file(folder.path()));
        println!("{name} on {}", device.0.display());
        conformance(&*open(&device.0).expect("a device"));
    }
}

/// What was taken is done before the handle is gone.
#[test]
fn dropping_the_handle_waits_for_what_was_taken() {
    for (name, open) in ALL {
        let folder = folder();
        let path = file(folder.path());
        let device = open(&path).expect("a device");
        let (tell, told) = sync_channel(100);
        for number in 0..50 {
            let tell = tell.clone();
            let deed = Deed::Write { offset: number * 4096, data: pattern(number, 4096) };
            let done = Box::new(move |outcome: Outcome| tell.send(outcome.is_ok()).expect("told"));
            assert!(device.submit(Request { deed, done }).is_ok());
        }
        drop(device);
        drop(tell);
        assert_eq!(told.iter().filter(|good| *good).count(), 50, "{name}");
        let bytes = std::fs::read(&path).expect("the file");
        for number in 0..50 {
            let at = number * 4096;
            assert_eq!(bytes[at..at + 4096], pattern(number as u64, 4096)[..], "{name}");
        }
    }
}

/// A device that shrinks is an error, never zeroes.
#[test]
fn a_device_that_shrinks_is_an_error() {
    for (name, open) in ALL {
        let folder = folder();
        let path = file(folder.path());
        let device = open(&path).expect("a device");
        let shorter = std::fs::OpenOptions::new().write(true).open(&path).expect("the file");
        shorter.set_len(1 << 20).expect("a shorter one");
        let read = wait(&*device, Deed::Read { offset: (1 << 20) - 4096, length: 8192 });
        assert_eq!(read.map(|data| data.len()), Err(BlockError::Short), "{name}");
        let read = wait(&*device, Deed::Read { offset: 4 << 20, length: 4096 });
        assert_eq!(read.map(|data| data.len()), Err(BlockError::Short), "{name}");
        let read = device.read_now((1 << 20) - 4096, &mut Buffer::zeroed(8192));
        assert_eq!(read, Err(BlockError::Short), "{name}");
    }
}

#[test]
fn what_is_no_device_is_refused() {
    for (name, open) in ALL {
        let folder = folder();
        assert!(open(folder.path()).is_err(), "{name}: a folder");
        assert!(open(Path::new("/dev/null")).is_err(), "{name}: a character device");
        assert!(open(&folder.path().join("missing")).is_err(), "{name}: nothing");
        let text = folder.path().join("small");
        let mut small = std::fs::File::create(&text).expect("a file");
        small.write_all(b"small").expect("bytes");
        assert_eq!(open(&text).expect("a short file").size(), 0, "{name}");
    }
}
