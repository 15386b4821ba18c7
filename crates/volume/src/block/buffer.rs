//! Memory that a device can read and write by itself.

use std::fmt;
use std::ops::Deref;
use std::ops::DerefMut;

/// What every device that we meet is content with: a page, and the block of a lease.
pub(super) const ALIGNMENT: u64 = 4096;

/// Bytes whose address is a multiple of 4096. Their length is not changed after they were made.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Zeroes.
    pub fn zeroed(length: usize) -> Self {
        let alignment = usize::try_from(ALIGNMENT).unwrap_or(4096);
        let memory = vec![0; length + if length == 0 { 0 } else { alignment }];
        // A vector that is never grown stays where it is, also when the buffer is moved.
        let start = if length == 0 { 0 } else { memory.as_ptr().align_offset(alignment) };
        Self { memory, start, length }
    }

    /// No bytes.
    pub fn empty() -> Self {
        Self::zeroed(0)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_wherever_it_goes() {
        let many: Vec<Buffer> = (1..40).map(|n| Buffer::zeroed(n * 512)).collect();
        for buffer in many {
            let moved = Box::new(buffer);
            assert_eq!(moved.as_ptr() as usize % 4096, 0);
        }
        assert!(Buffer::empty().is_empty());
    }
}
