//! Bytes that several hold and nobody changes.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use super::Buffer;
use super::buffer::ALIGNMENT;

/// Shared bytes. Where they are whole blocks of 4096, a device takes them as they lie: what a program
/// writes is copied once, into one of these, and from there goes to the LUN, to another node, or
/// is kept until it is flushed.
#[derive(Clone)]
pub struct Payload(Arc<Bytes>);

enum Bytes {
    /// Anything.
    Few(Box<[u8]>),
    /// Whole blocks.
    Blocks(Buffer),
}

impl Payload {
    /// The bytes as a device takes them, where they are whole blocks.
    pub fn blocks(&self) -> Option<&Buffer> {
        match &*self.0 {
            Bytes::Blocks(buffer) => Some(buffer),
            Bytes::Few(_) => None,
        }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Bytes::Few(bytes) => bytes,
            Bytes::Blocks(buffer) => buffer,
        }
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self(Arc::new(Bytes::Few(Box::default())))
    }
}

impl From<Buffer> for Payload {
    fn from(buffer: Buffer) -> Self {
        if is_blocks(&buffer) { Self(Arc::new(Bytes::Blocks(buffer))) } else { buffer[..].into() }
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        let bytes = if is_blocks(bytes) {
            Bytes::Blocks(Buffer::from(bytes))
        } else {
            Bytes::Few(bytes.into())
        };
        Self(Arc::new(bytes))
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        if is_blocks(&bytes) {
            return bytes[..].into();
        }
        Self(Arc::new(Bytes::Few(bytes.into())))
    }
}

impl<const N: usize> From<[u8; N]> for Payload {
    fn from(bytes: [u8; N]) -> Self {
        bytes[..].into()
    }
}

impl FromIterator<u8> for Payload {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Self {
        bytes.into_iter().collect::<Vec<u8>>().into()
    }
}

fn is_blocks(bytes: &[u8]) -> bool {
    !bytes.is_empty() && (bytes.len() as u64).is_multiple_of(ALIGNMENT)
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self[..] == other[..]
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self[..], f)
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self[..].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_lie_where_a_device_takes_them_and_the_rest_is_as_short_as_it_is() {
        for length in [0, 1, 8, 4095, 4096, 4097, 8192] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            for payload in [Payload::from(&bytes[..]), Payload::from(bytes.clone())] {
                assert_eq!(payload[..], bytes[..]);
                let aligned = payload.blocks().map(|it| it.as_ptr() as usize % 4096);
                assert_eq!(aligned, (is_blocks(&bytes)).then_some(0));
                let words = serde_json::to_string(&payload).expect("text");
                assert_eq!(words, serde_json::to_string(&bytes).expect("text"));
                assert_eq!(serde_json::from_str::<Payload>(&words).expect("bytes"), payload);
            }
        }
    }
}
