//! `muster fence device list`.

use api::endpoint::FenceDeviceList;
use api::fence::FenceDeviceView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::table::Field;
use crate::output::table::List;

/// List fence devices, in the order in which they are tried.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster fence device list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let devices = context.get::<FenceDeviceList>(&[]).await?;
    context.out.reply(&devices, |devices| render(&context.out, devices))
}

fn render(out: &Output, devices: &[FenceDeviceView]) -> String {
    let mut list = List::new(out, &["LEVEL", "NAME", "AGENT", "NODES"]);
    for device in devices {
        let nodes: Vec<&str> = device.nodes.keys().map(String::as_str).collect();
        list.row(vec![
            Field::from(device.level.to_string()),
            Field::from(&device.name),
            Field::from(&device.agent),
            Field::from(nodes.join(", ")),
        ]);
    }
    list.render("no fence devices; add one with: muster fence device add NAME --agent PROGRAM")
}
