//! `muster vm register`.

use std::path::PathBuf;

use api::endpoint::VmRegister;
use api::model::Name;
use api::types::VmRegisterBody;

use crate::context::Context;
use crate::error::CliError;

/// Take a machine in again from its directory, after the cluster's database was lost.
///
/// The directory is one of the node's own, such as /var/lib/muster/vms/ID. Its disks are used as
/// they are. A memory that was saved is used if it still fits them; otherwise the guest starts as
/// after a power cut.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm register /var/lib/muster/vms/0191f6a0-7c1e-7d2a-8f00-0123456789ab
  muster vm register /var/lib/muster/vms/0191f6a0-7c1e-7d2a-8f00-0123456789ab --name web-1-old")]
pub(crate) struct Args {
    /// Its directory on the node.
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// A new name, where the old one is in use.
    #[arg(long)]
    name: Option<Name>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let dir = std::path::absolute(&args.dir).ok().and_then(|dir| dir.to_str().map(str::to_owned));
    let Some(dir) = dir else {
        let what = format!("'{}' is not a path in plain text", args.dir.display());
        return Err(CliError::usage(what, "name the directory as `ls /var/lib/muster/vms` does"));
    };
    let body = VmRegisterBody { dir, name: args.name };
    let vm = context.send::<VmRegister>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&vm.raw);
    }
    let text = format!(
        "{} is registered again, and {}",
        vm.value.name,
        crate::output::word(&vm.value.phase)
    );
    context.out.done(&text)
}
