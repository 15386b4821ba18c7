//! `muster network create`.

use api::endpoint::NetworkCreate;
use api::model::Ipv4Subnet;
use api::model::Name;
use api::model::NetworkKind;
use api::types::NetworkCreateBody;

use crate::context::Context;
use crate::error::CliError;

/// Make a network: one of the host's own with DHCP, DNS and address translation, or one that
/// puts guests into the host's network through a bridge.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("kind").args(["subnet", "bridge"]).required(true),
    after_help = "\
Examples:
  muster network create lab --subnet 10.78.0.0/24
  muster network create lan --bridge br0"
)]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// A NAT network with these addresses; the first one is the host's.
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    subnet: Option<Ipv4Subnet>,
    /// The host's network, through this bridge, which must exist on the node.
    #[arg(long, value_name = "DEVICE")]
    bridge: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let kind = match (args.subnet, args.bridge) {
        (Some(subnet), _) => NetworkKind::Nat { subnet },
        (None, Some(bridge)) => NetworkKind::Bridge { bridge },
        (None, None) => {
            return Err(CliError::usage("a network needs --subnet or --bridge", ""));
        }
    };
    let body = NetworkCreateBody { name: args.name, kind };
    let network = context.send::<NetworkCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&network.raw);
    }
    context.out.done(&format!("network {} is made", network.value.name))
}
