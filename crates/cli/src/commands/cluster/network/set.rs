//! `muster cluster network set`.

use api::cluster_network::ClusterNetworkSetBody;
use api::endpoint::ClusterNetworkSet;
use api::model::Name;

use crate::context::Context;
use crate::error::CliError;

/// Say what a network of hosts is called, and whether machines move over it.
///
/// Several networks may have the migration role: the one in place 1 is tried first. A node that is not
/// in it uses the next one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster network set 10.90.2.0/24 --name migration --migration 1
  muster cluster network set migration --migration off
  muster cluster network set migration --name fast")]
pub(crate) struct Args {
    /// The network, such as 10.90.2.0/24, or its name.
    network: String,
    /// What it is called from now on.
    #[arg(long)]
    name: Option<Name>,
    /// Machines move over it, in this place of the order of preference, 1 to 9; or `off`.
    #[arg(long, value_name = "PLACE", value_parser = place)]
    migration: Option<u8>,
}

fn place(text: &str) -> Result<u8, String> {
    match text {
        "off" => Ok(0),
        _ => match text.parse() {
            Ok(place @ 1..=9) => Ok(place),
            _ => Err("write a number from 1 (first) to 9 (last), or off".to_owned()),
        },
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Args { network, name, migration } = args;
    let body = ClusterNetworkSetBody { network, name, migration };
    let reply = context.send::<ClusterNetworkSet>(&[], &body).await?;
    context.out.reply(&reply, |view| super::render(&context.out, view))
}
