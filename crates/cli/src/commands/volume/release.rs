//! `muster volume release`.

use api::endpoint::VolumeRelease;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Take a volume off its LUN, which is an ordinary disk then, with all its files.
///
/// No machine and no image may lie on it. Any Linux machine can mount it afterwards; "muster volume adopt"
/// takes it back.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume release fast")]
pub(crate) struct Args {
    /// Name or id of the volume.
    #[arg(value_name = "NAME", add = complete::volumes())]
    volume: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<VolumeRelease>(&[&args.volume]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("volume {} is off its LUN; its files stay there", args.volume))
}
