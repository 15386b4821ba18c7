//! `muster fence device test`.

use api::endpoint::FenceDeviceTest;
use api::fence::FenceTestView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;
use crate::output::table::Field;
use crate::output::table::List;

/// Ask a fence device for the power of each of its nodes; nothing is switched.
///
/// The device is asked by the daemon that this command reaches. Ask on every node: any of them may
/// have to use it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster fence device test bmc-1")]
pub(crate) struct Args {
    /// Name or id of the device.
    #[arg(value_name = "NAME")]
    device: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let said = context.get::<FenceDeviceTest>(&[&args.device]).await?;
    context.out.reply(&said, |said| render(&context.out, said))?;
    if said.value.iter().all(|said| said.ok) {
        return Ok(());
    }
    Err(CliError::failed(
        format!("{} could not be asked for every node", args.device),
        "compare its options with the program's man page, then try again",
    ))
}

fn render(out: &Output, said: &[FenceTestView]) -> String {
    let mut list = List::new(out, &["NODE", "SAYS", "TOOK", "OUTPUT"]);
    for said in said {
        let tone = if said.ok { Tone::Good } else { Tone::Bad };
        let last = said.output.lines().last().unwrap_or_default();
        list.row(vec![
            Field::from(&said.node),
            Field::toned(&said.says, tone),
            Field::from(format!("{} ms", said.took_ms)),
            Field::from(clean_line(last)),
        ]);
    }
    list.render("it switches no node off")
}
