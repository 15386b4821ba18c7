//! Limits of the protocol, each with its reason.

use std::time::Duration;

/// Times and bounds. The defaults are for production; tests take shorter ones.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a client may take to give back leases before it is fenced: long enough for what
    /// is on the way on a slow LUN, short enough that a truncate never hangs for long.
    pub recall: Duration,
    /// How long a client may be silent before it is fenced: three times the keep-alive.
    pub silence: Duration,
    /// How often a client repeats what has no answer, and says that it is alive.
    pub resend: Duration,
    /// How long a new coordinator keeps files for nodes that have not claimed theirs yet.
    pub grace: Duration,
    /// How far ahead a file is allocated and written when it grows: 64 MiB, so that a guest that
    /// writes into new space asks once in a while and not for each write.
    pub growth_blocks: u64,
    /// Requests of one client that have no answer yet: a slow coordinator is a pause, not memory.
    pub asks_max: usize,
    /// Jobs that wait for one file.
    pub queue_max: usize,
    /// Leases of one session: each costs some hundred bytes on both sides.
    pub leases_max: usize,
    /// Files that one node has open.
    pub opens_max: usize,
    /// I/O requests of one node that have not ended.
    pub ios_max: usize,
    /// Blocks of writes that have ended and that no flush has covered, kept to be written again if
    /// the LUN may have lost them: 64 MiB. At half of it the client flushes by itself.
    pub unflushed_blocks_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            recall: Duration::from_secs(3),
            silence: Duration::from_secs(3),
            resend: Duration::from_millis(500),
            grace: Duration::from_secs(5),
            growth_blocks: (64 << 20) / super::BLOCK_BYTES,
            asks_max: 64,
            queue_max: 256,
            leases_max: 65_536,
            opens_max: 4_096,
            ios_max: 4_096,
            unflushed_blocks_max: (64 << 20) / super::BLOCK_BYTES,
        }
    }
}
