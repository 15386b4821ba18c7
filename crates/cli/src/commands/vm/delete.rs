//! `muster vm delete`.

use api::endpoint::Nothing;
use api::endpoint::VmDelete;
use api::endpoint::VmList;
use api::endpoint::VmShow;
use api::types::OpView;
use api::types::Phase;
use api::types::VmDeleteQuery;
use api::types::VmListQuery;

use crate::commands::each;
use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::operation;

/// Put a machine in the recycle bin; --purge removes it and its disks for good.
///
/// A machine in the recycle bin keeps its disks and comes back with `undelete`. The machine must be
/// off.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm delete web-1
  muster vm undelete web-1
  muster vm delete web-1 --purge --yes")]
pub(crate) struct Args {
    /// Names or ids of the machines.
    #[arg(value_name = "NAME", required = true, add = complete::vms())]
    names: Vec<String>,
    /// Remove it with its disks for good, whether it is in the recycle bin or not.
    #[arg(long)]
    purge: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.purge {
        let names = args.names.join(", ");
        let loss = format!("this removes {names} and all disks for good");
        confirm(context, args.yes, &loss, Unasked::Refuse)?;
    }
    each(context, &args.names, async |name| {
        if args.purge { purge(context, name).await } else { bin(context, name, false).await }
    })
    .await
}

async fn bin(context: &Context, name: &str, purge: bool) -> Result<Reply<OpView>, CliError> {
    context.call::<VmDelete>(&[name], &VmDeleteQuery { purge }, &Nothing {}).await
}

/// What the name stands for is looked up first, so that the id of exactly that machine is purged:
/// between the two steps, another one could take the name.
async fn purge(context: &Context, name: &str) -> Result<Reply<OpView>, CliError> {
    let (id, deleted) = match context.get::<VmShow>(&[name]).await {
        Ok(vm) => (vm.value.id, vm.value.phase == Phase::Deleted),
        Err(error) if error.exit_code() == 3 => {
            let query = VmListQuery { deleted: true, tag: None };
            let vms = context.query::<VmList>(&[], &query).await?.value;
            let mut named = vms.iter().filter(|vm| vm.name.key() == name.to_ascii_lowercase());
            match (named.next(), named.next()) {
                (Some(vm), None) => (vm.id, true),
                (Some(_), Some(_)) => {
                    return Err(CliError::usage(
                        format!("more than one machine in the recycle bin is called {name}"),
                        "give the id: muster vm list --deleted --json",
                    ));
                }
                (None, _) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let id = id.to_string();
    if !deleted {
        let op = bin(context, &id, false).await?;
        operation::step(context, op).await?;
    }
    bin(context, &id, true).await
}
