//! `muster cluster create`.

use api::cluster::ClusterCreateBody;
use api::endpoint::ClusterCreate;
use api::model::Name;

use crate::context::Context;
use crate::error::CliError;

/// Make a cluster of this host, which others can join.
///
/// What is on this host stays as it is and becomes what is in the cluster. Other hosts join empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster create office
  muster cluster create && muster cluster token")]
pub(crate) struct Args {
    /// Its name; `muster` if left out.
    #[arg(value_name = "NAME")]
    name: Option<Name>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = ClusterCreateBody { name: args.name };
    let cluster = context.send::<ClusterCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&cluster.raw);
    }
    let name = cluster.value.name.as_ref().map_or("", |name| name.as_str());
    context.out.done(&format!("cluster {name} has one node; let others join: muster cluster token"))
}
