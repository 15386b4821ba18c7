//! Words of a live migration, as the engine sees it: a stream of memory out of one machine and into
//! another one that was built alike.
//!
//! ```text
//!   source: Machine::migrate -> Outgoing        target: launch(RestorePlan::Stream) -> Machine::incoming
//!             connections -----> (carried by the caller) -----> Machine::incoming_connect
//!   source: Running -> passes -> stopped -> Done          target: Incoming -> Paused -> cont
//! ```
//!
//! `Done` at the source means that the target has loaded everything: the source's processors stand,
//! its disks are closed, and only [`super::Machine::cont`] lets it go on. Before that the engine lets
//! the guest go on by itself when the migration fails or is cancelled.

use std::time::Duration;

use model::Bytes;
use model::Millis;
use tokio::sync::mpsc;

use super::Sending;

/// What may be changed while a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrateTuning {
    /// The engine stops the guest when the rest can be sent in this time.
    pub budget: Millis,
    /// How much the guest's processors may be slowed, in percent of their time, 1 to 99; 1 is not at
    /// all.
    pub throttle_max: u8,
}

/// When a guest that stands, with all of its memory nearly sent, is switched over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// At once.
    AtOnce,
    /// On the word of the caller ([`super::Machine::migrate_switch`]), who brings its disks to an end
    /// first.
    OnWord,
}

/// A migration that was begun.
#[derive(Debug)]
pub struct Outgoing {
    /// Connections that the engine opens, in their order. Each must reach the target as one of
    /// [`super::Machine::incoming_connect`].
    pub connections: mpsc::Receiver<Sending>,
}

/// Where a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigratePhase {
    /// None was begun.
    Idle,
    /// Memory is being sent; at its end the guest stands.
    Running,
    /// The guest stands, and the rest is sent on [`super::Machine::migrate_switch`].
    Waiting,
    /// The target has everything.
    Done,
    /// Given up on request; the guest goes on.
    Cancelled,
    /// Failed, with the reason; the guest goes on.
    Failed(String),
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrateProgress {
    /// Where it is.
    pub phase: MigratePhase,
    /// Passes over the memory, the present one included.
    pub pass: u64,
    /// Sent so far.
    pub sent: Bytes,
    /// Memory that was found empty and of which nothing but that was sent: never used by the guest, or
    /// free and given back to the host. A page that was looked at in two passes counts once more; never
    /// more than `total`.
    pub empty: Bytes,
    /// Left to send, as known at the begin of the pass and less what was sent since.
    pub remaining: Bytes,
    /// The guest's memory.
    pub total: Bytes,
    /// What went through lately, in bytes per second.
    pub bandwidth: Bytes,
    /// How long the guest stood until the target had all of it; only when that is so.
    pub stood: Option<Duration>,
}

impl MigrateProgress {
    /// Before the first.
    pub fn idle() -> Self {
        Self {
            phase: MigratePhase::Idle,
            pass: 0,
            sent: Bytes::ZERO,
            empty: Bytes::ZERO,
            remaining: Bytes::ZERO,
            total: Bytes::ZERO,
            bandwidth: Bytes::ZERO,
            stood: None,
        }
    }
}
