//! `muster volume create`.

use api::endpoint::VolumeCreate;
use api::model::FsKind;
use api::model::LunId;
use api::model::Name;
use api::types::VolumeCreateBody;
use api::volume::VolumeSource;

use crate::context::Context;
use crate::error::CliError;

/// Make a volume: of a directory that every node mounts, or of a LUN that every node has a path to.
///
/// A share's directory must be there, and the same on every node at the same path: an NFS mount, for
/// example. A file in it marks it, so that a node on which it is not mounted says so instead of
/// starting machines on an empty directory. Machines on a volume are started on another node when
/// theirs is lost.
///
/// A LUN must be empty; see "muster disk list". The node that is asked makes the file system, mounts it at
/// /muster/volumes/NAME, and coordinates it from there on. To keep the file system that a LUN has:
/// "muster volume adopt".
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume create shared --share /srv/muster
  muster volume create fast --lun naa.600140512345678 --fs xfs
  muster vm create web-1 --image debian --volume shared --start")]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// The directory, the same path on every node.
    #[arg(long, value_name = "PATH", required_unless_present = "lun", conflicts_with = "lun")]
    share: Option<String>,
    /// The LUN.
    #[arg(long, value_name = "ID")]
    lun: Option<LunId>,
    /// The file system to make on the LUN: xfs (the default) or ext4.
    #[arg(long, value_name = "FS", requires = "lun")]
    fs: Option<FsKind>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let kind = match (args.lun, args.share) {
        (Some(lun), _) => VolumeSource::Lun { lun, fs: args.fs, adopt: false },
        (None, path) => VolumeSource::Share { path: path.unwrap_or_default() },
    };
    let volume =
        context.send::<VolumeCreate>(&[], &VolumeCreateBody { name: args.name, kind }).await?;
    if context.out.json {
        return context.out.raw_json(&volume.raw);
    }
    context.out.done(&format!("volume {} can be used", volume.value.name))
}
