//! `muster cluster validate`.

mod html;
mod text;

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use api::endpoint::ClusterValidate;
use api::endpoint::Nothing;
use api::endpoint::ValidationShow;
use api::types::ProgressView;
use api::validate::Check;
use api::validate::ValidateBody;
use api::validate::ValidationReport;
use api::validate::ValidationView;

use crate::commands::cluster::join::read_token;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;

/// Between two looks at how far it is.
const POLL: Duration = Duration::from_millis(250);

/// See whether the hosts of the cluster fit together and can be relied on.
///
/// Compares processors, versions, clocks and memory, measures networks and disks, and asks fence
/// devices and the witness. Nothing is changed and nothing is switched off; machines may run
/// meanwhile. What each check means: docs/operate/validate.md.
///
/// Exit code: 0 if nothing failed (warnings stop nothing), 1 if something did.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster validate
  muster cluster validate --check mtu --check latency --node n3
  muster cluster validate -o report.html
  muster cluster validate --join-token mjt_...
  muster cluster validate --last --json | jq '.findings[] | select(.verdict == \"fail\")'")]
pub(crate) struct Args {
    /// Only this check; may be given several times. nodes, clock, cpu, versions, memory, networks,
    /// latency, mtu, disks, volumes, fencing, witness.
    #[arg(long, value_name = "NAME")]
    check: Vec<Check>,
    /// Only what is found of this node, and of all together; may be given several times.
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// Write the report to a file; its name ends in .txt, .json or .html.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compare this host, which is no node yet, with the cluster of this join token (`muster cluster
    /// token` there; `-` reads it from standard input); it is not used up.
    #[arg(long, value_name = "TOKEN", conflicts_with = "last")]
    join_token: Option<String>,
    /// Show the last report of the node that is asked, and validate nothing.
    #[arg(long, conflicts_with_all = ["check", "node"])]
    last: bool,
}

/// In which form a report is written.
#[derive(Debug, Clone, Copy)]
enum Form {
    Text,
    Json,
    Html,
}

impl Form {
    /// By the end of a file's name.
    fn of(file: &Path) -> Result<Self, CliError> {
        match file.extension().and_then(|end| end.to_str()) {
            Some("txt") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some("html" | "htm") => Ok(Self::Html),
            _ => Err(CliError::usage(
                format!("in which form {} shall be written is not known", file.display()),
                "end its name in .txt, .json or .html",
            )),
        }
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    // Before minutes are spent on it.
    let form = args.output.as_deref().map(Form::of).transpose()?;
    let view = if args.last {
        context.get::<ValidationShow>(&[]).await?
    } else {
        let body = ValidateBody {
            checks: args.check,
            nodes: args.node,
            join_token: args.join_token.map(read_token).transpose()?,
        };
        let begun = context.call::<ClusterValidate>(&[], &Nothing {}, &body).await?;
        if !context.wait {
            let said = "begun\nsee its report with: muster cluster validate --last";
            return context.out.reply(&begun, |_| said.to_owned());
        }
        follow(context, begun).await?
    };
    let Some(report) = view.value.report else {
        return Err(CliError::failed(
            "this node has validated nothing yet",
            "let it do so: muster cluster validate",
        ));
    };
    let raw: serde_json::Value = serde_json::from_slice(&view.raw).unwrap_or_default();
    let json = raw["report"].to_string();
    if let (Some(file), Some(form)) = (&args.output, form) {
        let text = match form {
            Form::Text => text::render(&Output::plain(), &report) + "\n",
            Form::Json => json.clone() + "\n",
            Form::Html => html::render(&report),
        };
        std::fs::write(file, text).map_err(|error| {
            let hint =
                "name another file with -o; the report is kept: muster cluster validate --last";
            CliError::failed(format!("cannot write {}: {error}", file.display()), hint)
        })?;
    }
    match (&args.output, context.out.json) {
        (_, true) => context.out.raw_json(json.as_bytes())?,
        (Some(file), false) => {
            let said = format!("{}\n{} written", text::summary(&report), file.display());
            context.out.done(&said)?;
        }
        (None, false) => context.out.text(&text::render(&context.out, &report))?,
    }
    outcome(&report)
}

/// Waits for the end of a validation that was begun.
async fn follow(
    context: &Context,
    begun: Reply<ValidationView>,
) -> Result<Reply<ValidationView>, CliError> {
    let Some(started) = begun.value.running.as_ref().map(|running| running.started) else {
        return Ok(begun);
    };
    let mut progress = Progress::new(&context.out, "validating");
    loop {
        let view = context.get::<ValidationShow>(&[]).await?;
        match &view.value.running {
            Some(running) if running.started == started => {
                progress.show(Some(&ProgressView {
                    step: running.step.clone(),
                    done: u64::from(running.done),
                    total: u64::from(running.total),
                }));
            }
            _ => {
                progress.finish();
                let ours = view.value.report.as_ref().map(|report| report.started) == Some(started);
                return if ours { Ok(view) } else { Err(lost()) };
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn lost() -> CliError {
    CliError::failed(
        "the validation ended without a report: the daemon started anew, or its disk is full",
        "try again: muster cluster validate; see also: journalctl -u muster",
    )
}

fn outcome(report: &ValidationReport) -> Result<(), CliError> {
    match report.failed {
        0 => Ok(()),
        failed => Err(CliError::failed(
            format!("{failed} of {} findings are failures", report.findings.len()),
            "do what stands below each of them, then validate again",
        )),
    }
}
