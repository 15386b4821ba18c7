//! `muster rule delete`.

use api::endpoint::RuleDelete;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Remove a placement rule. Machines stay where they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster rule delete web-apart")]
pub(crate) struct Args {
    /// Name or id of the rule.
    #[arg(value_name = "NAME", add = complete::rules())]
    rule: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let reply = context.get::<RuleDelete>(&[&args.rule]).await?;
    if context.out.json {
        return context.out.raw_json(&reply.raw);
    }
    context.out.done(&format!("rule {} is gone", args.rule))
}
