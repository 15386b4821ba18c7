//! What goes between a node's client and the coordinator, over one stream in both directions.
//!
//! ```text
//!   0      4        5        8          16          20          24
//!   +------+--------+--------+----------+-----------+-----------+---------------+----------------+
//!   | MVOL | version| zeroes | number   | head      | body      | head: JSON    | body: bytes of |
//!   |      |   u8   |        | u64      | bytes u32 | bytes u32 | of one message| blocks         |
//!   +------+--------+--------+----------+-----------+-----------+---------------+----------------+
//! ```
//!
//! Integers are little-endian. The number is 1 for the first frame of a direction and one more for
//! each that follows, so a frame that is repeated, left out or put in is found. Bytes of blocks are
//! taken out of their message and travel behind it. Anything that does not fit ends this connection
//! and nothing else; whatever was unanswered is asked again on the next.
//!
//! | version | since |
//! | --- | --- |
//! | 1 | the first |

use model::NodeId;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

use super::call::Call;
use super::call::Reply;
use crate::block::Buffer;
use crate::lease::Answer;
use crate::lease::Ask;
use crate::lease::Epoch;
use crate::lease::FileId;
use crate::lease::Payload;
use crate::lease::ToClient;
use crate::lease::ToCoordinator;

/// What we speak.
pub const VERSION: u8 = 1;

/// The longest message without its blocks: a grant of 1024 extents, or a folder's page, has room.
pub const HEAD_BYTES_MAX: u32 = 256 << 10;

/// The longest run of blocks: what the lease protocol moves at once.
pub const BODY_BYTES_MAX: u32 = 16 << 20;

const MAGIC: [u8; 4] = *b"MVOL";

/// Bytes before the head.
pub const FRAME_BYTES: usize = 24;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Up {
    /// The first word: which volume and which reign are meant. Who speaks is known from the stream.
    Greet {
        /// The volume's id, as the replicated state has it.
        volume: uuid::Uuid,
        /// The reign whose coordinator is wanted.
        epoch: Epoch,
        /// Names this client for as long as it lives: it counts its calls within it.
        life: u64,
    },
    /// Of the lease protocol.
    Lease(ToCoordinator),
    /// Something for the file system's names and attributes.
    Call {
        /// Its number; grows within a life.
        number: u64,
        /// All with lower numbers have been answered.
        done: u64,
        /// Was asked before, perhaps of another coordinator, and no answer is known.
        again: bool,
        /// What.
        call: Call,
    },
}

/// What the coordinator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Down {
    /// The greeting is accepted.
    Greeted {
        /// The folder in which the volume's tree begins.
        root: FileId,
    },
    /// It is not; the connection ends.
    Unwelcome(Unwelcome),
    /// Of the lease protocol.
    Lease(ToClient),
    /// Answer to a call.
    Reply {
        /// Which.
        number: u64,
        /// What came of it.
        reply: Reply,
    },
}

/// Why a greeting was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unwelcome {
    /// Another volume.
    #[error("the node coordinates another volume; look at the volume's coordinator in the state")]
    OtherVolume,
    /// Another reign.
    #[error("the node coordinates epoch {}; wait for the newest state", .0.0)]
    OtherEpoch(Epoch),
    /// Not a member for the coordinator.
    #[error("node {0} is not a member that the coordinator knows; wait for the newest state")]
    Stranger(NodeId),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Does not begin as a frame does.
    #[error("what came is not a frame; whoever speaks there is not a node's volume")]
    NotAFrame,
    /// A version that we do not speak.
    #[error(
        "the other node speaks version {0} of the volume's protocol, this one {VERSION}; upgrade the older one"
    )]
    Version(u8),
    /// Longer than a frame may be.
    #[error("a frame of {head} and {body} bytes is too long; the other node is mad")]
    TooLong {
        /// Of the head.
        head: u32,
        /// Of the body.
        body: u32,
    },
    /// A frame came twice, or one is missing.
    #[error("frame {got} came where {wanted} was expected; the connection is made anew")]
    Number {
        /// What came.
        got: u64,
        /// What should have.
        wanted: u64,
    },
    /// The head is not a message, or the blocks do not fit it.
    #[error("a frame's message cannot be read; upgrade the older node")]
    Message(#[source] Option<serde_json::Error>),
    /// The stream failed or ended.
    #[error("the connection is lost; it is made anew")]
    Stream(#[source] std::io::Error),
}

/// A message that may have blocks in it.
pub trait Message: Serialize + DeserializeOwned {
    /// Takes the blocks out, if it has a place for them.
    fn take(&mut self) -> Option<Payload>;
    /// Puts them back; says whether there is a place for them.
    fn put(&mut self, blocks: Payload) -> bool;
}

fn swap(place: Option<&mut Payload>, blocks: Payload) -> Option<Payload> {
    place.map(|place| std::mem::replace(place, blocks))
}

impl Up {
    const fn place(&mut self) -> Option<&mut Payload> {
        match self {
            Self::Lease(ToCoordinator::Ask { ask: Ask::Write { data, .. }, .. }) => Some(data),
            _ => None,
        }
    }
}

impl Message for Up {
    fn take(&mut self) -> Option<Payload> {
        swap(self.place(), Payload::default())
    }

    fn put(&mut self, blocks: Payload) -> bool {
        swap(self.place(), blocks).is_some()
    }
}

impl Down {
    const fn place(&mut self) -> Option<&mut Payload> {
        match self {
            Self::Lease(ToClient::Answer { answer: Answer::Data(data), .. }) => Some(data),
            _ => None,
        }
    }
}

impl Message for Down {
    fn take(&mut self) -> Option<Payload> {
        swap(self.place(), Payload::default())
    }

    fn put(&mut self, blocks: Payload) -> bool {
        swap(self.place(), blocks).is_some()
    }
}

/// A frame's first bytes, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the message.
    pub head: usize,
    /// Bytes of blocks.
    pub body: usize,
}

impl Frame {
    /// Reads them; `wanted` is the number that has to come.
    ///
    /// # Errors
    ///
    /// See [`WireError`]: nothing of what follows is read then.
    pub fn parse(bytes: &[u8; FRAME_BYTES], wanted: u64) -> Result<Self, WireError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[..4] != MAGIC {
            return Err(WireError::NotAFrame);
        }
        if bytes[4] != VERSION {
            return Err(WireError::Version(bytes[4]));
        }
        if bytes[5..8] != [0; 3] {
            return Err(WireError::NotAFrame);
        }
        let got = u64::from(word(8)) | (u64::from(word(12)) << 32);
        if got != wanted {
            return Err(WireError::Number { got, wanted });
        }
        let (head, body) = (word(16), word(20));
        if head > HEAD_BYTES_MAX || body > BODY_BYTES_MAX {
            return Err(WireError::TooLong { head, body });
        }
        Ok(Self { head: head as usize, body: body as usize })
    }
}

/// A message as it goes over the stream; `None` if it is longer than a frame may be.
pub fn encode<M: Message>(mut message: M, number: u64) -> Option<(Vec<u8>, Payload)> {
    let body = message.take().unwrap_or_default();
    let head = serde_json::to_vec(&message).ok()?;
    let head_bytes = u32::try_from(head.len()).ok().filter(|it| *it <= HEAD_BYTES_MAX)?;
    let body_bytes = u32::try_from(body.len()).ok().filter(|it| *it <= BODY_BYTES_MAX)?;
    let mut bytes = Vec::with_capacity(FRAME_BYTES + head.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&head_bytes.to_le_bytes());
    bytes.extend_from_slice(&body_bytes.to_le_bytes());
    bytes.extend_from_slice(&head);
    Some((bytes, body))
}

/// The message of a frame.
///
/// # Errors
///
/// If the head is none, or there are blocks where there is no place for them.
pub fn decode<M: Message>(head: &[u8], body: Payload) -> Result<M, WireError> {
    let mut message: M =
        serde_json::from_slice(head).map_err(|error| WireError::Message(Some(error)))?;
    // Blocks are never in the head, and always where they belong.
    if message.take().is_some_and(|inside| !inside.is_empty()) {
        return Err(WireError::Message(None));
    }
    if !body.is_empty() && !message.put(body) {
        return Err(WireError::Message(None));
    }
    Ok(message)
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Receiver<S> {
    stream: S,
    next: u64,
}

impl<S: AsyncRead + Unpin> Receiver<S> {
    /// Of a stream of which nothing has been read.
    pub const fn new(stream: S) -> Self {
        Self { stream, next: 1 }
    }

    /// The next message. Not to be dropped half-way: the rest of a frame would be taken for another.
    ///
    /// # Errors
    ///
    /// See [`WireError`]; the connection is over then.
    pub async fn receive<M: Message>(&mut self) -> Result<M, WireError> {
        let mut first = [0; FRAME_BYTES];
        self.stream.read_exact(&mut first).await.map_err(WireError::Stream)?;
        let frame = Frame::parse(&first, self.next)?;
        self.next += 1;
        let mut head = vec![0; frame.head];
        self.stream.read_exact(&mut head).await.map_err(WireError::Stream)?;
        let mut body = Buffer::zeroed(frame.body);
        self.stream.read_exact(&mut body).await.map_err(WireError::Stream)?;
        decode(&head, body.into())
    }
}

/// The sending half of a connection.
#[derive(Debug)]
pub struct Sender<S> {
    stream: S,
    next: u64,
}

impl<S: AsyncWrite + Unpin> Sender<S> {
    /// Of a stream to which nothing has been written.
    pub const fn new(stream: S) -> Self {
        Self { stream, next: 1 }
    }

    /// The stream.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Sends a message, and waits until the stream has taken it.
    ///
    /// # Errors
    ///
    /// If the stream fails, or the message is longer than a frame may be.
    pub async fn send<M: Message>(&mut self, message: M) -> Result<(), WireError> {
        let Some((bytes, body)) = encode(message, self.next) else {
            return Err(WireError::TooLong { head: u32::MAX, body: u32::MAX });
        };
        self.next += 1;
        self.stream.write_all(&bytes).await.map_err(WireError::Stream)?;
        self.stream.write_all(&body).await.map_err(WireError::Stream)?;
        self.stream.flush().await.map_err(WireError::Stream)
    }
}
