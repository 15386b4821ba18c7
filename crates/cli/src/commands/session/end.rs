//! `muster session end`.

use api::endpoint::SessionEnd;

use crate::context::Context;
use crate::error::CliError;

/// Sign a browser out, or make a sign-in link useless; at once, on every node.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster session end 0191f6a0-7c1e-7d2a-8f00-000000000003")]
pub(crate) struct Args {
    /// Id of the session, as `muster session list` shows it.
    #[arg(value_name = "ID")]
    session: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<SessionEnd>(&[&args.session]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("the session {} has ended", args.session))
}
