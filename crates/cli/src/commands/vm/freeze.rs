//! `muster vm freeze`.

use api::endpoint::VmFreeze;
use api::types::FreezeBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Freeze the guest's file systems, for a consistent copy made by other means.
///
/// They thaw by themselves when the limit is over, so that a forgotten freeze does not stop the
/// guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm freeze web-1 --limit 5
  muster vm thaw web-1")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// When they thaw by themselves, in seconds, 1 to 10.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=10)
    )]
    limit: u64,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = FreezeBody { limit_s: args.limit };
    let frozen = context.send::<VmFreeze>(&[&args.vm], &body).await?;
    if context.out.json {
        return context.out.raw_json(&frozen.raw);
    }
    let count = frozen.value.filesystems;
    context.out.done(&format!("{count} file systems are frozen, for at most {} s", args.limit))
}
