//! `muster volume maintenance`.

use api::endpoint::VolumeMaintenance;
use api::volume::VolumeMaintenanceBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Unmount a volume on a LUN everywhere, or mount it again.
///
/// Machines on it must be off. Nobody mounts it until maintenance is over.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume maintenance fast on
  muster volume check fast
  muster volume maintenance fast off")]
pub(crate) struct Args {
    /// Name or id of the volume.
    #[arg(value_name = "NAME", add = complete::volumes())]
    volume: String,
    /// Whether it begins or ends.
    #[arg(value_enum)]
    state: Switch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = VolumeMaintenanceBody { on: args.state == Switch::On };
    let volume = context.send::<VolumeMaintenance>(&[&args.volume], &body).await?;
    if context.out.json {
        return context.out.raw_json(&volume.raw);
    }
    let word = if body.on { "is mounted nowhere" } else { "can be used" };
    context.out.done(&format!("volume {} {word}", volume.value.name))
}
