//! `muster cluster force-quorum`.

use std::time::Duration;
use std::time::Instant;

use api::cluster::ClusterForceBody;
use api::cluster::ClusterNodeView;
use api::cluster::ClusterPart;
use api::endpoint::ClusterForce;
use api::endpoint::ClusterShow;
use api::model::Name;

use crate::complete;
use crate::confirm::typed;
use crate::context::Context;
use crate::error::CliError;

/// How long it is waited for a leader: the daemon starts anew, and an election follows.
const LEADER_MAX: Duration = Duration::from_secs(60);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(200);

/// Let the nodes that are left go on without a majority, and give the others up.
///
/// The last resort: only where so many voters are lost for good that nothing can be changed any more
/// (muster cluster status). Name each node that is off; it must be off, and stay off until it is set
/// up anew. Changes that only those nodes had are lost. Their machines on shared volumes are started
/// on the nodes that are left. Refused while any node that is named still answers or writes to a
/// volume, or one that is not named is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster force-quorum --lost host-2 --lost host-3
  muster cluster force-quorum --lost host-2 --typed production")]
pub(crate) struct Args {
    /// Name or id of a node that is off for good. May be given several times.
    #[arg(long, value_name = "NODE", required = true, add = complete::nodes())]
    lost: Vec<String>,
    /// The cluster's name, instead of the question.
    #[arg(long, value_name = "CLUSTER")]
    typed: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let danger = format!(
        "If one of these still runs, machines run twice and their disks are destroyed: {}. What only \
         they knew is lost, and they never come back as what they were",
        args.lost.join(", ")
    );
    let confirm = typed(context, args.typed, &danger, "cluster")?;
    let body = ClusterForceBody { lost: args.lost, confirm };
    let forced = context.send::<ClusterForce>(&[], &body).await?;
    let led = context.wait && is_forced(context, &forced.value.lost).await;
    if context.out.json {
        return context.out.raw_json(&forced.raw);
    }
    let list =
        |names: &[Name]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (lost, stay) = (list(&forced.value.lost), list(&forced.value.stay));
    let (go, are) = if forced.value.stay.len() == 1 { ("goes", "is") } else { ("go", "are") };
    context.out.done(&match led {
        true => format!(
            "{stay} {go} on without {lost}. Before one of those hosts is switched on again, set it \
             up anew: muster cluster leave --force, then join with a new token"
        ),
        false => format!("{stay} {are} to go on without {lost}; see: muster cluster status"),
    })
}

/// Waits until somebody leads and the lost ones are given up; false if that takes too long, which the
/// status explains.
async fn is_forced(context: &Context, lost: &[Name]) -> bool {
    let given_up =
        |node: &ClusterNodeView| !lost.contains(&node.name) || node.part == ClusterPart::Lost;
    let until = Instant::now() + LEADER_MAX;
    while Instant::now() < until {
        if let Ok(view) = context.client.get::<ClusterShow>(&[]).await
            && view.leader.is_some()
            && view.nodes.iter().all(given_up)
        {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}
