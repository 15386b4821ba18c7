//! The lease of a node: the arithmetic that keeps a VM from running on two nodes.
//!
//! ```text
//!  node   sends request ---- reply arrives         2/3 lease       end of lease
//!  -------- t0 -------------------- | ----------------- | --------------- | ------------------>
//!           |<-- the lease counts from t0, by the node's clock that also counts suspend -->|
//!           |                       | machines run      | frozen          | killed, stay frozen
//!           |
//!  leader   |   request arrives t1 >= t0, grant                              takeover
//!  ------------------ t1 --------------------------------------------------------- | --------->
//!                     |<- lease + watchdog + margin + 1 % of (lease + watchdog) + 1 s ->|
//! ```
//!
//! The law (DESIGN.md, safety rules 1 to 4): **as long as a guard lets machines of a node run, no
//! leader calls that node's lease over.** It holds because
//!
//! 1. the node counts from before it sent, the leader from after the request arrived, so the node's
//!    lease ends first, by any clocks whose rates differ by at most 1 %;
//! 2. a leader answers only after a quorum has confirmed it, after the request arrived; so whatever
//!    an older leader grants belongs to a request from before the next election, and a new leader
//!    counts from its election;
//! 3. a guard takes grants in the order (term, number) only, never an older one after a newer one;
//! 4. what kind of lease a node can hold at most is in the replicated state ([`LeaseTerms`]):
//!    written before a grant goes beyond it, narrowed only after every wider grant has ended.
//!    Without such a record nothing is ever concluded from time.
//! 5. whoever is fenced has a new epoch; a grant carries the epoch, and a guard takes a higher one
//!    only with no machine left of the old one.
//!
//! Everything in this folder is pure: no clock, no socket. `machine` is the node's side and runs in
//! the guard, `desk` is the leader's side and runs in the daemon of the leader.
//!
//! | kind of lease | when | what a guard does when it ends |
//! | --- | --- | --- |
//! | unlimited | a cluster of one | nothing: there is nobody who could take over |
//! | proof | a fence device or reservation can stop this node | nothing: takeover needs that proof |
//! | self-fence | neither | freezes at two thirds, kills at the end |

mod desk;
mod machine;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod props;
mod settings;
mod time;
mod wire;

pub use model::LeaseTerms;

pub use desk::Certainty;
pub use desk::Decision;
pub use desk::Desk;
pub use desk::Known;
pub use desk::NoLease;
pub use desk::Takeover;
pub use machine::EndAll;
pub use machine::Held;
pub use machine::NodeLease;
pub use machine::NotTaken;
pub use machine::Stage;
pub use machine::Wanted;
pub use settings::BadSettings;
pub use settings::LeaseSettings;
pub use time::BootTime;
pub use wire::Grant;
pub use wire::GrantKey;
pub use wire::Holding;
pub use wire::LeaseAnswer;
pub use wire::LeaseGrant;
pub use wire::LeaseRequest;
pub use wire::Mode;
