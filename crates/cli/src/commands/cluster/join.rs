//! `muster cluster join`.

use std::time::Duration;
use std::time::Instant;

use api::cluster::ClusterJoinBody;
use api::cluster::ClusterPart;
use api::endpoint::ClusterJoin;
use api::endpoint::ClusterShow;
use api::model::NodeId;

use crate::context::Context;
use crate::error::CliError;

/// How long the daemon that starts anew is waited for.
const START_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Make this host, which must be empty, a node of a cluster.
///
/// The host's own state is replaced by the cluster's; a host with VMs or images of its own is
/// refused. Its daemon starts anew at once; with --no-wait, nobody waits for that.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster join mjt_AbCd...
  muster cluster join - < token.txt")]
pub(crate) struct Args {
    /// The token, made on a member by `muster cluster token`; `-` reads it from standard input.
    #[arg(value_name = "TOKEN")]
    token: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let token = read_token(args.token)?;
    let joined = context.send::<ClusterJoin>(&[], &ClusterJoinBody { token }).await?;
    let is_in = context.wait && is_brought_in(context, joined.value.node).await;
    if context.out.json {
        return context.out.raw_json(&joined.raw);
    }
    let members: Vec<_> = joined.value.members.iter().map(ToString::to_string).collect();
    let members = members.join(", ");
    let end = match is_in {
        true => "",
        false => "; it is being brought in, see: muster cluster status",
    };
    let name = &joined.value.name;
    context.out.done(&format!("this host is a node of the cluster {name} ({members}){end}"))
}

/// A token as it was given, or from standard input.
pub(super) fn read_token(token: String) -> Result<String, CliError> {
    if token != "-" {
        return Ok(token);
    }
    std::io::read_to_string(std::io::stdin())
        .map_err(|error| CliError::usage(format!("cannot read the token: {error}"), ""))
}

/// Waits until the new daemon answers and gets the cluster's state; false if that takes too long,
/// which is no failure.
async fn is_brought_in(context: &Context, node: NodeId) -> bool {
    let until = Instant::now() + START_MAX;
    while Instant::now() < until {
        if let Ok(view) = context.client.get::<ClusterShow>(&[]).await
            && view.node == node
            && view.nodes.iter().any(|it| {
                it.id == node
                    && matches!(
                        it.part,
                        ClusterPart::Voter | ClusterPart::Learner | ClusterPart::Leader
                    )
            })
        {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}
