//! `muster vm nic remove`.

use api::endpoint::NicRemove;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Remove a network adapter; also while the machine runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm nic remove web-1 net1")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Name or id of the adapter.
    #[arg(value_name = "NIC", add = complete::nics())]
    nic: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let op = context.get::<NicRemove>(&[&args.vm, &args.nic]).await?;
    operation::finish(context, op).await
}
