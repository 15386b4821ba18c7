//! Random operations on both mount points against a model of what a file is, with changes of the
//! coordinator in between. A seed goes the same way each time; `MUSTER_SEED` takes another.

use std::collections::BTreeMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::cluster::Cluster;
use crate::cluster::on_both;

const SIZE: u64 = 320 << 20;
const STEPS: usize = 150;
const LENGTH_MAX: u64 = 2 << 20;

/// A sequence of numbers; no more is asked of it than that it looks like chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// An offset or a length; often a whole block, or a little beside it.
    fn place(&mut self) -> u64 {
        let place = self.below(LENGTH_MAX);
        match self.below(4) {
            0 => place,
            1 => place / 4096 * 4096,
            2 => (place / 4096 * 4096).saturating_sub(1),
            _ => place / 512 * 512,
        }
    }
}

type Files = BTreeMap<String, Vec<u8>>;

fn open(cluster: &Cluster, node: usize, name: &str) -> File {
    let mut options = OpenOptions::new();
    let path = cluster.at(node, name);
    options.read(true).write(true).create(true).truncate(false).open(path).expect("a file")
}

fn check(cluster: &Cluster, node: usize, name: &str, wanted: Option<&Vec<u8>>, step: usize) {
    let found = std::fs::read(cluster.at(node, name)).ok();
    let lengths = (found.as_ref().map(Vec::len), wanted.map(Vec::len));
    assert_eq!(lengths.0, lengths.1, "{name} at node {node} in step {step}");
    if let (Some(found), Some(wanted)) = (&found, wanted) {
        let wrong = found.iter().zip(wanted).position(|(one, other)| one != other);
        assert_eq!(wrong, None, "{name} at node {node} in step {step}");
    }
}

fn change(cluster: &Cluster, node: usize, name: &str, bytes: &mut Vec<u8>, chance: &mut Chance) {
    let file = open(cluster, node, name);
    for _ in 0..=chance.below(4) {
        let (at, length) = (chance.place(), 1 + chance.place() / 8);
        let (from, upto) = (at as usize, (at + length) as usize);
        match chance.below(6) {
            0..3 => {
                let seed = chance.below(255) as u8 + 1;
                let data: Vec<u8> = (0..length).map(|it| seed ^ (it / 100) as u8).collect();
                file.write_all_at(&data, at).expect("a write");
                if bytes.len() < upto {
                    bytes.resize(upto, 0);
                }
                bytes[from..upto].copy_from_slice(&data);
            }
            3 => {
                file.set_len(at).expect("a length");
                bytes.resize(from, 0);
            }
            4 => {
                let flags =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, at, length).expect("a hole");
                let end = upto.min(bytes.len());
                if from < end {
                    bytes[from..end].fill(0);
                }
            }
            _ => file.sync_all().expect("a flush"),
        }
    }
    let mut back = vec![0; bytes.len()];
    file.read_exact_at(&mut back, 0).expect("a read");
    assert!(back == *bytes, "{name} is not what was written, on the node that wrote it");
}

#[test]
fn both_mounts_are_one_file_system() {
    on_both(2, SIZE, |cluster| {
        let seed = std::env::var("MUSTER_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or(4242);
        println!("MUSTER_SEED={seed}");
        let mut chance = Chance(seed.max(1));
        let mut files = Files::new();
        let mut coordinator = 0;
        for step in 0..STEPS {
            let node = chance.below(2) as usize;
            let name = format!("file{}", chance.below(4));
            match chance.below(20) {
                0..12 => {
                    let bytes = files.entry(name.clone()).or_default();
                    change(cluster, node, &name, bytes, &mut chance);
                }
                12..14 => {
                    let gone = std::fs::remove_file(cluster.at(node, &name)).is_ok();
                    assert_eq!(gone, files.remove(&name).is_some(), "step {step}");
                }
                14..17 => {
                    let to = format!("file{}", chance.below(4));
                    let (from, there) = (cluster.at(node, &name), cluster.at(node, &to));
                    let done = std::fs::rename(from, there).is_ok();
                    assert_eq!(done, files.contains_key(&name), "step {step}");
                    if let Some(bytes) = files.remove(&name) {
                        files.insert(to.clone(), bytes);
                    }
                    check(cluster, 1 - node, &to, files.get(&to), step);
                }
                17 if step % 3 == 0 => {
                    cluster.stop();
                    coordinator = 1 - coordinator;
                    cluster.coordinate(coordinator);
                }
                _ => {}
            }
            check(cluster, 1 - node, &name, files.get(&name), step);
        }
        cluster.look(|root| {
            for (name, bytes) in &files {
                assert!(std::fs::read(root.join(name)).expect("a plain file") == *bytes, "{name}");
            }
        });
    });
}
