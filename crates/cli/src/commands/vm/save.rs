//! `muster vm save`.

use api::endpoint::Nothing;
use api::endpoint::VmSave;

use crate::commands::each;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Write memory and devices to disk and free the host's memory.
///
/// `start` or `resume` brings the guest back where it was. Nothing is lost. Ctrl-C stops it, and the
/// guest goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm save web-1")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    each(context, &args.names, async |name| context.send::<VmSave>(&[name], &Nothing {}).await)
        .await
}
