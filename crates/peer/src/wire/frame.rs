//! Frames: sixteen bytes of head, then a body of at most what the reader allows.

use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

/// Size of a head.
pub const HEADER_BYTES: usize = 16;

/// Memory that is taken before the bytes for it have come.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller says who it is.
    Greeting,
    /// The called side accepts.
    Welcome,
    /// No, with a reason: to the greeting or to a call.
    Refused,
    /// A call.
    Call,
    /// Its answer.
    Reply,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The method, in calls.
    pub method: u16,
    /// Which call it belongs to.
    pub call: u32,
    /// How long the caller waits, in milliseconds; in calls.
    pub deadline_ms: u32,
    /// Size of the body.
    pub length: u32,
}

/// A frame with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its head; the length is that of the body.
    pub header: Header,
    /// Its body.
    pub body: Bytes,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The other side has ended, between two frames.
    #[error("the other side ended the connection")]
    Ended,
    /// The connection broke, also in the middle of a frame.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A frame began and did not end in time.
    #[error("a frame began and did not end in time")]
    Slow,
    /// The bytes are no head.
    #[error("these bytes are not of this protocol: {0}")]
    Malformed(&'static str),
    /// The body is larger than the reader allows.
    #[error("a frame of {bytes} bytes is more than the {bytes_max} that are allowed")]
    TooLarge {
        /// Its size.
        bytes: u32,
        /// The limit.
        bytes_max: usize,
    },
}

impl Kind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Greeting => 1,
            Self::Welcome => 2,
            Self::Refused => 3,
            Self::Call => 4,
            Self::Reply => 5,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Greeting,
            2 => Self::Welcome,
            3 => Self::Refused,
            4 => Self::Call,
            5 => Self::Reply,
            _ => return None,
        })
    }
}

impl Header {
    /// The bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind.to_byte();
        bytes[2..4].copy_from_slice(&self.method.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.call.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.deadline_ms.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] or [`ReadError::TooLarge`].
    pub fn decode(bytes: &[u8; HEADER_BYTES], bytes_max: usize) -> Result<Self, ReadError> {
        let [kind, zero, m0, m1, c0, c1, c2, c3, d0, d1, d2, d3, l0, l1, l2, l3] = *bytes;
        let kind = Kind::from_byte(kind).ok_or(ReadError::Malformed("an unknown kind of frame"))?;
        if zero != 0 {
            return Err(ReadError::Malformed("a reserved byte is set"));
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if usize::try_from(length).unwrap_or(usize::MAX) > bytes_max {
            return Err(ReadError::TooLarge { bytes: length, bytes_max });
        }
        Ok(Self {
            kind,
            method: u16::from_be_bytes([m0, m1]),
            call: u32::from_be_bytes([c0, c1, c2, c3]),
            deadline_ms: u32::from_be_bytes([d0, d1, d2, d3]),
            length,
        })
    }
}

impl Frame {
    /// A frame; the length is taken from the body.
    ///
    /// # Panics
    /// If the body has four gigabytes or more: callers check their limit first.
    pub fn new(kind: Kind, method: u16, call: u32, body: Bytes) -> Self {
        let length = u32::try_from(body.len()).expect("bodies are limited before");
        Self { header: Header { kind, method, call, deadline_ms: 0, length }, body }
    }
}

/// Waits for a frame, for as long as it takes; once it has begun, it must be whole after
/// `patience`. After the head, `enter` is called with it (to wait for room). Memory grows with what
/// has come, not with what was announced.
///
/// # Errors
/// [`ReadError`]; the connection cannot be used any more.
pub async fn read_frame<R, P>(
    reader: &mut R,
    bytes_max: usize,
    patience: Duration,
    enter: impl AsyncFnOnce(&Header) -> P,
) -> Result<(Frame, P), ReadError>
where
    R: AsyncRead + Unpin,
{
    let mut head = [0; HEADER_BYTES];
    // The end between two frames is an end in order; within one it is not.
    if reader.read(&mut head[..1]).await? == 0 {
        return Err(ReadError::Ended);
    }
    let rest = async {
        reader.read_exact(&mut head[1..]).await?;
        let header = Header::decode(&head, bytes_max)?;
        let permit = enter(&header).await;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let mut body = BytesMut::with_capacity(length.min(AHEAD_BYTES_MAX));
        let mut rest = reader.take(u64::from(header.length));
        while body.len() < length {
            if rest.read_buf(&mut body).await? == 0 {
                return Err(ReadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok((Frame { header, body: body.freeze() }, permit))
    };
    tokio::time::timeout(patience, rest).await.unwrap_or(Err(ReadError::Slow))
}

/// Writes a frame and flushes.
///
/// # Errors
/// As the writer says.
pub async fn write_frame<W>(writer: &mut W, frame: &Frame) -> std::io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    writer.write_all(&frame.header.encode()).await?;
    writer.write_all(&frame.body).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::prelude::prop_assert;
    use proptest::prelude::prop_assert_eq;
    use proptest::prelude::proptest;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn read(bytes: &[u8], bytes_max: usize) -> Result<Frame, ReadError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut reader = bytes;
        runtime
            .block_on(read_frame(&mut reader, bytes_max, PATIENCE, async |_: &Header| ()))
            .map(|(frame, ())| frame)
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_no_frame() {
        let frame = Frame::new(Kind::Call, 3, 7, Bytes::from_static(b"hello"));
        let mut bytes = frame.header.encode().to_vec();
        bytes.extend_from_slice(&frame.body);
        assert_eq!(read(&bytes, 5).unwrap(), frame);
        assert!(matches!(read(&[], 5), Err(ReadError::Ended)));
        for cut in 1..bytes.len() {
            assert!(matches!(read(&bytes[..cut], 5), Err(ReadError::Io(_))), "{cut}");
        }
        assert!(matches!(read(&bytes, 4), Err(ReadError::TooLarge { bytes: 5, bytes_max: 4 })));
    }

    #[test]
    fn four_gigabytes_that_never_come_take_no_memory() {
        let header =
            Header { kind: Kind::Call, method: 1, call: 1, deadline_ms: 1, length: u32::MAX };
        let error = read(&header.encode(), usize::MAX).unwrap_err();
        assert!(matches!(error, ReadError::Io(_)), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0..7_u8,
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(frame) = read(&bytes, 64) {
                prop_assert!(frame.body.len() <= 64);
                prop_assert_eq!(&frame.header.encode()[..], &bytes[..HEADER_BYTES]);
            }
        }

        #[test]
        fn what_is_written_is_read(
            method in any::<u16>(), call in any::<u32>(), deadline_ms in any::<u32>(),
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut frame = Frame::new(Kind::Reply, method, call, body.into());
            frame.header.deadline_ms = deadline_ms;
            let mut bytes = frame.header.encode().to_vec();
            bytes.extend_from_slice(&frame.body);
            prop_assert_eq!(read(&bytes, 64).unwrap(), frame);
        }
    }
}
