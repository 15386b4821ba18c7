//! Operations: what is being done, and how it ended.

mod cancel;
mod list;
mod show;
mod wait;

use api::model::OpState;
use api::types::OpView;

use crate::commands::noun;
use crate::output::Tone;
use crate::progress;

noun! {
    /// Operations: what is being done, and how it ended.
    List(list),
    Show(show),
    Wait(wait),
    Cancel(cancel),
}

/// How far an operation is, in words, and how that is to be seen.
fn state(op: &OpView) -> (String, Tone) {
    match &op.state {
        OpState::Running { cancel_requested } => {
            let step = op.progress.as_ref().map(progress::line).unwrap_or_default();
            let text = match (cancel_requested, step.is_empty()) {
                (true, _) => "stopping".to_owned(),
                (false, true) => "running".to_owned(),
                (false, false) => step,
            };
            (text, Tone::Busy)
        }
        OpState::Done { .. } => ("done".to_owned(), Tone::Good),
        OpState::Failed { failure, .. } => (format!("failed: {}", failure.message), Tone::Bad),
        OpState::Cancelled { .. } => ("cancelled".to_owned(), Tone::Faint),
    }
}
