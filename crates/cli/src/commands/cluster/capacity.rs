//! `muster cluster capacity`.

use api::endpoint::Capacity;
use api::ha::LossView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// Show for each node what would not run if it were lost now.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster capacity
  muster cluster capacity --json | jq -e 'all(.[]; .unplaced == [])'")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let losses = context.get::<Capacity>(&[]).await?;
    context.out.reply(&losses, |losses| render(&context.out, losses))
}

fn render(out: &Output, losses: &[LossView]) -> String {
    let header = ["IF LOST", "STARTED ELSEWHERE", "WOULD NOT START", "ONLY THERE"];
    let mut list = List::new(out, &header);
    for loss in losses {
        let unplaced: Vec<_> =
            loss.unplaced.iter().map(|it| format!("{} ({})", it.vm, it.why)).collect();
        let local: Vec<_> = loss.local.iter().map(ToString::to_string).collect();
        list.row(vec![
            Field::from(&loss.node),
            Field::from(loss.restarted),
            match unplaced.is_empty() {
                true => Field::toned("-", Tone::Good),
                false => Field::toned(unplaced.join(", "), Tone::Bad),
            },
            match local.is_empty() {
                true => Field::from("-".to_owned()),
                false => Field::toned(local.join(", "), Tone::Busy),
            },
        ]);
    }
    list.render("no node can be heard")
}
