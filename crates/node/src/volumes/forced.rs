//! Marks of a forced quorum on volumes: where two halves of a cluster both go on, the volume that
//! both reach decides which of them may use it (docs/decisions/0013).
//!
//! ```text
//!   <share>/.muster-forced-<count>     {"word", "lost"} of that forcing; the first one stays
//!
//!   seen from a node that knows of `count` forcings (0: of none):
//!     the mark of `count`       missing: not told yet, any node of this half does it
//!                               another word: another half was first; this one has lost
//!     the mark of `count` + 1   names this node as lost: it was given up
//!                               does not: it was forced, and the word is on its way here. So it is
//!                               for a node that joined afterwards and reads the log from its begin
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use model::ForcedRecord;
use model::NodeId;
use serde::Deserialize;
use serde::Serialize;
use uuid::Uuid;

/// Beginning of a mark's name; its number follows.
const MARK: &str = ".muster-forced-";

/// Longest mark that is read: thousands of ids and a word.
const BYTES_MAX: u64 = 256 * 1024;

/// What is said on a volume.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    word: Uuid,
    lost: BTreeSet<NodeId>,
}

/// How this node stands to the marks of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may use it.
    Good,
    /// This node's half has not told the volume yet.
    Untold,
    /// The quorum was forced and this node not given up, and it does not know of that yet.
    Behind,
    /// It was given up, or is of a half that was forced later.
    GivenUp,
}

/// Reads the marks.
///
/// # Errors
/// The volume cannot be read, or a mark is damaged: then nothing is known.
pub(crate) fn standing(
    top: &Path,
    known: Option<&ForcedRecord>,
    me: NodeId,
) -> io::Result<Standing> {
    let count = known.map_or(0, |known| known.count);
    if let Some(next) = read(top, count + 1)? {
        let named = next.lost.contains(&me);
        return Ok(if named { Standing::GivenUp } else { Standing::Behind });
    }
    let Some(known) = known else { return Ok(Standing::Good) };
    Ok(match read(top, count)? {
        None => Standing::Untold,
        Some(mark) if mark.word == known.word => Standing::Good,
        Some(_) => Standing::GivenUp,
    })
}

/// Leaves the marks of this node's half, where none are. Earlier ones that are missing come with
/// it, so that whoever knows of fewer forcings finds the next.
///
/// # Errors
/// They cannot be written; those that are there stay.
pub(crate) fn tell(top: &Path, known: &ForcedRecord, me: NodeId) -> io::Result<()> {
    let mark = Mark { word: known.word, lost: known.lost.clone() };
    let content = serde_json::to_vec(&mark)?;
    // Each node by a file of its own, then by a link, which takes the name once only.
    let part = top.join(format!("{MARK}new-{me}"));
    let mut file = File::create(&part)?;
    file.write_all(&content)?;
    file.sync_all()?;
    for count in 1..=known.count {
        match fs::hard_link(&part, path(top, count)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    fs::remove_file(&part)?;
    File::open(top)?.sync_all()
}

fn path(top: &Path, count: u64) -> PathBuf {
    top.join(format!("{MARK}{count}"))
}

fn read(top: &Path, count: u64) -> io::Result<Option<Mark>> {
    let file = match File::open(path(top, count)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let mark = serde_json::from_slice(&bytes);
    mark.map(Some).map_err(|error| io::Error::other(format!("{MARK}{count} is damaged: {error}")))
}

#[cfg(test)]
mod tests {
    use model::UnixMillis;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn forced(count: u64, word: u128, lost: &[u128]) -> ForcedRecord {
        ForcedRecord {
            count,
            word: Uuid::from_u128(word),
            lost: lost.iter().copied().map(node).collect(),
            at: UnixMillis::new(1),
            by: "test".to_owned(),
        }
    }

    #[test]
    fn the_first_half_has_the_volume_and_the_other_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        let see = |known: Option<&ForcedRecord>, n| standing(top, known, node(n)).unwrap();
        assert_eq!(see(None, 1), Standing::Good);
        let (ours, theirs) = (forced(1, 7, &[3]), forced(1, 8, &[1, 2]));
        assert_eq!(see(Some(&ours), 1), Standing::Untold);
        tell(top, &ours, node(1)).unwrap();
        assert_eq!(see(Some(&ours), 1), Standing::Good);
        // The second one does not take the name away.
        tell(top, &theirs, node(3)).unwrap();
        assert_eq!(see(Some(&ours), 1), Standing::Good);
        assert_eq!(see(Some(&theirs), 3), Standing::GivenUp);
        // Who has not heard of it: one that goes on, one that joined later, and one that is lost.
        assert_eq!(see(None, 2), Standing::Behind);
        assert_eq!(see(None, 4), Standing::Behind, "it would stop for good");
        assert_eq!(see(None, 3), Standing::GivenUp);
        assert_eq!(fs::read_dir(top).unwrap().count(), 1, "no other files stay");
    }

    #[test]
    fn a_volume_that_missed_a_forcing_is_told_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        let third = forced(3, 9, &[2, 3]);
        tell(top, &third, node(1)).unwrap();
        let see = |known: Option<&ForcedRecord>, n| standing(top, known, node(n)).unwrap();
        assert_eq!(see(Some(&third), 1), Standing::Good);
        assert_eq!(see(None, 2), Standing::GivenUp);
        assert_eq!(see(Some(&forced(2, 5, &[3])), 2), Standing::GivenUp);
        assert_eq!(see(Some(&forced(2, 5, &[3])), 1), Standing::Behind);
    }

    #[test]
    fn a_damaged_mark_is_no_leave_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        for garbage in ["", "{", "\u{0}\u{0}", "{\"word\":1}"] {
            fs::write(path(dir.path(), 1), garbage).unwrap();
            standing(dir.path(), None, node(1)).unwrap_err();
        }
        fs::write(path(dir.path(), 1), vec![b'x'; 1 << 20]).unwrap();
        standing(dir.path(), None, node(1)).unwrap_err();
    }
}
