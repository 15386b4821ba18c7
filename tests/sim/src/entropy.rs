//! Randomness of the process, from the seed.
//!
//! openraft's election timeouts, tokio's choice among waiters and the keys of hash maps come from the
//! system's `getrandom`. The program's own one stands before that of the C library, and gives the
//! same numbers for the same seed. So that nothing else has taken numbers before, each schedule is a
//! process of its own.
#![allow(unsafe_code, reason = "a symbol of the C library is replaced, in a test program only")]

use std::ffi::c_uint;
use std::ffi::c_void;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on, all randomness of this process follows from the seed.
pub(crate) fn seed(seed: u64) {
    STATE.store(seed, Ordering::SeqCst);
    SEEDED.store(true, Ordering::SeqCst);
}

fn word() -> u64 {
    let state = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
    let mut z = state ^ (state >> 30);
    z = z.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What the C library's function of that name does, or what the seed says.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if !SEEDED.load(Ordering::SeqCst) {
        // SAFETY: the arguments are passed on as they came.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(got).unwrap_or(-1);
    }
    if length > 0 {
        // SAFETY: the caller gives a buffer of that length, as for the function that this replaces.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&word().to_le_bytes()[..chunk.len()]);
        }
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
