//! A LUN for the lab and for tests, with every fault of a real one.
//!
//! ```text
//!   node 0        node 1                      [`Lun`]: one store, one volatile cache, keys, a log
//!   /dev/loopA    /dev/loopB                     ^
//!      |             |                           |
//!   path-0        path-1   <-- files of one FUSE server ([`serve`])
//! ```
//!
//! Each node gets a loop device on a file of its own; all files are one LUN. What a write brings is
//! in the volatile cache until a flush, by any path. A node whose key is gone is refused, for reads,
//! too ("exclusive access, all registrants", kept over loss of power).
//!
//! | fault | how |
//! | --- | --- |
//! | loss of power | [`Lun::power_loss`]: each cached block is kept, lost or torn, as the caller says |
//! | a crash at any moment | [`Lun::record`], then [`Lun::image`]: any part of what was written |
//! | a path is lost | [`Lun::set_path`] |
//! | a path is lost with the cache behind it | [`Lun::lose_path_with_cache`] |
//! | a node loses power | [`Lun::end_life`]: what it still sends is refused |
//! | slow | [`Lun::set_delay`] |
//! | a node is fenced | [`Lun::preempt_and_abort`] |
//!
//! Commands here are whole when they are done, so "abort" means that none is begun any more.

mod lun;
mod serve;

pub use lun::Entry;
pub use lun::Fate;
pub use lun::Lun;
pub use lun::LunError;
pub use lun::SECTOR_BYTES;
pub use lun::Store;
pub use serve::PathFence;
pub use serve::Server;
pub use serve::serve;
pub use serve::serve_as;
