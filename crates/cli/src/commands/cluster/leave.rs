//! `muster cluster leave`.

use api::cluster::ClusterLeaveBody;
use api::endpoint::ClusterLeave;

use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Take this host out of its cluster; it begins anew as a host by itself.
///
/// The host must have no VMs. What the cluster knows (networks, tokens, images) stays with the
/// cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster leave
  muster cluster leave --force --yes")]
pub(crate) struct Args {
    /// Forget the cluster without asking it: for a host that was evicted, or whose cluster is lost.
    #[arg(long)]
    force: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let (loss, unasked) = match args.force {
        true => ("this host forgets the cluster and all that it knows of it", Unasked::Refuse),
        false => ("this host is no longer a node of the cluster", Unasked::Proceed),
    };
    confirm(context, args.yes, loss, unasked)?;
    let body = ClusterLeaveBody { force: args.force };
    let reply = context.send::<ClusterLeave>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done("this host has left the cluster; its daemon starts anew")
}
