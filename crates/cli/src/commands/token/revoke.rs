//! `muster token revoke`.

use api::endpoint::TokenRevoke;

use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Make a token invalid, at once and for good.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster token revoke ci
  muster token revoke ci --yes")]
pub(crate) struct Args {
    /// Name or id of the token.
    #[arg(value_name = "NAME", add = complete::tokens())]
    token: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = format!("whoever uses the token {} can no longer sign in", args.token);
    confirm(context, args.yes, &loss, Unasked::Proceed)?;
    let reply = context.get::<TokenRevoke>(&[&args.token]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("token {} is no longer valid", args.token))
}
