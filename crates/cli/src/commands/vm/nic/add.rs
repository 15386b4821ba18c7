//! `muster vm nic add`.

use std::net::Ipv4Addr;

use api::endpoint::NicAdd;
use api::model::MacAddr;
use api::model::Name;
use api::types::NicAddBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Add a network adapter; also while the machine runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm nic add web-1
  muster vm nic add web-1 --network lan --name backend --mac 52:54:00:12:34:56")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Network to plug it into; nat if left out.
    #[arg(long, add = complete::networks())]
    network: Option<Name>,
    /// Its name; net0, net1... if left out.
    #[arg(long)]
    name: Option<Name>,
    /// Its Ethernet address; a random one if left out.
    #[arg(long)]
    mac: Option<MacAddr>,
    /// Its address on a NAT network; the first free one if left out.
    #[arg(long, value_name = "IP")]
    address: Option<Ipv4Addr>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body =
        NicAddBody { name: args.name, network: args.network, mac: args.mac, address: args.address };
    let op = context.send::<NicAdd>(&[&args.vm], &body).await?;
    operation::finish(context, op).await
}
