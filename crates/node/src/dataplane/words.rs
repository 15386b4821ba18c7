//! What daemon and volume process say to each other: frames of JSON behind their length, each with the
//! version of this table; one answer to each order. A process of another version is told to end where it
//! can, and goes on where machines use it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use model::NodeId;
use model::UnixMillis;
use model::VolumeId;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

/// Version of the table.
pub(crate) const VERSION: u32 = 1;

/// Longest frame: 64 members with their addresses, or some hundred volumes.
const FRAME_MAX: usize = 1 << 20;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Frame<T> {
    pub(crate) version: u32,
    /// As which node the speaker knows this host: it is another one after a join.
    pub(crate) node: NodeId,
    pub(crate) body: T,
}

/// An order of the daemon. Each may be repeated and then changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Order {
    /// Who may come and where they are; the identity of this node is read anew, too.
    Members { members: Vec<Member>, gone: Vec<NodeId> },
    /// Show the volume's files, in the reign of whoever coordinates it.
    Follow(Follow),
    /// Coordinate the volume in an epoch of this node.
    Coordinate(Coordinate),
    /// Cease to coordinate it, and clear up after a process that did.
    Resign { volume: VolumeId, device: Option<PathBuf>, fences: bool },
    /// Show its files no more.
    Detach { volume: VolumeId },
    /// Let nothing be written to these files from here, and others write them. (A process of before
    /// these two orders refuses them, and then no machine on its volumes starts, resumes or migrates.)
    Hold { volume: VolumeId, files: Vec<u64> },
    /// Let them be written again.
    Free { volume: VolumeId, files: Vec<u64> },
    /// Say how all volumes are.
    States,
    /// End, if nobody uses anything.
    End,
}

/// A node that may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    /// Digest of its key, where the state has it.
    pub(crate) key: Option<String>,
    /// Addresses of its process, the preferred one first.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// A volume to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Follow {
    pub(crate) volume: VolumeId,
    pub(crate) name: String,
    /// The mount point.
    pub(crate) path: PathBuf,
    /// This node's path to the LUN; none: all goes through the coordinator.
    pub(crate) device: Option<PathBuf>,
    pub(crate) epoch: u32,
    /// Who coordinates it in that epoch.
    pub(crate) holder: Option<NodeId>,
}

/// A volume to be coordinated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Coordinate {
    pub(crate) volume: VolumeId,
    pub(crate) device: PathBuf,
    /// Whether the LUN takes reservations.
    pub(crate) fences: bool,
    pub(crate) epoch: u32,
    /// Of the file system.
    pub(crate) uuid: uuid::Uuid,
    /// Whether other nodes share this kernel, so that it may see one XFS several times.
    pub(crate) one_kernel: bool,
    pub(crate) members: BTreeSet<NodeId>,
}

/// What the process says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// This node has begun that epoch, or a later one, before: it needs a new one.
    Begun,
    /// It is not done.
    Failed { why: String },
    /// How all volumes are.
    States { states: Vec<Told> },
    /// This process serves another node, or speaks another version.
    Stranger { version: u32, node: NodeId },
}

/// How a volume is on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Told {
    pub(crate) volume: VolumeId,
    /// The epoch that it is coordinated in here.
    pub(crate) reign: Option<Reign>,
    /// How its files are reached, where they are shown.
    pub(crate) shown: Option<Shown>,
}

/// A coordinator at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reign {
    pub(crate) epoch: u32,
    pub(crate) members: BTreeSet<NodeId>,
    /// Why it cannot go on.
    pub(crate) ended: Option<String>,
}

/// A volume whose files are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shown {
    pub(crate) path: PathBuf,
    /// Whether it was given a path to the LUN.
    pub(crate) device: bool,
    pub(crate) mounted: bool,
    /// Why it is not mounted.
    pub(crate) problem: Option<String>,
    pub(crate) way: Way,
    pub(crate) since: UnixMillis,
    /// Bytes in all and free, as the coordinator said last.
    pub(crate) space: Option<(u64, u64)>,
}

/// How data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// Straight to the LUN.
    Direct,
    /// Through the coordinator: this node was given no path.
    NoPath,
    /// Through the coordinator: this node's path has no key, so it does not work, or not yet.
    NoKey,
    /// Through the coordinator, by what was wanted last: holes, odd blocks.
    FileRedirected,
    /// There is no coordinator to talk to; requests wait.
    Waiting,
}

/// Sends a frame.
///
/// # Errors
/// The stream's; too long a frame.
pub(crate) async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &Frame<T>,
) -> io::Result<()> {
    let text = serde_json::to_vec(frame)?;
    let length = u32::try_from(text.len()).ok().filter(|it| *it as usize <= FRAME_MAX);
    let length = length.ok_or_else(|| io::Error::other("the frame is too long"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&text).await?;
    stream.flush().await
}

/// Reads a frame.
///
/// # Errors
/// The stream's; what is none.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Frame<T>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(io::Error::other(format!("a frame of {length} bytes is too long")));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_read_strictly() {
        let node = NodeId::new(uuid::Uuid::from_u128(1));
        let volume = VolumeId::new(uuid::Uuid::from_u128(2));
        let order = Order::Resign { volume, device: Some("/dev/x".into()), fences: true };
        let frame = Frame { version: VERSION, node, body: order };
        let mut bytes = Vec::new();
        send(&mut bytes, &frame).await.unwrap();
        assert_eq!(receive::<Order>(&mut &bytes[..]).await.unwrap(), frame);
        assert!(receive::<Answer>(&mut &bytes[..]).await.is_err(), "it is no answer");
        for cut in 0..bytes.len() {
            assert!(receive::<Order>(&mut &bytes[..cut]).await.is_err());
        }
        let long = u32::MAX.to_be_bytes();
        assert!(receive::<Order>(&mut &long[..]).await.unwrap_err().to_string().contains("long"));
        let text = br#"{"version":1,"node":"00000000-0000-0000-0000-000000000001","body":{"order":"burn"}}"#;
        let mut bad = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bad.extend_from_slice(text);
        assert!(receive::<Order>(&mut &bad[..]).await.is_err());
    }
}
