//! `muster volume create`.

use api::endpoint::VolumeCreate;
use api::model::Name;
use api::model::VolumeKind;
use api::types::VolumeCreateBody;

use crate::context::Context;
use crate::error::CliError;

/// Make a directory that every node mounts known as a volume.
///
/// The directory must be there, and the same on every node at the same path: an NFS mount, for
/// example. A file in it marks it, so that a node on which it is not mounted says so instead of
/// starting machines on an empty directory. Machines on a volume are started on another node when
/// theirs is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume create shared --share /srv/muster
  muster vm create web-1 --image debian --volume shared --start")]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// The directory, the same path on every node.
    #[arg(long, value_name = "PATH")]
    share: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let kind = VolumeKind::Share { path: args.share };
    let volume =
        context.send::<VolumeCreate>(&[], &VolumeCreateBody { name: args.name, kind }).await?;
    if context.out.json {
        return context.out.raw_json(&volume.raw);
    }
    context.out.done(&format!("volume {} can be used", volume.value.name))
}
