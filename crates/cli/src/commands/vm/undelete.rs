//! `muster vm undelete`.

use api::endpoint::VmUndelete;
use api::model::Name;
use api::types::UndeleteBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Take a machine out of the recycle bin.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm undelete web-1
  muster vm undelete web-1 --name web-1-old")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::deleted_vms())]
    vm: String,
    /// A new name, where the old one is in use.
    #[arg(long)]
    name: Option<Name>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = UndeleteBody { name: args.name };
    let vm = context.send::<VmUndelete>(&[&args.vm], &body).await?;
    if context.out.json {
        return context.out.raw_json(&vm.raw);
    }
    context.out.done(&format!("{} is back, and off", vm.value.name))
}
