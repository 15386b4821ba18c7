//! `muster volume check`.

use api::endpoint::VolumeCheck;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Check the file system of a volume on a LUN that is in maintenance; changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume check fast")]
pub(crate) struct Args {
    /// Name or id of the volume.
    #[arg(value_name = "NAME", add = complete::volumes())]
    volume: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<VolumeCheck>(&[&args.volume]).await?;
    let found = &reply.value;
    if context.out.json {
        context.out.raw_json(&reply.raw)?;
    } else {
        context.out.text(&found.said)?;
    }
    if !found.clean {
        return Err(CliError::failed(
            format!("the file system of volume {} is damaged", args.volume),
            "repair it by hand on one node while the maintenance lasts: e2fsck, or xfs_repair",
        ));
    }
    if context.out.json {
        return Ok(());
    }
    context.out.done(&format!("the file system of volume {} is clean", args.volume))
}
