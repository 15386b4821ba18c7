//! Pure: the source's half of the one decision of a migration. Its guest stands for good and the
//! target has all of it; what the source may do with the guest follows from what it hears of the
//! handovers that it proposed, and from nothing else.

use std::time::Duration;

use model::Generation;
use model::MigrateReport;
use model::OpId;

/// How long the guest may stand for a handover that nobody takes in, before it goes on where it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a driver hands over.
#[derive(Debug, Clone)]
pub struct HandoverNote {
    /// The migration.
    pub op: OpId,
    /// The run that ends.
    pub generation: Generation,
    /// What was foretold and measured.
    pub report: MigrateReport,
}

/// What became of a handover that was proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handover {
    /// The VM is the target's.
    Done,
    /// It is not, and this proposal will not make it so.
    Refused(String),
    /// The proposal has surely reached nobody.
    NotSent(String),
    /// It may or may not have been taken in, now or later.
    Unknown(String),
}

/// What the source does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterHandover {
    /// The VM is the target's: the machine here has no right to run any more.
    Leave,
    /// No handover can happen any more: the guest goes on here.
    GoOn(String),
    /// The operation ends, and the guest stands until its end is in the state: that refuses whatever
    /// is still on its way.
    Stand(String),
    /// The handover is proposed again.
    Again(String),
}

/// What is known of the handovers that were proposed in one migration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Handovers {
    /// One of them may have been taken in, or still be on its way.
    unsure: bool,
}

impl Handovers {
    /// One more was answered, when the guest had waited that long for the first word.
    pub fn answered(&mut self, answer: Handover, waited: Duration) -> AfterHandover {
        match answer {
            Handover::Done => AfterHandover::Leave,
            // One that was sent before may still be on its way.
            Handover::Refused(why) => AfterHandover::Stand(why),
            Handover::NotSent(why) if !self.unsure && waited > PATIENCE => AfterHandover::GoOn(why),
            Handover::NotSent(why) => AfterHandover::Again(why),
            Handover::Unknown(why) => {
                self.unsure = true;
                AfterHandover::Again(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    fn words() -> String {
        "why".to_owned()
    }

    #[test]
    fn the_guest_goes_on_only_when_no_handover_was_sent() {
        let mut all = Handovers::default();
        let not_sent = || Handover::NotSent(words());
        assert_eq!(all.answered(not_sent(), SHORT), AfterHandover::Again(words()));
        assert_eq!(all.answered(not_sent(), LONG), AfterHandover::GoOn(words()));
        let unknown = Handover::Unknown(words());
        assert_eq!(all.answered(unknown, LONG), AfterHandover::Again(words()));
        assert_eq!(all.answered(not_sent(), LONG), AfterHandover::Again(words()));
        let refused = Handover::Refused(words());
        assert_eq!(all.answered(refused, LONG), AfterHandover::Stand(words()));
        assert_eq!(all.answered(Handover::Done, LONG), AfterHandover::Leave);
    }
}
