//! `muster vm list`.

use api::endpoint::VmList;
use api::types::VmListQuery;
use api::types::VmSummary;

use crate::commands::vm::heartbeat_tone;
use crate::commands::vm::phase_tone;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::word;

/// List machines.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm list
  muster vm list --tag web
  muster vm list --json | jq -r '.[].name'")]
pub(crate) struct Args {
    /// Those in the recycle bin instead of the others.
    #[arg(long)]
    deleted: bool,
    /// Only those with this tag.
    #[arg(long)]
    tag: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let query = VmListQuery { deleted: args.deleted, tag: args.tag };
    let vms = context.query::<VmList>(&[], &query).await?;
    context.out.reply(&vms, |vms| render(&context.out, vms, query.deleted))
}

/// The list as text.
pub(crate) fn render(out: &Output, vms: &[VmSummary], deleted: bool) -> String {
    let header = ["NAME", "PHASE", "HEARTBEAT", "CPUS", "CPU", "MEMORY", "ADDRESS", "NODE", "TAGS"];
    let mut list = List::new(out, &header);
    for vm in vms {
        let phase = match vm.busy {
            Some(verb) => format!("{} ({verb})", word(&vm.phase)),
            None => word(&vm.phase),
        };
        let tags: Vec<_> = vm.tags.iter().map(ToString::to_string).collect();
        list.row(vec![
            Field::from(&vm.name),
            Field::toned(phase, phase_tone(vm.phase)),
            Field::toned(word(&vm.heartbeat), heartbeat_tone(vm.heartbeat)),
            Field::from(vm.cpus),
            Field::from(format!("{} %", vm.cpu_percent)),
            Field::from(vm.memory),
            Field::from(vm.addresses.first().cloned().unwrap_or_default()),
            Field::from(&vm.node),
            Field::from(tags.join(",")),
        ]);
    }
    list.render(if deleted {
        "the recycle bin is empty"
    } else {
        "no machines; make one with: muster vm create NAME --image IMAGE"
    })
}
