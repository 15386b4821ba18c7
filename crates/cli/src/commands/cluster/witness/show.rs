//! `muster cluster witness show`.

use api::endpoint::WitnessShow;
use api::witness::WitnessPlaceView;
use api::witness::WitnessView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show the witness and how this node finds it; secrets are named only.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster witness show
  muster cluster witness show --json | jq .reachable")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let witness = context.get::<WitnessShow>(&[]).await?;
    context.out.reply(&witness, |witness| render(&context.out, witness))
}

/// The witness as text.
pub(crate) fn render(out: &Output, witness: &WitnessView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group("witness");
    match &witness.place {
        WitnessPlaceView::Directory { path } => sheet.row("directory", path),
        WitnessPlaceView::Block { path } => sheet.row("device", path),
        WitnessPlaceView::Object { url, options, secrets } => {
            sheet.row("store", url);
            for (name, value) in options {
                sheet.row(name, value);
            }
            for name in secrets {
                sheet.row(name, "(secret)");
            }
        }
        WitnessPlaceView::Remote { address } => sheet.row("address", address),
    }
    match (witness.reachable, witness.problem.as_deref()) {
        (true, _) => sheet.toned("state", "answers", Tone::Good),
        (false, problem) => sheet.toned("state", problem.unwrap_or("silent"), Tone::Bad),
    }
    sheet.row(
        "vote",
        match (witness.retired, witness.votes) {
            (true, _) => "it is being removed",
            (false, true) => "it votes",
            (false, false) => "not now: it votes while the number of nodes that vote is even",
        },
    );
    sheet.row("set", time::both(witness.since, time::now()));
    sheet.row("by", &witness.by);
    sheet.row("id", witness.id);
    sheet.render()
}
