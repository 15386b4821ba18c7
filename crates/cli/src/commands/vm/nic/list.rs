//! `muster vm nic list`.

use api::endpoint::VmShow;

use crate::commands::vm::show;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// List the network adapters of a machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm nic list web-1")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let vm = context.get::<VmShow>(&[&args.vm]).await?;
    if context.out.json {
        return context.out.part(&vm.raw, "nics");
    }
    context.out.text(&show::nics(&context.out, &vm.value.nics))
}
