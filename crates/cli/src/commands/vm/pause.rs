//! `muster vm pause`.

use api::endpoint::Nothing;
use api::endpoint::VmPause;

use crate::commands::each;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Stop the guest's processors; its memory stays on the host.
///
/// Nothing is lost unless the host goes down. To free the memory too, use `save`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm pause web-1")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    each(context, &args.names, async |name| context.send::<VmPause>(&[name], &Nothing {}).await)
        .await
}
