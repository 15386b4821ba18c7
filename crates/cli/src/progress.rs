//! How an operation's progress is shown: a bar on a terminal, plain lines elsewhere.

use std::time::Duration;

use api::model::Bytes;
use api::types::ProgressView;
use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;

use crate::output::Output;
use crate::output::clean_line;
use crate::output::time::length;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);
/// From here on, a total counts bytes: no step counts a million of anything else.
const BYTES_FROM: u64 = 1 << 20;
/// A plain line for each so many percent, so that a log stays readable.
const LINE_PERCENT: u64 = 10;

/// Progress of one operation.
pub(crate) enum Progress {
    /// A bar or spinner.
    Bar(ProgressBar),
    /// Plain lines.
    Lines {
        /// What is being done.
        title: String,
        /// The step and the part of it that were told last.
        told: Option<(String, u64)>,
    },
    /// Nothing.
    Silent,
}

impl Progress {
    /// Begins to show an operation.
    pub(crate) fn new(out: &Output, title: &str) -> Self {
        let title = clean_line(title);
        if out.quiet || (out.json && !out.terminal_error) {
            return Self::Silent;
        }
        if !out.terminal_error {
            return Self::Lines { title, told: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {prefix} {msg} {elapsed}"));
        bar.set_prefix(title);
        bar.enable_steady_tick(TICK);
        Self::Bar(bar)
    }

    /// Shows how far it is.
    pub(crate) fn show(&mut self, progress: Option<&ProgressView>) {
        let Some(progress) = progress else { return };
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_message(clean_line(&progress.step));
                if progress.total > 0 {
                    let tail = if progress.total >= BYTES_FROM {
                        "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
                    } else {
                        "{pos}/{len}"
                    };
                    bar.set_style(style(&format!(
                        "{{spinner}} {{prefix}} {{msg}} [{{bar:30}}] {{percent}}% {tail}"
                    )));
                    bar.set_length(progress.total);
                    bar.set_position(progress.done.min(progress.total));
                } else {
                    bar.set_style(style("{spinner} {prefix} {msg} {elapsed}"));
                }
            }
            Self::Lines { title, told } => {
                let part = percent(progress) / LINE_PERCENT;
                let now = (progress.step.clone(), part);
                if told.as_ref() != Some(&now) {
                    eprintln!("{title}: {}", line(progress));
                    *told = Some(now);
                }
            }
        }
    }

    /// Says something without tearing the bar.
    pub(crate) fn say(&self, text: &str) {
        let text = clean_line(text);
        match self {
            Self::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Self::Lines { .. } => eprintln!("{text}"),
            Self::Silent => {}
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("=> ")
}

fn percent(progress: &ProgressView) -> u64 {
    let done = u128::from(progress.done.min(progress.total)) * 100;
    u64::try_from(done / u128::from(progress.total.max(1))).unwrap_or(100)
}

/// `downloading 10% (1 GiB of 10 GiB)`.
pub(crate) fn line(progress: &ProgressView) -> String {
    let step = clean_line(&progress.step);
    if progress.total == 0 {
        return step;
    }
    let percent = percent(progress);
    if progress.total >= BYTES_FROM {
        let (done, total) = (Bytes::new(progress.done), Bytes::new(progress.total));
        format!("{step} {percent}% ({done} of {total})")
    } else {
        format!("{step} {percent}% ({} of {})", progress.done, progress.total)
    }
}

/// `start web-1: done (2.1 s)`.
pub(crate) fn done_line(title: &str, millis: u64) -> String {
    format!("{title}: done ({})", length(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_the_steps_own_unit() {
        let view = |done, total| ProgressView { step: "copying".into(), done, total };
        assert_eq!(line(&view(0, 0)), "copying");
        assert_eq!(line(&view(1, 4)), "copying 25% (1 of 4)");
        assert_eq!(line(&view(1 << 30, 10 << 30)), "copying 10% (1 GiB of 10 GiB)");
        assert_eq!(line(&view(u64::MAX, u64::MAX)).split(' ').nth(1), Some("100%"));
        assert_eq!(line(&view(9, 4)), "copying 100% (9 of 4)");
    }
}
