//! `muster cluster evict`.

use api::cluster::NodeEvictQuery;
use api::endpoint::NodeEvict;

use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Take a node out of the cluster, whether it answers or not.
///
/// Its certificate is worth nothing from then on. To come back, its host must be set up anew and
/// join with a new token. A node that still answers should leave by itself: muster cluster leave.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster evict host-3
  muster cluster evict host-3 --yes
  muster cluster evict host-3 --forget-vms")]
pub(crate) struct Args {
    /// Name or id of the node.
    #[arg(value_name = "NODE", add = complete::nodes())]
    node: String,
    /// Also if VMs lie on the node's own disks: the cluster forgets them. Only of a node that is
    /// fenced. Their files stay on those disks; where they are read again: muster vm register.
    #[arg(long)]
    forget_vms: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let (loss, unasked) = match args.forget_vms {
        false => ("can come back only as a new node", Unasked::Proceed),
        true => ("can come back only as a new node, and its VMs are forgotten", Unasked::Refuse),
    };
    confirm(context, args.yes, &format!("{} {loss}", args.node), unasked)?;
    let query = NodeEvictQuery { forget_vms: args.forget_vms };
    let reply = context.query::<NodeEvict>(&[&args.node], &query).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("{} is no longer a node of the cluster", args.node))
}
