//! Beats on shared volumes: they tell a node that is only cut off from one that is dead.
//!
//! ```text
//!   <share>/beats/<node id>      a counter in decimal, written anew twice a second by its node
//! ```
//!
//! One thread for each volume, since a file system that hangs takes its callers with it. What a
//! thread has not read lately is not known, by the time of its last pass.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::ClusterState;
use model::NodeId;
use model::VolumeId;
use model::VolumeRecord;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Watch;
use crate::volumes;
use crate::volumes::Standing;

/// Directory on a volume.
const DIRECTORY: &str = "beats";

/// Longest counter that is read: twenty digits and a line end.
const BYTES_MAX: u64 = 32;

/// Counters are written in this width, so that a new one covers an old one wholly.
const WIDTH: usize = 20;

/// Starts and ends threads as volumes come and go.
pub(super) async fn follow(
    me: NodeId,
    watch: Arc<Watch>,
    mut states: watch::Receiver<Arc<ClusterState>>,
) {
    let mut threads: HashMap<VolumeId, Arc<AtomicBool>> = HashMap::new();
    loop {
        let state = states.borrow_and_update().clone();
        threads.retain(|volume, end| {
            let stays = state.volumes.contains_key(volume) && state.cluster.is_some();
            if !stays {
                end.store(true, Ordering::Relaxed);
                watch.no_beats(*volume);
            }
            stays
        });
        // What lies on a LUN is mounted by one node: its beats would tell nobody else.
        let shares = state.volumes.values().filter(|it| it.coordination.is_none());
        for volume in shares.filter(|_| state.cluster.is_some()) {
            if threads.contains_key(&volume.id) {
                continue;
            }
            let end = Arc::new(AtomicBool::new(false));
            let (volume, id) = (volume.clone(), volume.id);
            let thread = Beats { me, volume, watch: watch.clone(), end: end.clone() };
            let states = states.clone();
            let started = std::thread::Builder::new()
                .name("muster-beats".to_owned())
                .spawn(move || thread.run(&states));
            match started {
                Ok(_) => drop(threads.insert(id, end)),
                Err(error) => tracing::error!(%error, "no thread for beats on a volume"),
            }
        }
        if states.changed().await.is_err() {
            for end in threads.values() {
                end.store(true, Ordering::Relaxed);
            }
            return;
        }
    }
}

struct Beats {
    me: NodeId,
    volume: Arc<VolumeRecord>,
    watch: Arc<Watch>,
    end: Arc<AtomicBool>,
}

impl Beats {
    fn run(self, states: &watch::Receiver<Arc<ClusterState>>) {
        let mut counter = 0;
        let mut told = false;
        while !self.end.load(Ordering::Relaxed) && !self.watch.ended.load(Ordering::Relaxed) {
            counter += 1;
            let state = states.borrow().clone();
            let begun = Instant::now();
            match self.pass(counter, &state) {
                Ok(read) => {
                    told = false;
                    self.watch.beats(self.volume.id, &read, begun);
                }
                Err(error) => {
                    self.watch.no_beats(self.volume.id);
                    if !told {
                        let volume = self.volume.name.as_str();
                        tracing::warn!(volume, %error, "no beats on this volume");
                        told = true;
                    }
                }
            }
            std::thread::sleep(self.watch.settings().beat_every);
        }
    }

    fn pass(&self, counter: u64, state: &ClusterState) -> io::Result<Vec<(NodeId, u64)>> {
        volumes::check(&self.volume).map_err(io::Error::other)?;
        let forced = state.forced.as_deref();
        match volumes::tell_forced(&self.volume, forced, self.me).map_err(io::Error::other)? {
            Standing::Good | Standing::Untold | Standing::Behind => {}
            Standing::GivenUp => {
                self.watch.given_up.send_if_modified(|known| !std::mem::replace(known, true));
                return Err(io::Error::other("the quorum was forced without this node"));
            }
        }
        let directory = PathBuf::from(self.volume.kind.path()).join(DIRECTORY);
        if counter == 1 {
            fs::create_dir_all(&directory)?;
        }
        write(&directory.join(self.me.to_string()), counter)?;
        let mut read = Vec::new();
        for node in state.nodes.keys().filter(|node| **node != self.me) {
            if let Some(counter) = read_counter(&directory.join(node.to_string()))? {
                read.push((*node, counter));
            }
        }
        Ok(read)
    }
}

/// Writes a counter so that the others see it.
fn write(path: &Path, counter: u64) -> io::Result<()> {
    let file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.write_all_at(format!("{counter:0WIDTH$}\n").as_bytes(), 0)?;
    file.sync_data()
}

/// Reads the counter of another node; nothing if there is none or it is half written.
fn read_counter(path: &Path) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()))
}

/// How long beats that were read count as known: a pass and then some.
pub(super) fn fresh_for(beat_every: Duration) -> Duration {
    beat_every * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_was_written_is_read_and_garbage_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        assert_eq!(read_counter(&path).unwrap(), None);
        for counter in [u64::MAX, 7, 1] {
            write(&path, counter).unwrap();
            assert_eq!(read_counter(&path).unwrap(), Some(counter));
        }
        fs::write(&path, "x".repeat(4_096)).unwrap();
        assert_eq!(read_counter(&path).unwrap(), None);
        fs::write(&path, [0xff; 20]).unwrap();
        assert_eq!(read_counter(&path).unwrap(), None);
    }
}
