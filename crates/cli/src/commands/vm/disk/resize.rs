//! `muster vm disk resize`.

use api::endpoint::DiskResize;
use api::model::Bytes;
use api::types::DiskResizeBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Grow a disk; also while the machine runs.
///
/// Partitions and file systems in the guest are the guest's to grow. A disk cannot shrink.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm disk resize web-1 data 40G")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Name or id of the disk.
    #[arg(value_name = "DISK", add = complete::disks())]
    disk: String,
    /// Its new size, more than it has.
    size: Bytes,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = DiskResizeBody { size: args.size };
    let op = context.send::<DiskResize>(&[&args.vm, &args.disk], &body).await?;
    operation::finish(context, op).await
}
