//! Invariant 36: a flush that is answered covers what was answered before it, also where the LUN has lost
//! its volatile cache meanwhile, with a path or as a whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use volume::block::Buffer;
use volume::provider::CoordinatorError;
use volume::provider::Reason;
use volume::provider::Way;
use volume::san::Fate;

use crate::cluster::direct;
use crate::cluster::on_both;

const SIZE: u64 = 320 << 20;
const BLOCKS: u64 = 64;
const BLOCK: u64 = 16 << 10;

fn pattern(block: u64, version: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(BLOCK as usize);
    buffer.fill(version);
    buffer[..8].copy_from_slice(&block.to_le_bytes());
    buffer
}

fn write(file: &File, version: u8) {
    for block in 0..BLOCKS {
        file.write_all_at(&pattern(block, version), block * BLOCK).expect("a write");
    }
}

fn check(path: &Path, version: u8) {
    let file = File::open(path).expect("the file");
    for block in 0..BLOCKS {
        let mut back = vec![0; BLOCK as usize];
        file.read_exact_at(&mut back, block * BLOCK).expect("a read");
        assert!(
            back == pattern(block, version)[..],
            "{}: block {block} of version {version}",
            path.display()
        );
    }
}

#[test]
fn a_flush_covers_what_a_path_took_with_it() {
    on_both(2, SIZE, |cluster| {
        let path = cluster.at(1, "file");
        File::create(&path).expect("a file");
        let file = direct(&path);
        write(&file, 1);
        file.sync_data().expect("a flush");
        write(&file, 2);
        assert!(cluster.rig.server().lun().cached() >= BLOCKS * BLOCK, "somebody has flushed");
        cluster.rig.server().lun().lose_path_with_cache(1).expect("a path");
        // What the array has now is what was flushed.
        file.sync_data().expect("a flush by another way");
        assert_eq!(cluster.way(1), Way::BlockRedirected(Reason::NoKey));
        check(&cluster.at(0, "file"), 2);
        // The path comes back before anybody has missed it: only its count of losses tells.
        cluster.rig.server().lun().set_path(1, true).expect("a path");
        cluster.until(1, Way::Direct);
        write(&file, 3);
        cluster.rig.server().lun().lose_path_with_cache(1).expect("a path");
        cluster.rig.server().lun().set_path(1, true).expect("a path");
        file.sync_data().expect("a flush");
        check(&cluster.at(0, "file"), 3);
        drop(file);
        cluster.look(|root| check(&root.join("file"), 3));
    });
}

#[test]
fn a_flush_covers_what_the_lun_lost_under_everybody() {
    on_both(2, SIZE, |cluster| {
        let files: Vec<File> = (0..2)
            .map(|number| {
                let path = cluster.at(number, &format!("file-{number}"));
                File::create(&path).expect("a file");
                let file = direct(&path);
                write(&file, 1);
                file.sync_data().expect("a flush");
                file
            })
            .collect();
        files.iter().for_each(|file| write(file, 2));
        cluster.rig.server().lun().power_loss(|_| Fate::Lost).expect("memory does not fail");
        let flushes: Vec<_> = files
            .into_iter()
            .map(|file| {
                std::thread::spawn(move || {
                    file.sync_data().expect("a flush");
                    file
                })
            })
            .collect();
        let why = cluster.failed();
        assert!(matches!(why, CoordinatorError::FileSystem(_)), "{why}");
        cluster.coordinate(1);
        let files: Vec<File> =
            flushes.into_iter().map(|flush| flush.join().expect("no error was seen")).collect();
        check(&cluster.at(1, "file-0"), 2);
        check(&cluster.at(0, "file-1"), 2);
        drop(files);
        cluster.look(|root| {
            check(&root.join("file-0"), 2);
            check(&root.join("file-1"), 2);
        });
    });
}
