//! What this node keeps on its disk about its place in the cluster, beside the replicated state.
//!
//! ```text
//!   <data>/cluster/place.json   identity (key, certificate, CA), known members, `joining`
//!   <data>/cluster/pending.json id and key under which this host asks to join, kept over attempts:
//!                               the cluster may have taken it in although its answer was lost
//!   <data>/cluster/force.json   exists while the quorum shall be forced at the next start: what was
//!                               decided
//!   <data>/cluster/rebuild.json exists from when this node has lost its log until it has a new one
//!   <data>/cluster/out          exists since this node knows that it was evicted or given up
//!   <data>/cluster/reset        exists while the state shall be put aside at the next start
//! ```
//!
//! A join writes `place.json` with `joining` and starts the daemon anew. The new process finds it,
//! empties the log for the new node id, and clears the mark: whatever moment the host dies at, the
//! next start goes on from there.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use cluster::raft::Forcing;
use model::NodeId;
use model::SecretText;
use peer::Member;
use peer::pki::Identity;
use peer::pki::NodeKey;
use serde::Deserialize;
use serde::Serialize;

use crate::cluster::rebuild::Note;

/// The largest file that is read: 64 members take some ten kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// See the head comment.
const PENDING: &str = "pending.json";

/// See the head comment.
const FORCE: &str = "force.json";

/// See the head comment.
const REBUILD: &str = "rebuild.json";

/// See the head comment.
const OUT: &str = "out";

/// A node's place in a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Who it is.
    pub(crate) identity: Identity,
    /// The members that it knew of last, for when it has no state.
    #[serde(default)]
    pub(crate) members: Vec<Member>,
    /// The log has not been emptied for it yet.
    #[serde(default)]
    pub(crate) joining: bool,
}

/// Under which id and key a host asks to join.
#[derive(Serialize, Deserialize)]
struct Pending {
    node: NodeId,
    key: SecretText,
}

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct PlaceDir(PathBuf);

impl PlaceDir {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("cluster"))
    }

    /// Reads the node's place; none for a host that is in no cluster.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Place>> {
        let path = self.0.join("place.json");
        let advice = || {
            format!(
                "{} cannot be read; restore it from a backup, or evict this node and set it up \
                 anew",
                path.display()
            )
        };
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(advice),
            Ok(facts) if facts.len() > FILE_BYTES_MAX => {
                return Err(anyhow::anyhow!("it is too large")).with_context(advice);
            }
            Ok(_) => {}
        }
        let bytes = fs::read(&path).with_context(advice)?;
        serde_json::from_slice(&bytes).map(Some).with_context(advice)
    }

    /// Keeps the node's place, durably.
    pub(crate) fn write(&self, place: &Place) -> io::Result<()> {
        self.keep("place.json", &serde_json::to_vec(place)?)
    }

    /// The id and key under which this host asks to join; made and kept at the first attempt.
    pub(crate) fn pending(&self) -> anyhow::Result<(NodeId, NodeKey)> {
        let known = fs::read(self.0.join(PENDING)).ok();
        let known = known.and_then(|bytes| serde_json::from_slice::<Pending>(&bytes).ok());
        // One that cannot be read is as good as none.
        if let Some(known) = known
            && let Ok(key) = NodeKey::from_pem(known.key.reveal())
        {
            return Ok((known.node, key));
        }
        let (node, key) = (NodeId::new(crate::app::new_uuid()), NodeKey::create()?);
        let pending = Pending { node, key: SecretText::new(key.pem()) };
        self.keep(PENDING, &serde_json::to_vec(&pending)?)?;
        Ok((node, key))
    }

    /// The next attempt to join shall be made under another id.
    pub(crate) fn forget_pending(&self) -> io::Result<()> {
        gone(fs::remove_file(self.0.join(PENDING)))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let path = self.0.join(name);
        let part = path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
        File::open(&self.0)?.sync_all()
    }

    /// Keeps what was decided on forcing the quorum, for the next start.
    pub(crate) fn keep_forcing(&self, forcing: &Forcing) -> io::Result<()> {
        self.keep(FORCE, &serde_json::to_vec(forcing)?)
    }

    /// What was decided on forcing the quorum, if anything was.
    pub(crate) fn forcing(&self) -> io::Result<Option<Forcing>> {
        match fs::read(self.0.join(FORCE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        }
    }

    /// It was done, or is not to be done any more.
    pub(crate) fn forget_forcing(&self) -> io::Result<()> {
        gone(fs::remove_file(self.0.join(FORCE)))
    }

    /// How far this node is with a new log, if it has lost its old one.
    pub(crate) fn rebuild(&self) -> io::Result<Option<Note>> {
        match fs::read(self.0.join(REBUILD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        }
    }

    /// Notes how far it is.
    pub(crate) fn keep_rebuild(&self, note: &Note) -> io::Result<()> {
        self.keep(REBUILD, &serde_json::to_vec(note)?)
    }

    /// It has a new log, and all that was in the old one.
    pub(crate) fn forget_rebuild(&self) -> io::Result<()> {
        gone(fs::remove_file(self.0.join(REBUILD)))
    }

    /// Whether this node knows that it was taken out of its cluster.
    pub(crate) fn is_out(&self) -> bool {
        self.0.join(OUT).exists()
    }

    /// Notes that it was.
    pub(crate) fn set_out(&self) -> io::Result<()> {
        self.keep(OUT, b"")
    }

    /// Says that the next start begins with a new, empty state.
    pub(crate) fn ask_reset(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        File::create(self.0.join("reset"))?.sync_all()?;
        File::open(&self.0)?.sync_all()
    }

    /// If asked to: puts the state, the node's id and its place aside, so that the host begins anew
    /// as a cluster of one. Files of VMs and images are not touched.
    pub(crate) fn reset_if_asked(&self, data_dir: &Path) -> anyhow::Result<bool> {
        if !self.0.join("reset").exists() {
            return Ok(false);
        }
        let now = crate::app::now().get();
        let aside = data_dir.join(format!("left-{now}"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        let mut moved = vec!["node-id".to_owned()];
        for entry in fs::read_dir(data_dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("state.") {
                moved.push(name);
            }
        }
        for name in moved {
            match fs::rename(data_dir.join(&name), aside.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.with_context(|| format!("{name} cannot be put aside"))?,
            }
        }
        File::open(data_dir)?.sync_all()?;
        let place = self.0.join("place.json");
        gone(fs::remove_file(&place))?;
        gone(fs::remove_file(self.0.join(OUT)))?;
        self.forget_forcing()?;
        self.forget_rebuild()?;
        self.forget_pending()?;
        // Last: a crash before repeats all of it, which finds less to move.
        fs::remove_file(self.0.join("reset"))?;
        tracing::warn!(aside = %aside.display(), "this host begins anew; its old state is kept");
        Ok(true)
    }
}

/// That a file is not there is what was wanted.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes the node's id, durably.
pub(crate) fn write_node_id(data_dir: &Path, node: NodeId) -> anyhow::Result<()> {
    let path = data_dir.join("node-id");
    let part = path.with_extension("new");
    fs::write(&part, node.to_string())?;
    File::open(&part)?.sync_all()?;
    fs::rename(&part, &path)?;
    File::open(data_dir)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::ClusterId;
    use model::UnixMillis;
    use peer::pki::ClusterCa;
    use uuid::Uuid;

    use super::*;

    fn place() -> Place {
        let now = UnixMillis::new(1_795_241_760_000);
        let cluster = (ClusterId::new(Uuid::from_u128(1)), "lab");
        let ca = ClusterCa::create(cluster.0, cluster.1, now).unwrap();
        let node = NodeId::new(Uuid::from_u128(2));
        let identity = Identity::first(cluster, node, &ca, now).unwrap();
        Place { identity, members: Vec::new(), joining: true }
    }

    #[test]
    fn a_place_is_kept_for_root_only_and_damage_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let data = tempfile::tempdir().unwrap();
        let dir = PlaceDir::new(data.path());
        assert!(dir.read().unwrap().is_none());
        dir.write(&place()).unwrap();
        let again = dir.read().unwrap().unwrap();
        assert!(again.joining);
        let path = data.path().join("cluster/place.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() / 2], b"", b"{}", b"garbage"] {
            fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", dir.read().unwrap_err());
            assert!(error.contains("place.json") && error.contains("backup"), "{error}");
        }
    }

    #[test]
    fn a_host_asks_again_under_the_same_id_until_that_is_forgotten() {
        let data = tempfile::tempdir().unwrap();
        let dir = PlaceDir::new(data.path());
        dir.forget_pending().unwrap();
        let (node, key) = dir.pending().unwrap();
        let (again, same) = PlaceDir::new(data.path()).pending().unwrap();
        assert_eq!((node, key.pem()), (again, same.pem()));
        fs::write(data.path().join("cluster/pending.json"), "garbage").unwrap();
        let (other, _) = dir.pending().unwrap();
        assert_ne!(other, node);
        dir.forget_pending().unwrap();
        assert_ne!(dir.pending().unwrap().0, other);
    }

    #[test]
    fn a_reset_puts_the_state_aside_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let dir = PlaceDir::new(data.path());
        for file in ["state.redb", "state.mark", "node-id", "lock", "images"] {
            fs::write(data.path().join(file), file).unwrap();
        }
        dir.write(&place()).unwrap();
        assert!(!dir.reset_if_asked(data.path()).unwrap());
        dir.ask_reset().unwrap();
        assert!(dir.reset_if_asked(data.path()).unwrap());
        assert!(!dir.reset_if_asked(data.path()).unwrap());
        assert!(dir.read().unwrap().is_none());
        let mut left: Vec<_> = fs::read_dir(data.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left.len(), 4, "{left:?}");
        assert_eq!((&left[..2], &left[3][..]), (&["cluster".into(), "images".into()][..], "lock"));
        let aside = data.path().join(&left[2]);
        assert_eq!(fs::read(aside.join("state.redb")).unwrap(), b"state.redb");
    }
}
