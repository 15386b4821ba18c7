//! `muster vm nic set`.

use std::net::Ipv4Addr;

use api::endpoint::NicSet;
use api::model::Name;
use api::model::NicChange;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;
use crate::parse;

/// Change a network adapter; also while the machine runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm nic set web-1 net0 --link off
  muster vm nic set web-1 net0 --network lan
  muster vm nic set web-1 net0 --address 10.77.0.20")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Name or id of the adapter.
    #[arg(value_name = "NIC", add = complete::nics())]
    nic: String,
    /// Plug the cable in (on) or pull it (off).
    #[arg(long, value_name = "on|off", value_parser = parse::switch)]
    link: Option<bool>,
    /// Move it to another network.
    #[arg(long, add = complete::networks())]
    network: Option<Name>,
    /// Its address on a NAT network.
    #[arg(long, value_name = "IP")]
    address: Option<Ipv4Addr>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let change = NicChange { link_up: args.link, network: args.network, address: args.address };
    if change == NicChange::default() {
        return Err(CliError::usage(
            "nothing to change was named",
            "see: muster vm nic set --help",
        ));
    }
    let op = context.send::<NicSet>(&[&args.vm, &args.nic], &change).await?;
    operation::finish(context, op).await
}
