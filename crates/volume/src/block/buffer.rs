//! Memory that a device can read and write by itself.

use std::fmt;
use std::ops::Deref;
use std::ops::DerefMut;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What every device that we meet is content with: a page, and the block of a lease.
pub(super) const ALIGNMENT: u64 = 4096;

/// Memory for copies this long or longer, up to [`LONG_MAX`], is used again: the kernel takes longer to
/// give 1 MiB out anew, page for page, than it takes to be filled.
const LONG_MIN: usize = 256 << 10;

/// The longest write of a program: 1 MiB.
const LONG_MAX: usize = 1 << 20;

/// Pieces of memory that wait to be used again: 32 MiB.
const WAITING_MAX: usize = 32;

/// All of them have room for [`LONG_MAX`] bytes wherever they begin to be aligned.
static WAITING: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn waiting() -> std::sync::MutexGuard<'static, Vec<Vec<u8>>> {
    // Plain data, changed in one go.
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Empty memory with room for so many bytes, aligned.
fn memory_for(length: usize) -> Vec<u8> {
    let alignment = usize::try_from(ALIGNMENT).unwrap_or(4096);
    if !(LONG_MIN..=LONG_MAX).contains(&length) {
        return Vec::with_capacity(length + alignment);
    }
    let used = waiting().pop();
    used.unwrap_or_else(|| Vec::with_capacity(LONG_MAX + alignment))
}

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
        if bytes.is_empty() {
            return Self::empty();
        }
        let mut memory = memory_for(bytes.len());
        let alignment = usize::try_from(ALIGNMENT).unwrap_or(4096);
        let start = memory.as_ptr().align_offset(alignment);
        memory.resize(start, 0);
        // It has room for that, so it stays where it is.
        memory.extend_from_slice(bytes);
        Self { memory, start, length: bytes.len() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let alignment = usize::try_from(ALIGNMENT).unwrap_or(4096);
        if self.length < LONG_MIN || self.memory.capacity() != LONG_MAX + alignment {
            return;
        }
        let mut memory = std::mem::take(&mut self.memory);
        memory.clear();
        let mut waiting = waiting();
        if waiting.len() < WAITING_MAX {
            waiting.push(memory);
        }
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

    #[test]
    fn memory_that_is_used_again_has_the_new_bytes_only() {
        for round in 0..3_u8 {
            for length in [4096, LONG_MIN, LONG_MAX - 4096, LONG_MAX, LONG_MAX + 4096] {
                let bytes = vec![round; length];
                let many: Vec<Buffer> = (0..3).map(|_| Buffer::from(&bytes[..])).collect();
                for buffer in many {
                    assert_eq!(buffer.as_ptr() as usize % 4096, 0);
                    assert!(buffer[..] == bytes[..], "{length} bytes in round {round}");
                }
            }
        }
        assert!(waiting().len() <= WAITING_MAX);
    }
}
