//! One migration as it is measured, the same way whoever makes it.

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;

use crate::outside::ticks::Load;
use crate::outside::ticks::Watch;
use crate::outside::ticks::dirtied_mib_s;
use crate::outside::ticks::longest_gap_ms;
use crate::stop;

/// Bytes in a MiB.
pub(super) const MIB: f64 = 1_048_576.0;

/// How long a guest does what it does before it is migrated.
const SETTLE: Duration = Duration::from_millis(1500);

/// The part of that in which its ticks show what the machine does to them by itself.
const BEFORE: Duration = Duration::from_secs(1);

/// How long after its end a migration may still make the guest stand still.
const AFTER: Duration = Duration::from_millis(500);

/// What whoever migrates says of a migration. Times in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) ended: Instant,
    /// From the command to its completion.
    pub(super) total_ms: f64,
    /// What an operator waits: of Muster the whole command, with the start of its program.
    pub(super) wall_ms: f64,
    /// The pause that is claimed.
    pub(super) pause_ms: f64,
    /// On the wire.
    pub(super) mib: f64,
    pub(super) passes: f64,
    pub(super) predicted: Option<Predicted>,
}

/// What was said before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Predicted {
    pub(super) total_ms: f64,
    pub(super) pause_ms: f64,
}

/// A migration of which the guest was seen to go on, whole.
#[derive(Debug, Clone)]
pub(super) struct Passage {
    pub(super) done: Done,
    /// The longest silence of the guest from the command until a while after the end.
    pub(super) blackout_ms: f64,
    /// The longest silence before: what blackouts of this size are worth.
    pub(super) noise_ms: f64,
    /// What the guest dirtied in a second before.
    pub(super) dirtied_mib_s: f64,
}

/// Sets the guest to work, has it migrated, and lets it rest again. An error if the guest is not
/// alive and whole afterwards; none if the migration was given up.
pub(super) fn observe(
    watch: &Watch,
    load: Load,
    migrate: impl FnOnce() -> Result<Option<Done>>,
) -> Result<Option<Passage>> {
    watch.run(load)?;
    stop::pass(SETTLE)?;
    let began = Instant::now();
    let done = migrate()?;
    stop::pass(AFTER)?;
    let passage = done.map(|done| {
        let ticks = watch.ticks();
        Passage {
            blackout_ms: longest_gap_ms(&ticks, began, done.ended + AFTER),
            noise_ms: longest_gap_ms(&ticks, began - BEFORE, began),
            dirtied_mib_s: dirtied_mib_s(&ticks, began - BEFORE, began),
            done,
        }
    });
    watch.check(load)?;
    watch.rest()?;
    Ok(passage)
}
