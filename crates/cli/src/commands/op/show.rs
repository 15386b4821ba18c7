//! `muster op show`.

use api::endpoint::OpShow;
use api::model::OpState;
use api::types::OpView;

use crate::commands::op::state;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show an operation.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster op show 0191f6a0-7c1e-7d2a-8f00-0123456789ab")]
pub(crate) struct Args {
    /// Id of the operation.
    #[arg(value_name = "ID", add = complete::ops())]
    op: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let op = context.get::<OpShow>(&[&args.op]).await?;
    context.out.reply(&op, |op| render(&context.out, op))
}

fn render(out: &Output, op: &OpView) -> String {
    let now = time::now();
    let mut sheet = Sheet::new(out);
    sheet.group(&crate::output::clean_line(&op.title));
    let (text, tone) = state(op);
    sheet.toned("state", text, tone);
    sheet.row("begun", format!("{}, by {}", time::both(op.begun, now), op.actor));
    match &op.state {
        OpState::Running { .. } => sheet.row("deadline", time::both(op.deadline, now)),
        OpState::Failed { at, failure } => {
            sheet.row("ended", time::both(*at, now));
            sheet.row("code", &failure.code);
            sheet.row("what to do", &failure.hint);
        }
        OpState::Done { at } | OpState::Cancelled { at } => {
            sheet.row("ended", time::both(*at, now));
        }
    }
    sheet.row("id", op.id);
    sheet.render()
}
