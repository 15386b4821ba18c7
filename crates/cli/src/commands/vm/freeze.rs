//! `muster vm freeze`.

use api::endpoint::Nothing;
use api::endpoint::VmFreeze;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Freeze the guest's file systems, for a consistent copy made by other means.
///
/// They thaw by themselves after ten seconds, so that a forgotten freeze does not stop the guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm freeze web-1
  muster vm thaw web-1")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let frozen = context.send::<VmFreeze>(&[&args.vm], &Nothing {}).await?;
    if context.out.json {
        return context.out.raw_json(&frozen.raw);
    }
    let count = frozen.value.filesystems;
    context.out.done(&format!("{count} file systems are frozen, for at most ten seconds"))
}
