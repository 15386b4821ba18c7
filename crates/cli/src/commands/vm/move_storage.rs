//! `muster vm move-storage`.

use api::endpoint::VmMoveStorage;
use api::migrate::VmMoveStorageBody;
use api::migrate::VmMoveStorageView;
use api::model::Name;

use super::migrate::check_list;
use crate::complete;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::operation;

/// Move a machine with all its disks to another volume, while it runs if it runs.
///
/// Its guest works all the time, and stands for some milliseconds at the end, when the cluster decides
/// that the new volume is the machine's. Until then it goes on with its old disks if anything fails;
/// Ctrl-C stops the move and changes nothing. The old disks are removed last. A machine that is off or
/// saved moves in the same way, with its saved memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm move-storage web-1 --to fast
  muster vm move-storage web-1 --to fast --dry-run
  muster vm move-storage web-1 --local")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// Name or id of the volume.
    #[arg(long, value_name = "VOLUME", required_unless_present = "local", add = complete::volumes())]
    to: Option<String>,
    /// To the own disks of the node that it is on: it stays with that node then.
    #[arg(long, conflicts_with = "to")]
    local: bool,
    /// Only say whether it could be, and why not.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = VmMoveStorageBody { to: args.to, dry_run: args.dry_run };
    let begun = context.send::<VmMoveStorage>(&[&args.vm], &body).await?;
    let VmMoveStorageView { vm, from, to, checks, fits, op } = &begun.value;
    let Some(op) = op.clone() else {
        context.out.reply(&begun, |_| {
            let title = format!("{vm} from {} to {}", place(from.as_ref()), place(to.as_ref()));
            check_list(context, &title, checks)
        })?;
        return match fits {
            true => Ok(()),
            false => Err(CliError::failed(
                format!("{vm} cannot be moved to {} now", place(to.as_ref())),
                "do what the list says, then try it again",
            )),
        };
    };
    if !context.wait {
        let id = op.id;
        return context.out.reply(&begun, |_| format!("{id}\nfollow it with: muster op wait {id}"));
    }
    let ended = operation::end_of(context, Reply { raw: Vec::new(), value: op }).await?;
    if context.out.json {
        let raw = serde_json::to_vec(&VmMoveStorageView { op: Some(ended.value), ..begun.value })
            .map_err(|error| CliError::failed(format!("no JSON: {error}"), "report this"))?;
        return context.out.raw_json(&raw);
    }
    context.out.done(&format!("{vm} lies on {} now", place(to.as_ref())))
}

/// A place in words.
fn place(volume: Option<&Name>) -> String {
    match volume {
        Some(volume) => format!("volume {volume}"),
        None => "the disks of its node".to_owned(),
    }
}
