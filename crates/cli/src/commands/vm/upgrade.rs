//! `muster vm upgrade`.

use api::endpoint::Nothing;
use api::endpoint::VmShow;
use api::endpoint::VmUpgrade;

use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Give a machine that is off the newest machine type that all nodes know.
///
/// There is no way back: the guest sees other hardware at its next start (some guests ask for a new
/// activation), and the machine cannot go to hosts with an older QEMU any more. Nothing but this verb
/// ever changes a machine's type. `muster cluster cpu` shows what it would become.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm upgrade web-1
  muster vm upgrade web-1 --yes")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let old = context.get::<VmShow>(&[&args.vm]).await?.value;
    let lost = format!(
        "{} leaves {} for good: its guest sees other hardware, and hosts with an older QEMU cannot \
         run it any more",
        old.name, old.pinned.machine_type
    );
    confirm(context, args.yes, &lost, Unasked::Refuse)?;
    let vm = context.send::<VmUpgrade>(&[&args.vm], &Nothing {}).await?;
    if context.out.json {
        return context.out.raw_json(&vm.raw);
    }
    let new = &vm.value.pinned.machine_type;
    context.out.done(&format!("{} has {new} from its next start on", vm.value.name))
}
