//! `muster vm move`.

use api::endpoint::VmMove;
use api::ha::VmMoveBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Move a machine on a volume to another node, off or saved (quick migration).
///
/// A running machine is saved, given to the other node and resumed there: it stands still for that
/// time, and its guest goes on where it was; `muster vm migrate` moves it while it runs. Without `--to`, the best node is taken. The command
/// returns when the move has begun; `muster vm show` tells where the machine is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm move web-1 --to host-2
  muster vm move web-1
  muster vm move web-1 --stop")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// Name or id of the node.
    #[arg(long, value_name = "NODE", add = complete::nodes())]
    to: Option<String>,
    /// Stop a move that has not given the machine away yet.
    #[arg(long, conflicts_with = "to")]
    stop: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = VmMoveBody { to: args.to, stop: args.stop };
    let begun = context.send::<VmMove>(&[&args.vm], &body).await?;
    if context.out.json {
        return context.out.raw_json(&begun.raw);
    }
    let vm = &begun.value.vm;
    match &begun.value.to {
        Some(to) => context.out.done(&format!("{vm} moves to {to}; see: muster vm show {vm}")),
        None => context.out.done(&format!("{vm} stays where it is")),
    }
}
