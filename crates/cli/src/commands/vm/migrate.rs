//! `muster vm migrate`.

use std::fmt::Write;

use api::endpoint::VmMigrate;
use api::migrate::CheckView;
use api::migrate::VmMigrateBody;
use api::migrate::VmMigrateView;
use api::model::AtLimit;
use api::model::Bytes;
use api::model::MigrateChange;
use api::model::MigrateForecast;
use api::model::MigrateReport;
use api::model::MigrateResult;
use api::model::Millis;
use api::model::Name;
use api::types::OpView;
use clap::ValueEnum;
use serde::Serialize;

use crate::complete;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::operation;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time::length;
use crate::parse;

/// Move a running machine to another node, while it runs (live migration).
///
/// Its memory is sent while its guest works; then the guest stands for some milliseconds, and goes on
/// at the other node. Before the first byte it is looked whether everything it needs is there. Until
/// the guest goes on there, it goes on where it was if anything fails. Ctrl-C stops the migration and
/// changes nothing. Without `--to`, the best node is taken. With `--with-storage` its disks are copied
/// first, while it works, and the old ones are removed last: no shared storage is needed. A machine that
/// is off or saved goes in that way, too, as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm migrate web-1 --to host-2
  muster vm migrate web-1 --dry-run
  muster vm migrate web-1 --to host-2 --with-storage --bandwidth 100M
  muster vm migrate db-1 --to host-2 --max-pause 5s --at-limit force")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// Name or id of the node.
    #[arg(long, value_name = "NODE", add = complete::nodes())]
    to: Option<String>,
    /// Let its disks and other files come with it: for a machine on its node's own disks, or on a volume
    /// that the other node does not reach.
    #[arg(long)]
    with_storage: bool,
    /// The volume that they go to; without it, the other node's own disks.
    #[arg(long, value_name = "VOLUME", requires = "with_storage", add = complete::volumes())]
    volume: Option<String>,
    /// Only say whether it could be, and why not.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// How far a migration may go, this time.
#[derive(Debug, Default, clap::Args)]
struct PolicyArgs {
    /// Longest pause of a guest that changes its memory too quickly: 500ms, 2s.
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    max_pause: Option<u64>,
    /// Whether such a guest's processors may be slowed.
    #[arg(long, value_name = "on|off", value_parser = parse::switch)]
    throttle: Option<bool>,
    /// What to do when that pause is not enough.
    #[arg(long, value_name = "WHAT")]
    at_limit: Option<AtLimitWord>,
    /// Most that is sent in a second, memory and disks together: 100M; 0 is no limit.
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<Bytes>,
}

/// The same as a property of a machine.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Live migration")]
pub(crate) struct PolicyOfVm {
    /// Longest pause in a live migration, of a guest that changes its memory too quickly: 2s.
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    migrate_max_pause: Option<u64>,
    /// Whether such a guest's processors may be slowed.
    #[arg(long, value_name = "on|off", value_parser = parse::switch)]
    migrate_throttle: Option<bool>,
    /// What to do when that pause is not enough.
    #[arg(long, value_name = "WHAT")]
    migrate_at_limit: Option<AtLimitWord>,
    /// Most that its migrations send in a second, memory and disks together: 100M; 0 is no limit.
    #[arg(long, value_name = "SIZE")]
    migrate_bandwidth: Option<Bytes>,
}

/// What to do at the limit, as a word of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum AtLimitWord {
    /// Give up; it goes on where it is.
    Cancel,
    /// Let the guest stand until all of it is sent.
    Force,
    /// Save it, move it, resume it.
    Quick,
}

impl From<AtLimitWord> for AtLimit {
    fn from(word: AtLimitWord) -> Self {
        match word {
            AtLimitWord::Cancel => Self::Cancel,
            AtLimitWord::Force => Self::Force,
            AtLimitWord::Quick => Self::Quick,
        }
    }
}

impl PolicyOfVm {
    /// What is to change.
    pub(crate) fn change(&self) -> MigrateChange {
        MigrateChange {
            max_pause: self.migrate_max_pause.map(Millis::new),
            throttle: self.migrate_throttle,
            at_limit: self.migrate_at_limit.map(AtLimit::from),
            bandwidth: self.migrate_bandwidth,
        }
    }
}

/// What a migration has come to, for programs.
#[derive(Debug, Serialize)]
struct Ended<'a> {
    vm: &'a Name,
    from: &'a Name,
    to: &'a Name,
    #[serde(flatten)]
    report: MigrateReport,
    op: &'a OpView,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = VmMigrateBody {
        to: args.to,
        dry_run: args.dry_run,
        with_storage: args.with_storage,
        volume: args.volume,
        policy: MigrateChange {
            max_pause: args.policy.max_pause.map(Millis::new),
            throttle: args.policy.throttle,
            at_limit: args.policy.at_limit.map(AtLimit::from),
            bandwidth: args.policy.bandwidth,
        },
    };
    let begun = context.send::<VmMigrate>(&[&args.vm], &body).await?;
    let Some(op) = begun.value.op.clone() else {
        context.out.reply(&begun, |view| checks(context, view))?;
        return match begun.value.fits {
            true => Ok(()),
            false => Err(CliError::failed(
                format!("{} cannot be migrated to {} now", begun.value.vm, begun.value.to),
                "do what the list says, then try it again",
            )),
        };
    };
    if !context.wait {
        let id = op.id;
        return context.out.reply(&begun, |_| format!("{id}\nfollow it with: muster op wait {id}"));
    }
    let op = operation::end_of(context, Reply { raw: Vec::new(), value: op }).await?.value;
    let report = op.migration.clone().unwrap_or_default();
    let VmMigrateView { vm, from, to, .. } = &begun.value;
    if context.out.json {
        let ended = Ended { vm, from, to, report, op: &op };
        let raw = serde_json::to_vec(&ended)
            .map_err(|error| CliError::failed(format!("no JSON: {error}"), "report this"))?;
        return context.out.raw_json(&raw);
    }
    context.out.done(&words(vm, to, &report))
}

fn checks(context: &Context, view: &VmMigrateView) -> String {
    let title = format!("{} from {} to {}", view.vm, view.from, view.to);
    let mut text = check_list(context, &title, &view.checks);
    if let Some(predicted) = &view.predicted {
        text.push('\n');
        text.push_str(&expected(predicted));
    }
    text
}

/// What a migration is expected to take, in words.
pub(crate) fn expected(predicted: &MigrateForecast) -> String {
    let total = length(predicted.total_ms);
    let stands =
        format!("it would take about {total}, and stand for about {} ms", predicted.pause_ms);
    match predicted.converges {
        true => stands,
        false => format!(
            "{stands}; it changes {} MiB in a second, and the way carries {}",
            predicted.dirty_rate.as_mib(),
            predicted.bandwidth.as_mib()
        ),
    }
}

/// What was looked at before a move, below a title.
pub(super) fn check_list(context: &Context, title: &str, checks: &[CheckView]) -> String {
    let mut table = List::new(&context.out, &["LOOKED AT", "FITS", "FOUND", "WHAT TO DO"]);
    for check in checks {
        let (word, tone) = if check.ok { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
        table.row(vec![
            check.what.as_str().into(),
            Field::toned(word, tone),
            check.detail.as_str().into(),
            check.hint.as_str().into(),
        ]);
    }
    let mut text = format!("{title}\n");
    text.push_str(&table.render("nothing was looked at"));
    text
}

/// What it took, with what was expected beside it.
fn words(vm: &Name, to: &Name, report: &MigrateReport) -> String {
    let mut text = format!("{vm} runs on {to}");
    let Some(measured) = report.measured else { return text };
    // One that ran had at least one pass over its memory.
    if measured.passes == 0 {
        return files_words(vm, to, measured, report);
    }
    // Writing to a string does not fail.
    let _ = write!(text, ": it stood for {} ms", measured.pause_ms);
    if let Some(predicted) = report.predicted {
        let _ = write!(text, " (expected {})", predicted.pause_ms);
    }
    let _ = write!(text, ", {} in all", length(measured.total_ms));
    if let Some(predicted) = report.predicted {
        let _ = write!(text, " (expected {})", length(predicted.total_ms));
    }
    let _ = write!(text, ", {} passes, {} MiB", measured.passes, measured.bytes.as_mib());
    if measured.empty > Bytes::ZERO {
        let _ = write!(text, " ({} MiB more were empty)", measured.empty.as_mib());
    }
    if let Some(fallback) = &report.fallback {
        let _ = write!(text, "\n{fallback}; see: muster cluster network list");
    }
    text
}

/// The same of a machine that had no process, and went with its files.
fn files_words(vm: &Name, to: &Name, measured: MigrateResult, report: &MigrateReport) -> String {
    let took = length(measured.total_ms);
    let mut text = format!("{vm} is on {to} with its files: {took}");
    if let Some(predicted) = report.predicted {
        let _ = write!(text, " (expected {})", length(predicted.total_ms));
    }
    let _ = write!(text, ", {} MiB", measured.bytes.as_mib());
    if let Some(fallback) = &report.fallback {
        let _ = write!(text, "\n{fallback}; see: muster cluster network list");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_true_stands_beside_what_was_expected() {
        let (vm, to) = ("web-1".parse().unwrap(), "host-2".parse().unwrap());
        let measured = MigrateResult {
            total_ms: 1234,
            pause_ms: 43,
            passes: 3,
            bytes: Bytes::mib(102),
            empty: Bytes::mib(410),
            ..MigrateResult::default()
        };
        let predicted = MigrateForecast {
            total_ms: 1100,
            pause_ms: 50,
            bandwidth: Bytes::mib(100),
            dirty_rate: Bytes::ZERO,
            converges: true,
        };
        assert_eq!(expected(&predicted), "it would take about 1.1 s, and stand for about 50 ms");
        let busy = MigrateForecast { dirty_rate: Bytes::mib(300), converges: false, ..predicted };
        assert!(expected(&busy).ends_with("changes 300 MiB in a second, and the way carries 100"));
        let report =
            MigrateReport { predicted: Some(predicted), measured: Some(measured), fallback: None };
        assert_eq!(
            words(&vm, &to, &report),
            "web-1 runs on host-2: it stood for 43 ms (expected 50), 1.2 s in all (expected 1.1 \
             s), 3 passes, 102 MiB (410 MiB more were empty)"
        );
        assert_eq!(words(&vm, &to, &MigrateReport::default()), "web-1 runs on host-2");
        let still = MigrateResult { passes: 0, pause_ms: 0, ..measured };
        let report = MigrateReport { measured: Some(still), ..report };
        assert_eq!(
            words(&vm, &to, &report),
            "web-1 is on host-2 with its files: 1.2 s (expected 1.1 s), 102 MiB"
        );
    }
}
