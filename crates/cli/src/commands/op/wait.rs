//! `muster op wait`.

use api::endpoint::OpShow;

use crate::commands::keep;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Wait until an operation ends; its outcome decides the exit code.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster op wait 0191f6a0-7c1e-7d2a-8f00-0123456789ab
  id=$(muster vm save web-1 --no-wait --json | jq -r .id); muster op wait $id")]
pub(crate) struct Args {
    /// Ids of the operations.
    #[arg(value_name = "ID", required = true, add = complete::ops())]
    ops: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut first = None;
    for id in &args.ops {
        let op = context.get::<OpShow>(&[id]).await?;
        match operation::wait(context, op).await {
            Err(error) if error.exit_code() == 130 => return Err(error),
            Err(error) => keep(context, &mut first, error),
            Ok(()) => {}
        }
    }
    first.map_or(Ok(()), Err)
}
