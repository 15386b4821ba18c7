//! Fence devices: programs of the `fence-agents` package that switch a node off, and when they are
//! believed.
//!
//! ```text
//!   level 1:  off on every device -> status on every device: all say off -> proof
//!                 | one fails, hangs, or says on
//!                 v
//!   level 2:  the same ...                                      none left -> no proof
//! ```
//!
//! - *Off* is believed only when a later *status* says off, too; only an agent that has no such
//!   action is believed by its exit code, and the proof says so.
//! - All devices of a level must be off **at the same time**: a node with two power supplies is off
//!   when both are. So every status is asked for after the last off.
//! - An agent that hangs is killed with all that it has started; its output is bounded, and secrets
//!   are taken out of it before anybody sees it.
//! - No device can be asked whether it lies. Whoever calls looks whether the node is still heard
//!   after the device has said off ([`Heard`]); then it is not believed either.
//!
//! Trust boundary: agents are programs of the administrator's package, run as root; their *output*
//! is data, shown and never interpreted beyond the exit code.

mod agent;
mod levels;

pub use agent::Action;
pub use agent::Agents;
pub use agent::Called;
pub use agent::Instead;
pub use agent::Outcome;
pub use levels::Heard;
pub use levels::NoProof;
pub use levels::prove_off;
