//! `muster vm disk remove`.

use api::endpoint::DiskRemove;

use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Remove a disk and its data for good.
///
/// While the machine runs, the guest must release it; one that does not is told, and the disk
/// stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm disk remove web-1 data
  muster vm disk remove web-1 data --yes")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Name or id of the disk.
    #[arg(value_name = "DISK", add = complete::disks())]
    disk: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = format!("this removes disk {} of {} and its data for good", args.disk, args.vm);
    confirm(context, args.yes, &loss, Unasked::Refuse)?;
    let op = context.get::<DiskRemove>(&[&args.vm, &args.disk]).await?;
    operation::finish(context, op).await
}
