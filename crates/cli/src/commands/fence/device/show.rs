//! `muster fence device show`.

use api::endpoint::FenceDeviceShow;
use api::fence::FenceDeviceView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show a fence device; secrets are named only.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster fence device show bmc-1")]
pub(crate) struct Args {
    /// Name or id of the device.
    #[arg(value_name = "NAME")]
    device: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let device = context.get::<FenceDeviceShow>(&[&args.device]).await?;
    context.out.reply(&device, |device| render(&context.out, device))
}

/// The device as text.
pub(crate) fn render(out: &Output, device: &FenceDeviceView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group(device.name.as_str());
    sheet.row("agent", &device.agent);
    sheet.row("level", device.level);
    sheet.row("timeout", format!("{} s", device.timeout_s));
    for (node, plug) in &device.nodes {
        let plug = plug.as_ref().map(|plug| format!(" (plug {plug})")).unwrap_or_default();
        sheet.row("node", format!("{node}{plug}"));
    }
    for (name, value) in &device.options {
        sheet.row(name, value);
    }
    for name in &device.secrets {
        sheet.row(name, "(secret)");
    }
    sheet.row("added", time::both(device.created, time::now()));
    sheet.row("id", device.id);
    sheet.render()
}
