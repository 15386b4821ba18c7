//! `muster fence device remove`.

use api::endpoint::FenceDeviceRemove;

use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Remove a fence device: its nodes then end their machines themselves when they are cut off, and
/// takeover waits for that.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster fence device remove bmc-1
  muster fence device remove bmc-1 --yes")]
pub(crate) struct Args {
    /// Name or id of the device.
    #[arg(value_name = "NAME")]
    device: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = format!("without {} its nodes can no longer be switched off", args.device);
    confirm(context, args.yes, &loss, Unasked::Proceed)?;
    let reply = context.get::<FenceDeviceRemove>(&[&args.device]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("fence device {} is gone", args.device))
}
