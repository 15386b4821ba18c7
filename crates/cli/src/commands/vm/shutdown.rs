//! `muster vm shutdown`.

use api::endpoint::VmShutdown;
use api::types::ShutdownBody;

use crate::commands::each;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Ask the guest to shut down, and wait until it has.
///
/// The agent is asked where there is one, otherwise the power button is pressed. Nothing is lost;
/// with --then-off, a guest that does not obey in time loses what it has not written. Ctrl-C stops
/// waiting for the guest, which may shut down all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm shutdown web-1
  muster vm shutdown web-1 --patience 60 --then-off")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
    /// How long the guest may take, in seconds, 1 to 3600.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    patience: u64,
    /// Cut the power when that time is over.
    #[arg(long)]
    then_off: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = ShutdownBody { patience_s: args.patience, then_off: args.then_off };
    each(context, &args.names, async |name| context.send::<VmShutdown>(&[name], &body).await).await
}
