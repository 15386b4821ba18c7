//! `muster vm reset`.

use api::endpoint::Nothing;
use api::endpoint::VmReset;

use crate::commands::each;
use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Press the reset button; unwritten data in the guest is lost.
///
/// The process stays, so changes that need a new start do not take effect.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm reset web-1
  muster vm reset web-1 --yes")]
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
        "this resets {}: data that the guest has not written is lost",
        args.names.join(", ")
    );
    confirm(context, args.yes, &loss, Unasked::Proceed)?;
    each(context, &args.names, async |name| context.send::<VmReset>(&[name], &Nothing {}).await)
        .await
}
