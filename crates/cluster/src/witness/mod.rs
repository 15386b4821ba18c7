//! The witness: a voter of the log without a process.
//!
//! ```text
//!   node A: openraft --> WitnessTransport --> Client --+
//!                                                      +--> WitnessStore: one small record
//!   node B: openraft --> WitnessTransport --> Client --+    (directory, object, another machine,
//!                                                                block device)
//! ```
//!
//! Two nodes need each other to decide anything; with a third voter any two of three decide. This
//! voter has no process: its vote and the end of its log are one [`Record`] in a store that can
//! replace it on condition ([`WitnessStore`]). Whoever asks it for something works its answer out
//! himself, by the rules of a follower ([`record`]), and stores the record; the answer counts only
//! if that succeeded. Two who race are put in order by the store. openraft does not know of it: the
//! requests to the witness's id are answered behind [`WitnessTransport`].
//!
//! Why the record holds entries and not only the position of the last one: docs/decisions/0012.
//!
//! What can go wrong with it, and what happens:
//!
//! | what | then |
//! | --- | --- |
//! | it cannot be reached | it does not answer, like any voter |
//! | an answer is lost, or comes late | read again, look for our own nonce |
//! | the record is gone, put back, damaged, or of another | refused by name ([`Wrong`]) until it is set anew, under a new id |
//! | the store does not keep its word | refused when it is set, and at each start ([`probe`]) |
//! | A and the witness decide, A is gone, B lacks it | B takes it from the record before it campaigns |
//! | A and B reach it, and not each other | the one who holds it keeps it while it renews it |
//!
//! Trust boundary: the bytes of the record, which anybody who can write to the store can change.
//! They are parsed with limits, and carry a checksum against accidents; whoever can write to the
//! store can stop the cluster, or vote twice in its name. It must be writable to the nodes only.

pub mod block;
mod client;
mod directory;
pub mod memory;
mod object;
pub mod probe;
pub mod record;
mod remote;
mod store;
#[cfg(test)]
mod tests;
mod transport;

pub use block::Block;
pub use client::Ask;
pub use client::AskError;
pub use client::Client;
pub use client::Health;
pub use client::Terms;
pub use client::Wrong;
pub use client::create;
pub use directory::Directory;
pub use object::BadAddress;
pub use object::Object;
pub use record::Record;
pub use remote::BadToken;
pub use remote::Remote;
pub use remote::ServeError;
pub use remote::Server;
pub use remote::WitnessToken;
pub use store::StoreError;
pub use store::Tag;
pub use store::WitnessStore;
pub use store::Written;
pub use transport::WitnessTransport;

/// How long a held record must stand unchanged before another node campaigns through it: a store
/// may take a second for an answer, and the holder renews it three times in that.
pub const HOLD_LEASE: std::time::Duration = std::time::Duration::from_secs(5);
