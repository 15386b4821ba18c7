//! `muster vm off`.

use api::endpoint::Nothing;
use api::endpoint::VmOff;

use crate::commands::each;
use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Cut the power; unwritten data in the guest is lost.
///
/// A saved memory is thrown away too. To let the guest write its data first, use `shutdown`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm off web-1
  muster vm off web-1 --yes")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = format!(
        "this cuts the power of {}: data that the guest has not written is lost",
        args.names.join(", ")
    );
    confirm(context, args.yes, &loss, Unasked::Proceed)?;
    each(context, &args.names, async |name| context.send::<VmOff>(&[name], &Nothing {}).await).await
}
