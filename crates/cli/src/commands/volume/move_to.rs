//! `muster volume move`.

use api::endpoint::VolumeMove;
use api::volume::VolumeMoveBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Let another node coordinate a volume on a LUN.
///
/// Machines on it must be off: today only the coordinator reaches the files.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume move fast --to host-2")]
pub(crate) struct Args {
    /// Name or id of the volume.
    #[arg(value_name = "NAME", add = complete::volumes())]
    volume: String,
    /// The node.
    #[arg(long, value_name = "NODE", add = complete::nodes())]
    to: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = VolumeMoveBody { to: args.to.clone() };
    let volume = context.send::<VolumeMove>(&[&args.volume], &body).await?;
    if context.out.json {
        return context.out.raw_json(&volume.raw);
    }
    context.out.done(&format!("{} coordinates volume {}", args.to, volume.value.name))
}
