//! `muster cluster witness remove`.

use api::endpoint::WitnessRemove;

use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Take the witness out of the voters, and then away.
///
/// Refused while the nodes that answer need its vote. To move a witness, or after its record was
/// lost, remove it and set it anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster witness remove
  muster cluster witness remove --yes")]
pub(crate) struct Args {
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = "without a witness, two nodes need each other to change anything";
    confirm(context, args.yes, loss, Unasked::Proceed)?;
    let reply = context.get::<WitnessRemove>(&[]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done("the witness is being taken out of the voters; see: muster cluster status")
}
