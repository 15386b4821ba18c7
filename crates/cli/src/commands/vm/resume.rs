//! `muster vm resume`.

use api::endpoint::Nothing;
use api::endpoint::VmResume;

use crate::commands::each;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Let a paused or saved guest go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm resume web-1")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    each(context, &args.names, async |name| context.send::<VmResume>(&[name], &Nothing {}).await)
        .await
}
