//! What a volume's mount points cost beside the raw device path, all in one run: for `cargo xtask bench
//! volume`, which says what the figures have to be. Prints one JSON object for each figure.
//!
//! Raw is a loop device on the lab's LUN, as each node's path is one; it is another LUN of the same
//! kind, since writing beside a mounted file system is no measurement. Short turns of all places follow
//! each other, so that what else the machine does meets all alike: the median of the rounds counts, and
//! beside it stands a good round, which is what it would be on a machine that does nothing else.

#![allow(unsafe_code, reason = "io_uring is given addresses of buffers that outlive the ring")]
#![allow(missing_docs, reason = "a program, not an interface")]

#[path = "../tests/provider/cluster.rs"]
#[allow(dead_code, reason = "the tests of the mount point use the rest")]
mod cluster;
#[path = "../tests/san/rig.rs"]
mod rig;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use std::time::Instant;

use io_uring::IoUring;
use io_uring::opcode;
use io_uring::types::Fd;
use volume::block::Buffer;
use volume::lease::Limits;

use crate::cluster::Cluster;
use crate::cluster::EXT4;
use crate::cluster::direct;
use crate::rig::Rig;

/// Size of each LUN, which is in memory.
const LUN_BYTES: u64 = 1 << 30;

/// Bytes of the file, and of the device, that are read and written.
const SPAN: u64 = 256 << 20;

/// What is written of it in one turn while it grows.
const PART: u64 = 16 << 20;

/// Client flushes that have to reach the LUN before anything is measured.
const FLUSHES: u64 = 200;

const ROUNDS: usize = 60;

/// One kind of load.
struct Load {
    name: &'static str,
    write: bool,
    bytes: usize,
    depth: usize,
    random: bool,
}

const LOADS: &[Load] = &[
    Load { name: "4 KiB random read, depth 1", write: false, bytes: 4096, depth: 1, random: true },
    Load { name: "4 KiB random write, depth 1", write: true, bytes: 4096, depth: 1, random: true },
    Load {
        name: "4 KiB random read, depth 16",
        write: false,
        bytes: 4096,
        depth: 16,
        random: true,
    },
    Load {
        name: "4 KiB random write, depth 16",
        write: true,
        bytes: 4096,
        depth: 16,
        random: true,
    },
    Load { name: "1 MiB sequential read", write: false, bytes: 1 << 20, depth: 4, random: false },
    Load { name: "1 MiB sequential write", write: true, bytes: 1 << 20, depth: 4, random: false },
];

fn main() {
    // Milliseconds of each turn.
    let slice = std::env::args().filter_map(|word| word.parse().ok()).next_back().unwrap_or(20);
    let slice = Duration::from_millis(slice);
    let raw = Rig::new(LUN_BYTES, 1, 0);
    let mut cluster = Cluster::with(2, LUN_BYTES, EXT4, Limits::default());
    check_flushes(&cluster);
    let mounts: Vec<File> = (0..2)
        .map(|node| {
            let path = cluster.at(node, &format!("file{node}"));
            File::create(&path).expect("a file");
            direct(&path)
        })
        .collect();
    let device = direct(raw.device(0));
    let places = [("raw", &device), ("coordinator", &mounts[0]), ("other node", &mounts[1])];
    grow(&places);
    for load in LOADS {
        let mut took = [const { Vec::new() }; 3];
        let mut each = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (place, (_, file)) in places.iter().enumerate() {
                took[place].push(turn(file, load, slice, &mut each[place]));
            }
        }
        for (place, (name, file)) in places.iter().enumerate() {
            took[place].sort_by(f64::total_cmp);
            // One after the other, each request can be a good one.
            let good = if load.depth == 1 { &mut each[place] } else { &mut took[place].clone() };
            good.sort_by(f64::total_cmp);
            say(name, load.name, took[place][ROUNDS / 2], good[good.len() / 10]);
            file.sync_data().expect("a flush");
        }
    }
    drop((device, mounts));
    cluster.end();
}

/// Writes the files from front to back twice, a part of each in turns.
fn grow(places: &[(&str, &File); 3]) {
    for what in ["1 MiB sequential write into new space", "1 MiB sequential write over it"] {
        let mut took = [const { Vec::new() }; 3];
        for part in 0..SPAN / PART {
            for (place, (_, file)) in places.iter().enumerate() {
                took[place].push(fill(file, part * PART));
            }
        }
        for (place, (name, file)) in places.iter().enumerate() {
            // Not the median: growing is dear in few of the parts.
            let mean = took[place].iter().sum::<f64>() / took[place].len() as f64;
            took[place].sort_by(f64::total_cmp);
            say(name, what, mean, took[place][took[place].len() / 10]);
            file.sync_data().expect("a flush");
        }
    }
}

/// Microseconds for each request: as it counts, and in a good round.
fn say(place: &str, what: &str, microseconds: f64, good: f64) {
    println!(
        "{{\"place\":\"{place}\",\"what\":\"{what}\",\"microseconds\":{microseconds:.2},\"good\":{good:.2}}}"
    );
}

/// A peer, or we, that does not flush would only look fast.
fn check_flushes(cluster: &Cluster) {
    for node in 0..2 {
        let path = cluster.at(node, &format!("flushed{node}"));
        File::create(&path).expect("a file");
        let file = direct(&path);
        let before = cluster.rig.server().lun().flushes();
        for turn in 0..FLUSHES {
            file.write_all_at(&Buffer::zeroed(4096), turn % 16 * 4096).expect("a write");
            file.sync_data().expect("a flush");
        }
        let flushes = cluster.rig.server().lun().flushes() - before;
        assert!(flushes >= FLUSHES, "of {FLUSHES} flushes {flushes} reached the LUN");
        println!("{{\"place\":\"node {node}\",\"what\":\"flushes\",\"flushes\":{flushes}}}");
    }
}

/// Writes a part of it from front to back; microseconds for each MiB.
fn fill(file: &File, start: u64) -> f64 {
    let buffer = Buffer::zeroed(1 << 20);
    let begun = Instant::now();
    for at in 0..PART >> 20 {
        file.write_all_at(&buffer, start + (at << 20)).expect("a write");
    }
    begun.elapsed().as_secs_f64() * 1e6 / (PART >> 20) as f64
}

/// Keeps so many requests on the way for so long; microseconds for each, and how long each took.
fn turn(file: &File, load: &Load, slice: Duration, each: &mut Vec<f64>) -> f64 {
    let mut ring = IoUring::new(64).expect("io_uring");
    let mut buffers: Vec<Buffer> = (0..load.depth).map(|_| Buffer::zeroed(load.bytes)).collect();
    let requests = SPAN / load.bytes as u64;
    let (mut next, mut done) = (1_u64, 0_u64);
    let begun = Instant::now();
    let mut push = |ring: &mut IoUring, slot: usize| {
        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = if load.random { (next >> 33) % requests } else { done % requests };
        done += 1;
        let (fd, bytes) = (Fd(file.as_raw_fd()), u32::try_from(load.bytes).expect("short"));
        let (offset, buffer) = (place * load.bytes as u64, buffers[slot].as_mut_ptr());
        let entry = match load.write {
            true => opcode::Write::new(fd, buffer, bytes).offset(offset).build(),
            false => opcode::Read::new(fd, buffer, bytes).offset(offset).build(),
        };
        // SAFETY: the buffers live until the last request has ended, below.
        unsafe { ring.submission().push(&entry.user_data(slot as u64)) }.expect("room");
    };
    let mut since = vec![begun; load.depth];
    (0..load.depth).for_each(|slot| push(&mut ring, slot));
    let (mut ended, mut left) = (0_u64, load.depth);
    while left > 0 {
        ring.submit_and_wait(1).expect("io_uring");
        let over = begun.elapsed() >= slice;
        let completed: Vec<(u64, i32)> =
            ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, result) in completed {
            assert_eq!(usize::try_from(result).ok(), Some(load.bytes), "{}: {result}", load.name);
            ended += 1;
            let slot = usize::try_from(slot).expect("a slot");
            let now = Instant::now();
            each.push((now - since[slot]).as_secs_f64() * 1e6);
            if over {
                left -= 1;
            } else {
                since[slot] = now;
                push(&mut ring, slot);
            }
        }
    }
    begun.elapsed().as_secs_f64() * 1e6 / ended as f64
}
