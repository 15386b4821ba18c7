//! `muster vm thaw`.

use api::endpoint::Nothing;
use api::endpoint::VmThaw;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Thaw the guest's file systems.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm thaw web-1")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let thawed = context.send::<VmThaw>(&[&args.vm], &Nothing {}).await?;
    if context.out.json {
        return context.out.raw_json(&thawed.raw);
    }
    context.out.done(&format!("{} file systems are thawed", thawed.value.filesystems))
}
