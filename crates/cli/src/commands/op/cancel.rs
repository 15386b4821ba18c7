//! `muster op cancel`.

use api::endpoint::Nothing;
use api::endpoint::OpCancel;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Ask an operation to stop, and wait until it has ended.
///
/// It may be past the point where it can be stopped; then it ends as it would have.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster op cancel 0191f6a0-7c1e-7d2a-8f00-0123456789ab")]
pub(crate) struct Args {
    /// Id of the operation.
    #[arg(value_name = "ID", add = complete::ops())]
    op: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let op = context.send::<OpCancel>(&[&args.op], &Nothing {}).await?;
    operation::cancelled(context, op).await
}
