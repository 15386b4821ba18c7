//! `muster node stop-machines`.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use api::endpoint::ClusterShow;
use api::endpoint::Nothing;
use api::endpoint::VmSave;
use api::endpoint::VmShutdown;
use api::model::NodeMode;
use api::types::Phase;
use api::types::ShutdownBody;
use api::types::VmSummary;

use crate::commands::each;
use crate::commands::node::drain;
use crate::commands::node::remembered;
use crate::commands::node::remembered::Remembered;
use crate::context::Context;
use crate::error::CliError;

/// How guests are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// They are asked to shut down, and turned off when their time is over.
    Shutdown,
    /// Their memory is written to disk.
    Save,
}

/// Stop all machines of the node that is asked, as before its host is switched off.
///
/// muster-guests.service calls it at the shutdown of a host, and `muster node start-machines` at its
/// start. In a cluster the node is drained first: machines on a volume move to other nodes. Guests
/// that are left are asked to shut down, all at once; one that does not obey in time is turned off.
/// Which machines ran is written to a file. Paused ones are saved, and stay so.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node stop-machines
  muster node stop-machines --by save
  muster node stop-machines --stay
  muster node stop-machines --patience 300")]
pub(crate) struct Args {
    /// What is done with running guests.
    #[arg(long, value_enum, default_value_t = By::Shutdown, env = "MUSTER_STOP_BY", hide_env_values = true)]
    by: By,
    /// How long a drain may take, and then how long guests may take to shut down, in seconds, 1 to
    /// 3600.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        env = "MUSTER_STOP_PATIENCE",
        hide_env_values = true,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    patience: u64,
    /// Where it is written which machines ran.
    #[arg(long, value_name = "FILE", default_value = remembered::DEFAULT)]
    list: PathBuf,
    /// Move none to other nodes, as where the whole cluster is switched off.
    #[arg(long, env = "MUSTER_STOP_STAY", hide_env_values = true)]
    stay: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let node = remembered::node_here(context).await?;
    let (running, _) = stopped(remembered::machines_of(context, &node).await?);
    let others = context.get::<ClusterShow>(&[]).await?.value.nodes.len() > 1;
    let drains = others && !args.stay && node.mode == NodeMode::Active;
    // Before the first one stops: what is cut short here is started again there.
    Remembered::add(&args.list, &running, drains)?;
    if others && !args.stay {
        let deadline = Instant::now() + Duration::from_secs(args.patience);
        // What cannot go is stopped all the same: its host goes.
        if let Err(error) = drain::empty(context, &node.id.to_string(), false, Some(deadline)).await
        {
            if error.exit_code() == 130 {
                return Err(error);
            }
            context.out.error(&error);
        }
    }
    let (running, paused) = stopped(remembered::machines_of(context, &node).await?);
    let saved = if args.by == By::Save { [&*paused, &*running].concat() } else { paused };
    let save = async |id: &str| context.send::<VmSave>(&[id], &Nothing {}).await;
    let result = each(context, &saved, save).await;
    if args.by == By::Save && result.is_ok() {
        return Ok(());
    }
    // What could not be saved is shut down.
    let (left, _) = stopped(remembered::machines_of(context, &node).await?);
    let body = ShutdownBody { patience_s: args.patience, then_off: true };
    let ask = async |id: &str| context.send::<VmShutdown>(&[id], &body).await;
    each(context, &left, ask).await?;
    result
}

/// Ids of the machines that run, and of those that stand.
fn stopped(vms: Vec<VmSummary>) -> (Vec<String>, Vec<String>) {
    let ids = |phases: &[Phase]| {
        let those = vms.iter().filter(|vm| phases.contains(&vm.phase));
        those.map(|vm| vm.id.to_string()).collect()
    };
    (ids(&[Phase::Running, Phase::Starting, Phase::Hung]), ids(&[Phase::Paused]))
}
