//! What programs see: names, bytes and lengths, on every node the same.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cluster::Cluster;
use crate::cluster::on_both;
use crate::rig::run;

const SIZE: u64 = 320 << 20;

fn errno(result: std::io::Result<impl Sized>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

fn bytes(seed: usize, count: usize) -> Vec<u8> {
    (0..count).map(|at| (seed * 31 + at / 7 + at) as u8).collect()
}

#[test]
fn what_one_node_writes_the_others_read() {
    on_both(2, SIZE, |cluster| {
        for (number, (writer, reader)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            for count in [0, 1, 4095, 4096, 4097, 100_000, 3 << 20] {
                let name = format!("file-{number}-{count}");
                let data = bytes(count + number, count);
                std::fs::write(cluster.at(writer, &name), &data).expect("a write");
                let there = cluster.at(reader, &name);
                assert_eq!(there.metadata().expect("a file").len(), count as u64);
                assert!(std::fs::read(&there).expect("a read") == data, "{name} is not the same");
            }
        }
        ends_of_blocks(cluster);
        let mut listed = Vec::new();
        for entry in std::fs::read_dir(&cluster.node(1).at).expect("a folder") {
            listed.push(entry.expect("an entry").file_name().into_string().expect("a name"));
        }
        listed.sort();
        assert_eq!(listed.iter().filter(|name| name.starts_with("file-")).count(), 14);
        cluster.look(|root| {
            for (number, count) in [(0, 4097), (1, 100_000), (1, 3 << 20), (0, 1)] {
                let plain = std::fs::read(root.join(format!("file-{number}-{count}")));
                assert!(plain.expect("a plain file") == bytes(count + number, count));
            }
            assert_eq!(root.join("ends").metadata().expect("a file").len(), 20_001);
        });
    });
}

/// Writes that begin and end within blocks, appends, and cuts.
fn ends_of_blocks(cluster: &Cluster) {
    let (here, there) = (cluster.at(1, "ends"), cluster.at(0, "ends"));
    let mut wanted = vec![0_u8; 12_000];
    let file = File::create(&here).expect("a file");
    file.set_len(12_000).expect("a length");
    for (seed, (at, count)) in [(10, 5), (4090, 12), (8191, 1), (3, 8200)].into_iter().enumerate() {
        let data = bytes(seed + 1, count);
        file.write_all_at(&data, at as u64).expect("a write");
        wanted[at..at + count].copy_from_slice(&data);
        assert!(std::fs::read(&there).expect("a read") == wanted, "after the write at {at}");
    }
    let mut appending = OpenOptions::new().append(true).open(&here).expect("a file");
    for _ in 0..5 {
        appending.write_all(&[7; 1000]).expect("an append");
        wanted.extend([7; 1000]);
    }
    assert!(std::fs::read(&there).expect("a read") == wanted, "after appends");
    file.set_len(5000).expect("a cut");
    file.set_len(20_001).expect("a length");
    wanted.truncate(5000);
    wanted.resize(20_001, 0);
    assert!(std::fs::read(&there).expect("a read") == wanted, "what was cut came back");
    file.sync_all().expect("a flush");
}

#[test]
fn names_are_posix() {
    on_both(2, SIZE, |cluster| {
        let (a, b) = (|name: &str| cluster.at(0, name), |name: &str| cluster.at(1, name));
        std::fs::create_dir_all(b("one/two")).expect("folders");
        assert_eq!(errno(std::fs::create_dir(a("one"))), libc::EEXIST);
        std::fs::write(b("one/two/file"), b"first").expect("a file");
        std::fs::write(a("other"), b"second").expect("a file");
        let mut open = File::open(b("other")).expect("a file");
        std::fs::rename(a("one/two/file"), a("other")).expect("renamed over");
        assert_eq!(std::fs::read(b("other")).expect("a file"), b"first");
        let mut old = String::new();
        open.read_to_string(&mut old).expect("what was open stays");
        assert_eq!(old, "second");
        assert_eq!(errno(File::open(b("one/two/file"))), libc::ENOENT);
        assert_eq!(errno(std::fs::remove_dir(a("one"))), libc::ENOTEMPTY);
        std::fs::hard_link(a("other"), b("hard")).map_or_else(
            |error| assert_eq!(error.raw_os_error(), Some(libc::EXDEV)),
            |()| panic!("a link from one mount to another"),
        );
        std::fs::hard_link(b("other"), b("hard")).expect("a link");
        assert_eq!(a("hard").metadata().expect("a file").nlink(), 2);
        std::os::unix::fs::symlink("other", b("soft")).expect("a link");
        assert_eq!(std::fs::read_link(a("soft")).expect("a link"), Path::new("other"));
        assert_eq!(std::fs::read(a("soft")).expect("a file"), b"first");
        std::fs::set_permissions(b("other"), std::fs::Permissions::from_mode(0o640)).expect("mode");
        assert_eq!(a("other").metadata().expect("a file").mode() & 0o777, 0o640);
        std::fs::remove_file(a("hard")).expect("gone");
        assert_eq!(errno(b("hard").metadata()), libc::ENOENT);
        std::fs::remove_dir(b("one/two")).expect("gone");
        std::fs::remove_dir(a("one")).expect("gone");
        assert_eq!(errno(File::create(b(&"x".repeat(256)))), libc::ENAMETOOLONG);
        run("cp", &["-a", "/etc/hostname", &b("copied").to_string_lossy()]);
        run("mv", &[&*b("copied").to_string_lossy(), &*b("moved").to_string_lossy()]);
        assert_eq!(std::fs::read(a("moved")).ok(), std::fs::read("/etc/hostname").ok());
        run("df", &[&*a("").to_string_lossy()]);
        // Many names, over several pages.
        std::fs::create_dir(b("many")).expect("a folder");
        for number in 0..700 {
            std::os::unix::fs::symlink("x", b(&format!("many/{number}"))).expect("a name");
        }
        assert_eq!(std::fs::read_dir(a("many")).expect("a folder").count(), 700);
        run("rm", &["-rf", &*a("many").to_string_lossy()]);
        assert!(!b("many").exists());
    });
}

#[test]
fn one_node_writes_a_file_and_refusals_are_clear() {
    on_both(2, SIZE, |cluster| {
        let (here, there) = (cluster.at(1, "disk"), cluster.at(0, "disk"));
        let writer = File::create(&here).expect("a file");
        writer.write_all_at(&[1; 8192], 0).expect("a write");
        let write = || OpenOptions::new().write(true).open(&there);
        assert_eq!(errno(write()), libc::EBUSY, "two nodes write one file");
        let second = OpenOptions::new().write(true).open(&here).expect("the same node may");
        second.write_all_at(&[2; 100], 50).expect("a write");
        let read = std::fs::read(&there).expect("all may read");
        assert_eq!((read.len(), read[49], read[50], read[150]), (8192, 1, 2, 1));
        drop((writer, second));
        let other = write().expect("it is free again");
        other.set_len(10).expect("a length");
        drop(other);
        assert_eq!(std::fs::read(&here).expect("a file"), [1; 10]);

        let fifo = cluster.at(1, "fifo").to_string_lossy().into_owned();
        let made = std::process::Command::new("mkfifo").arg(&fifo).output().expect("mkfifo");
        assert!(!made.status.success(), "a pipe was made");
        let open = File::open(&here).expect("a file");
        let seek = rustix::fs::fgetxattr(&open, "user.x", &mut [0_u8; 8][..]);
        assert_eq!(seek.err(), Some(rustix::io::Errno::NOTSUP));
        // Files that a program of this node has open live on without a name.
        let unnamed = OpenOptions::new().read(true).write(true).open(&here).expect("a file");
        std::fs::remove_file(&there).expect("gone");
        unnamed.write_all_at(&[9; 4096], 4096).expect("a write");
        let mut back = [0; 4096];
        unnamed.read_exact_at(&mut back, 4096).expect("a read");
        assert_eq!(back, [9; 4096]);
    });
}

#[test]
fn holes_are_made_found_and_counted() {
    on_both(2, SIZE, |cluster| {
        let path = cluster.at(1, "sparse");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("a file");
        file.set_len(64 << 20).expect("a length");
        file.write_all_at(&[5; 8192], 1 << 20).expect("a write");
        let seek = |from| rustix::fs::seek(&file, from);
        assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(1 << 20));
        assert!(seek(rustix::fs::SeekFrom::Hole(1 << 20)).expect("a hole") < 64 << 20);
        let used = || cluster.at(0, "sparse").metadata().expect("a file").blocks() * 512;
        assert!(used() < 32 << 20, "{} bytes for 8192", used());
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, (1 << 20) + 100, 8000).expect("a hole");
        let read = std::fs::read(cluster.at(0, "sparse")).expect("a read");
        assert_eq!(read.len(), 64 << 20);
        assert_eq!(read.iter().filter(|byte| **byte != 0).count(), 192);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 64 << 20, 1 << 20)
            .expect("space");
        assert_eq!(path.metadata().expect("a file").len(), 65 << 20);
        let collapse = rustix::fs::FallocateFlags::COLLAPSE_RANGE;
        let refused = rustix::fs::fallocate(&file, collapse, 0, 4096);
        assert_eq!(refused.err(), Some(rustix::io::Errno::OPNOTSUPP));
    });
}

/// The source's file has grown since the target opened it; the target's first writes come all at once, and
/// each of them ends before the file does.
fn a_longer_file_stays_so(cluster: &Cluster, options: &OpenOptions) {
    const BLOCK: u64 = 4096;
    for round in 0..8 {
        let name = format!("grown-{round}");
        let one = options.open(cluster.at(1, &name)).expect("a file");
        one.write_all_at(&[1; 4096], 0).expect("a write");
        let id = volume::lease::FileId(one.metadata().expect("a file").ino());
        let hold = |node: usize| cluster.runtime.block_on(cluster.node(node).mount.hold(id));
        hold(0).expect("nothing of it is here");
        let two = options.open(cluster.at(0, &name)).expect("it is expected");
        one.write_all_at(&bytes(5, 64 * 4096), 0).expect("a write");
        hold(1).expect("it is durable");
        cluster.node(0).mount.free(id);
        std::thread::scope(|scope| {
            for block in 1..9 {
                let two = &two;
                scope.spawn(move || two.write_all_at(&[9; 4096], block * BLOCK).expect("a write"));
            }
        });
        assert_eq!(two.metadata().expect("a file").len(), 64 * BLOCK, "round {round}");
        let mut wanted = bytes(5, 64 * 4096);
        wanted[4096..9 * 4096].fill(9);
        assert!(std::fs::read(cluster.at(0, &name)).expect("a read") == wanted, "round {round}");
    }
}

/// What a live migration does with a disk.
#[test]
fn the_right_to_write_is_handed_over_while_both_have_it_open() {
    on_both(2, SIZE, |cluster| {
        let (source, target) = (cluster.at(1, "disk"), cluster.at(0, "disk"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let one = options.open(&source).expect("a file");
        one.write_all_at(&bytes(1, 10_000), 0).expect("a write");
        let id = volume::lease::FileId(source.metadata().expect("a file").ino());
        let hold = |node: usize| cluster.runtime.block_on(cluster.node(node).mount.hold(id));
        hold(0).expect("nothing of it is here");
        let two = options.open(&target).expect("it is expected");
        let mut back = vec![0; 10_000];
        two.read_exact_at(&mut back, 0).expect("a read");
        assert!(back == bytes(1, 10_000));
        assert_eq!(errno(two.write_all_at(&[9; 10], 0)), libc::EBUSY, "two nodes write");
        one.write_all_at(&bytes(3, 10_000), 0).expect("the source goes on meanwhile");
        hold(1).expect("it is durable");
        // Invariant 39: given up by one end, and not the other's before somebody says so.
        assert_eq!(errno(two.write_all_at(&[9; 10], 0)), libc::EBUSY, "it is held");
        assert_eq!(errno(one.write_all_at(&[9; 10], 0)), libc::EBUSY, "it is held");
        assert_eq!(errno(one.set_len(1)), libc::EBUSY, "it is held");
        two.read_exact_at(&mut back, 0).expect("a read");
        assert!(back == bytes(3, 10_000), "the target reads what the source wrote last");
        // The migration fails: the source goes on, and tries it once more.
        cluster.node(1).mount.free(id);
        one.write_all_at(&bytes(1, 10_000), 0).expect("it goes on");
        assert_eq!(errno(two.write_all_at(&[9; 10], 0)), libc::EBUSY, "it is held");
        hold(1).expect("it is durable");
        cluster.node(0).mount.free(id);
        a_longer_file_stays_so(cluster, &options);
        two.write_all_at(&bytes(2, 5000), 7000).expect("it is the writer now");
        assert_eq!(errno(one.write_all_at(&[9; 10], 0)), libc::EBUSY, "two nodes write");
        let mut wanted = bytes(1, 10_000);
        wanted.resize(12_000, 0);
        wanted[7000..].copy_from_slice(&bytes(2, 5000));
        assert!(std::fs::read(&source).expect("a read") == wanted);
        drop(one);
        // The target's daemon goes on as the only one.
        two.write_all_at(&[4; 4096], 12_288).expect("a write");
        drop(two);
        assert_eq!(source.metadata().expect("a file").len(), 12_288 + 4096);
    });
}
