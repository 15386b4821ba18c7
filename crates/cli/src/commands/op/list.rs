//! `muster op list`.

use api::endpoint::OpList;
use api::types::OpListQuery;
use api::types::OpView;

use crate::commands::op::state;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;

/// List operations that run; with --all, those that have ended too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster op list
  muster op list --all")]
pub(crate) struct Args {
    /// Those that have ended, too.
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let ops = context.query::<OpList>(&[], &OpListQuery { all: args.all }).await?;
    context.out.reply(&ops, |ops| render(&context.out, ops))
}

fn render(out: &Output, ops: &[OpView]) -> String {
    let mut list = List::new(out, &["ID", "OPERATION", "STATE", "BEGUN", "BY"]);
    let now = time::now();
    for op in ops {
        let (text, tone) = state(op);
        list.row(vec![
            Field::from(op.id),
            Field::from(&op.title),
            Field::toned(text, tone),
            Field::from(time::relative(op.begun, now)),
            Field::from(&op.actor),
        ]);
    }
    list.render("no operations")
}
