//! `muster vm thaw`.

use api::endpoint::Nothing;
use api::endpoint::VmThaw;
use api::types::ConsistencyView;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Thaw the guest's file systems, and tell how good a copy is that was made meanwhile.
///
/// Where they had thawed by themselves before, such a copy is only as good as after a power cut.
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
    let good = match thawed.value.consistency {
        Some(ConsistencyView::Filesystem) => "a copy made meanwhile is consistent",
        _ => "a copy made meanwhile is as good as after a power cut",
    };
    context.out.done(&format!("thawed; {good}"))
}
