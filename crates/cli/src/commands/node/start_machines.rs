//! `muster node start-machines`.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use api::ErrorKind;
use api::endpoint::NodeSetMode;
use api::endpoint::Nothing;
use api::endpoint::VmStart;
use api::ha::NodeModeBody;
use api::model::NodeMode;

use crate::commands::node::remembered;
use crate::commands::node::remembered::Remembered;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Between two attempts while the cluster cannot decide.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Start the machines that ran when `muster node stop-machines` stopped them.
///
/// A node that was drained for it takes machines again first. A machine that was started, deleted or
/// moved elsewhere meanwhile is left alone. While there is no majority it is tried again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node start-machines
  muster node start-machines --no-wait")]
pub(crate) struct Args {
    /// How long a majority is waited for, in seconds, 1 to 3600.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    patience: u64,
    /// Where it was written which machines ran.
    #[arg(long, value_name = "FILE", default_value = remembered::DEFAULT)]
    list: PathBuf,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let until = Instant::now() + Duration::from_secs(args.patience);
    let remembered = Remembered::read(&args.list)?;
    if remembered == Remembered::default() {
        return Ok(());
    }
    let node = persist(until, async || remembered::node_here(context).await).await?;
    if remembered.drained && node.mode == NodeMode::Drain {
        let body = NodeModeBody { mode: NodeMode::Active, with_storage: false };
        let here = node.id.to_string();
        persist(until, async || context.send::<NodeSetMode>(&[&here], &body).await).await?;
    }
    let here = persist(until, async || remembered::machines_of(context, &node).await).await?;
    let here: Vec<_> = here.into_iter().map(|vm| vm.id.to_string()).collect();
    let mut ops = Vec::new();
    for id in remembered.machines.iter().filter(|id| here.contains(id)) {
        let begun =
            persist(until, async || context.send::<VmStart>(&[id], &Nothing {}).await).await;
        match begun {
            Ok(op) => ops.push(op),
            // It runs, or is gone.
            Err(error)
                if matches!(error.error().kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
            // The file stays, for another attempt.
            Err(error) => return Err(error),
        }
    }
    Remembered::forget(&args.list)?;
    let mut result = Ok(());
    for op in ops {
        result = result.and(operation::finish(context, op).await);
    }
    result
}

/// Asks again while the cluster cannot decide.
async fn persist<T>(
    until: Instant,
    ask: impl AsyncFn() -> Result<T, CliError>,
) -> Result<T, CliError> {
    loop {
        match ask().await {
            Err(error)
                if error.error().kind == ErrorKind::Unavailable && Instant::now() < until =>
            {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            answer => return answer,
        }
    }
}
