//! What programs do not see: coordinators that die, paths that are lost, nodes that are fenced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use volume::block::Buffer;
use volume::provider::Coordinator;
use volume::provider::CoordinatorConfig;
use volume::provider::CoordinatorError;
use volume::provider::LunPath;
use volume::provider::Reason;
use volume::provider::Way;

use crate::cluster::direct;
use crate::cluster::on_both;
use crate::rig::run;

const SIZE: u64 = 320 << 20;
const BLOCK: usize = 16 << 10;
/// Blocks of the file that is written over and over.
const BLOCKS: u64 = 300;

/// A program that writes a verified pattern, and flushes, until it is told to end.
struct Writer {
    end: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Vec<(u64, u64)>>,
}

fn pattern(block: u64, version: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(BLOCK);
    for (at, word) in buffer.chunks_exact_mut(8).enumerate() {
        let value = (block << 40) ^ (version << 12) ^ at as u64;
        word.copy_from_slice(&value.to_le_bytes());
    }
    buffer
}

impl Writer {
    /// Writes blocks in an order of its own; each tenth time it flushes and reads back. Any error is a
    /// panic. Gives each block's last version.
    fn start(path: &Path) -> Self {
        let file = {
            File::create(path).expect("a file");
            direct(path)
        };
        let (end, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, count) = (end.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            let mut versions = vec![0_u64; usize::try_from(BLOCKS).expect("few")];
            let mut version = 0;
            while !stop.load(Ordering::Relaxed) {
                version += 1;
                let block = if version <= BLOCKS { version - 1 } else { version * 7919 % BLOCKS };
                let place = block * BLOCK as u64;
                file.write_all_at(&pattern(block, version), place).expect("a write");
                versions[usize::try_from(block).expect("few")] = version;
                if version % 10 == 0 {
                    file.sync_data().expect("a flush");
                    let mut back = Buffer::zeroed(BLOCK);
                    file.read_exact_at(&mut back, place).expect("a read");
                    assert!(back[..] == pattern(block, version)[..], "block {block} is not back");
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            file.sync_data().expect("a flush");
            let versions = versions.into_iter().enumerate();
            versions.map(|(block, version)| (block as u64, version)).collect()
        });
        Self { end, rounds, thread }
    }

    /// Waits until it has come so much further.
    fn goes_on(&self, more: u64) -> Duration {
        let (begun, before) = (Instant::now(), self.rounds.load(Ordering::Relaxed));
        while self.rounds.load(Ordering::Relaxed) < before + more {
            assert!(!self.thread.is_finished(), "the writer has ended");
            assert!(begun.elapsed() < Duration::from_secs(30), "the writer stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
        begun.elapsed()
    }

    fn end(self) -> Vec<(u64, u64)> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("no error was seen")
    }
}

fn check(path: &Path, versions: &[(u64, u64)]) {
    let file = File::open(path).expect("the file");
    for (block, version) in versions.iter().filter(|it| it.1 > 0) {
        let mut back = vec![0; BLOCK];
        file.read_exact_at(&mut back, block * BLOCK as u64).expect("a read");
        assert!(back == pattern(*block, *version)[..], "block {block} is not version {version}");
    }
}

#[test]
fn a_coordinator_dies_and_nobody_sees_an_error() {
    on_both(3, SIZE, |cluster| {
        let one = Writer::start(&cluster.at(1, "one"));
        let two = Writer::start(&cluster.at(2, "two"));
        one.goes_on(400);
        two.goes_on(50);
        // The power of node 0 goes, with all that it had not flushed of its own.
        cluster.kill(0);
        std::thread::sleep(Duration::from_millis(30));
        let begun = Instant::now();
        cluster.coordinate(1);
        let pause = one.goes_on(20).max(two.goes_on(20));
        println!("takeover and first writes: {:?}, of that waiting {pause:?}", begun.elapsed());
        cluster.until(2, Way::Direct);
        cluster.until(1, Way::Direct);
        one.goes_on(100);
        two.goes_on(100);
        std::fs::write(cluster.at(1, "after"), b"names go on, too").expect("a file");
        assert_eq!(std::fs::read(cluster.at(2, "after")).expect("a file"), b"names go on, too");
        let (one, two) = (one.end(), two.end());
        check(&cluster.at(2, "one"), &one);
        cluster.look(|root| {
            check(&root.join("one"), &one);
            check(&root.join("two"), &two);
            assert_eq!(std::fs::read(root.join("after")).expect("a file"), b"names go on, too");
        });
    });
}

#[test]
fn the_coordinator_moves_while_everybody_writes() {
    on_both(2, SIZE, |cluster| {
        let one = Writer::start(&cluster.at(0, "one"));
        let two = Writer::start(&cluster.at(1, "two"));
        one.goes_on(50);
        for turn in 0..4 {
            cluster.stop();
            cluster.coordinate((turn + 1) % 2);
            one.goes_on(50);
            two.goes_on(50);
        }
        cluster.until(0, Way::Direct);
        cluster.until(1, Way::Direct);
        let (one, two) = (one.end(), two.end());
        cluster.look(|root| {
            check(&root.join("one"), &one);
            check(&root.join("two"), &two);
        });
    });
}

#[test]
fn a_lost_path_is_a_pause_and_comes_back_by_itself() {
    on_both(2, SIZE, |cluster| {
        let writer = Writer::start(&cluster.at(1, "file"));
        writer.goes_on(BLOCKS + 10);
        for _ in 0..2 {
            cluster.rig.server().lun().set_path(1, false).expect("a path");
            println!("path lost: {:?} for the next writes", writer.goes_on(3));
            cluster.until(1, Way::BlockRedirected(Reason::NoKey));
            writer.goes_on(50);
            cluster.rig.server().lun().set_path(1, true).expect("a path");
            cluster.until(1, Way::Direct);
            writer.goes_on(50);
        }
        let versions = writer.end();
        check(&cluster.at(0, "file"), &versions);
        cluster.look(|root| check(&root.join("file"), &versions));
    });
}

#[test]
fn a_coordinator_without_a_path_gives_up_and_comes_back_as_a_client() {
    on_both(2, SIZE, |cluster| {
        let one = Writer::start(&cluster.at(0, "one"));
        let two = Writer::start(&cluster.at(1, "two"));
        one.goes_on(50);
        two.goes_on(BLOCKS + 10);
        cluster.rig.server().lun().set_path(0, false).expect("a path");
        let new = cluster.at(1, "new");
        let waiting = std::thread::spawn(move || std::fs::write(new, b"a name"));
        let why = cluster.failed();
        assert!(matches!(why, CoordinatorError::FileSystem(_)), "{why}");
        cluster.coordinate(1);
        waiting.join().expect("it ends").expect("no error was seen");
        cluster.until(0, Way::BlockRedirected(Reason::NoKey));
        one.goes_on(50);
        two.goes_on(50);
        cluster.rig.server().lun().set_path(0, true).expect("a path");
        cluster.until(0, Way::Direct);
        one.goes_on(50);
        let (one, two) = (one.end(), two.end());
        cluster.look(|root| {
            check(&root.join("one"), &one);
            check(&root.join("two"), &two);
            assert_eq!(std::fs::read(root.join("new")).expect("a file"), b"a name");
        });
    });
}

#[test]
fn a_lun_that_is_mounted_by_hand_or_is_foreign_is_refused() {
    on_both(2, SIZE, |cluster| {
        cluster.stop();
        let device = cluster.rig.device(1).to_string_lossy().into_owned();
        let root = cluster.rig.root().to_string_lossy().into_owned();
        cluster.rig.server().lun().register(1, 5).expect("a key");
        run("mount", &[&device, &root]);
        let refused = cluster.try_coordinate(1).expect_err("it is mounted by hand");
        assert!(matches!(refused, CoordinatorError::InUse), "{refused}");
        run("umount", &[&root]);
        cluster.coordinate(1);
        std::fs::write(cluster.at(0, "file"), b"it is served").expect("a file");
        cluster.until(0, Way::Direct);
    });
    let rig = crate::rig::Rig::new(64 << 20, 1, 0x5E);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let path = LunPath::new(rig.device(0), rig.server().fence(0));
    let config = CoordinatorConfig {
        volume: crate::cluster::VOLUME,
        epoch: volume::lease::Epoch(1),
        members: [crate::cluster::node(0)].into(),
        mount: rig.root(),
        mount_options: String::new(),
        uuid: None,
        limits: crate::cluster::limits(),
    };
    let foreign = runtime.block_on(Coordinator::start(path, config)).err();
    assert!(matches!(foreign, Some(CoordinatorError::Foreign)), "{foreign:?}");
    assert_eq!(rig.server().lun().keys(0), Ok(vec![]), "a key stays");
}

/// A node that nobody hears any more writes on at its leased blocks; then it is fenced, its file is given
/// to another, and nothing of it lands.
#[test]
fn a_fenced_node_lands_nothing() {
    on_both(2, SIZE, |cluster| {
        let path = cluster.at(1, "file");
        File::create(&path).expect("a file");
        let file = direct(&path);
        file.write_all_at(&pattern(0, 1), 0).expect("a write");
        file.write_all_at(&pattern(1, 1), BLOCK as u64).expect("a write");
        file.sync_data().expect("a flush");
        cluster.cut(1, true);
        let keys = || cluster.rig.server().lun().keys(0).expect("keys").len();
        let begun = Instant::now();
        while keys() > 1 {
            // It still may: nobody has taken anything back.
            assert!(begun.elapsed() < Duration::from_secs(10), "a silent node is not fenced");
            std::thread::sleep(Duration::from_millis(5));
        }
        let stopped = Arc::new(AtomicBool::new(false));
        let landed = stopped.clone();
        let late = std::thread::spawn(move || {
            let written = file.write_all_at(&pattern(0, 2), 0);
            landed.store(true, Ordering::Relaxed);
            written.map_err(|error| error.raw_os_error())
        });
        // Another node is the writer now, and has cut and written the file anew.
        let own = cluster.at(0, "file");
        let begun = Instant::now();
        let taken = loop {
            match File::options().write(true).open(&own) {
                Ok(taken) => break taken,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
            }
        };
        taken.set_len(0).expect("a cut");
        taken.write_all_at(&[7; 3 * BLOCK], 0).expect("a write");
        taken.sync_all().expect("a flush");
        assert!(!stopped.load(Ordering::Relaxed), "a late write was acknowledged");
        assert_eq!(std::fs::read(&own).expect("a file"), [7; 3 * BLOCK]);
        cluster.cut(1, false);
        let answer = late.join().expect("it ends");
        assert_eq!(answer, Err(Some(libc::ESTALE)), "the file was taken over by another writer");
        assert_eq!(std::fs::read(&own).expect("a file"), [7; 3 * BLOCK]);
        drop(taken);
    });
}

#[test]
fn a_full_volume_is_full_and_nothing_else() {
    on_both(2, SIZE, |cluster| {
        let keep = cluster.at(1, "keep");
        std::fs::write(&keep, [3; 100_000]).expect("a file");
        let big = cluster.at(1, "big");
        let file = File::create(&big).expect("a file");
        let chunk = vec![1; 1 << 20];
        let mut at = 0;
        let full = loop {
            match file.write_all_at(&chunk, at) {
                Ok(()) => at += chunk.len() as u64,
                Err(error) => break error,
            }
            assert!(at < SIZE, "more than there is");
        };
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
        assert!(at > SIZE / 2, "full after {at} bytes of {SIZE}");
        file.sync_all().expect("a flush");
        assert_eq!(std::fs::read(cluster.at(0, "keep")).expect("a file"), [3; 100_000]);
        assert!(cluster.at(0, "big").metadata().expect("a file").len() >= at);
        drop(file);
        std::fs::remove_file(cluster.at(0, "big")).expect("gone");
        let begun = Instant::now();
        while let Err(error) = std::fs::write(cluster.at(1, "again"), &chunk) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(10), "space does not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn qemus_tools_work_on_the_mount_point() {
    on_both(2, SIZE, |cluster| {
        let here = |name: &str| cluster.at(1, name).to_string_lossy().into_owned();
        let there = |name: &str| cluster.at(0, name).to_string_lossy().into_owned();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &here("disk"), "1G"]);
        let disk = here("disk");
        let io = |commands: &[&str]| {
            let mut all = vec!["-f", "qcow2", "-t", "none"];
            commands.iter().for_each(|command| all.extend(["-c", *command]));
            all.push(&disk);
            let said = run("qemu-io", &all);
            assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
        };
        io(&["write -P 1 0 8M", "write -P 2 700M 1M", "write -P 3 12345 777", "flush"]);
        io(&["read -P 3 12345 777", "read -P 1 16k 64k", "read -P 2 700M 1M", "read -P 0 9M 1M"]);
        io(&[
            "discard 0 4M",
            "write -z 700M 512k",
            "read -P 0 700M 512k",
            "read -P 2 717312k 512k",
        ]);
        run("qemu-img", &["check", "-q", &there("disk")]);
        run("qemu-img", &["convert", "-O", "raw", "-t", "none", &here("disk"), &here("raw")]);
        run(
            "qemu-img",
            &["compare", "-q", "-f", "qcow2", "-F", "raw", &there("disk"), &there("raw")],
        );
        let plain = cluster.rig.folder.path().join("plain");
        run("cp", &["--sparse=always", &there("raw"), &plain.to_string_lossy()]);
        let raw = ["-q", "-f", "raw", "-F", "raw"];
        let files = [there("raw"), plain.to_string_lossy().into_owned()];
        run("qemu-img", &[&["compare"], &raw[..], &[&files[0], &files[1]]].concat());
    });
}
