//! `muster volume delete`.

use api::endpoint::VolumeDelete;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Forget a volume that no machine and no image lies on.
///
/// The files of a share stay. The file system on a LUN is destroyed; to keep it: "muster volume release".
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume delete shared")]
pub(crate) struct Args {
    /// Name or id of the volume.
    #[arg(value_name = "NAME", add = complete::volumes())]
    volume: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<VolumeDelete>(&[&args.volume]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("volume {} is forgotten", args.volume))
}
