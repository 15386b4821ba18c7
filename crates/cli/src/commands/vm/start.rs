//! `muster vm start`.

use api::endpoint::Nothing;
use api::endpoint::VmStart;

use crate::commands::each;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Start a machine that is off, or resume one that is saved.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm start web-1
  muster vm start web-1 web-2 web-3")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    each(context, &args.names, async |name| context.send::<VmStart>(&[name], &Nothing {}).await)
        .await
}
