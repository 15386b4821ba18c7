//! `muster vm disk add`.

use api::endpoint::DiskAdd;
use api::model::Bytes;
use api::model::DiskFormat;
use api::model::Name;
use api::types::DiskAddBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Add a disk, blank or a thin copy of an image; also while the machine runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm disk add web-1 --size 20G
  muster vm disk add web-1 --size 20G --name data
  muster vm disk add web-1 --image tools --read-only")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Its size; the image's size if left out.
    #[arg(long, required_unless_present = "image")]
    size: Option<Bytes>,
    /// Its name; disk0, disk1... if left out.
    #[arg(long)]
    name: Option<Name>,
    /// Image that it is a thin copy of; blank if left out.
    #[arg(long, add = complete::images())]
    image: Option<String>,
    /// A plain file instead of qcow2: takes all its space as it is written, no thin copy.
    #[arg(long, conflicts_with = "image")]
    raw: bool,
    /// The guest cannot write to it.
    #[arg(long)]
    read_only: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = DiskAddBody {
        name: args.name,
        size: args.size,
        image: args.image,
        format: if args.raw { DiskFormat::Raw } else { DiskFormat::Qcow2 },
        read_only: args.read_only,
    };
    let op = context.send::<DiskAdd>(&[&args.vm], &body).await?;
    operation::finish(context, op).await
}
