//! `muster volume adopt`.

use api::endpoint::VolumeCreate;
use api::model::LunId;
use api::model::Name;
use api::types::VolumeCreateBody;
use api::volume::VolumeSource;

use crate::context::Context;
use crate::error::CliError;

/// Make a volume of the XFS or ext4 that a LUN has, with all its files.
///
/// Nothing is copied or formatted. It must not be mounted anywhere; the node that is asked mounts it at
/// /muster/volumes/NAME, and coordinates it from there on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster disk list
  muster volume adopt archive --lun naa.600140512345678")]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// The LUN.
    #[arg(long, value_name = "ID")]
    lun: LunId,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let kind = VolumeSource::Lun { lun: args.lun, fs: None, adopt: true };
    let volume =
        context.send::<VolumeCreate>(&[], &VolumeCreateBody { name: args.name, kind }).await?;
    if context.out.json {
        return context.out.raw_json(&volume.raw);
    }
    context.out.done(&format!("volume {} can be used, with what was on it", volume.value.name))
}
