//! `muster rule create`.

use api::endpoint::RuleCreate;
use api::ha::RuleCreateBody;
use api::model::Name;
use api::model::RuleKind;

use crate::context::Context;
use crate::error::CliError;

/// Keep machines with a tag on the same node, or on different ones.
///
/// A soft rule is followed where that is possible. A hard one is never broken by the cluster: after
/// the loss of a node, a machine stays off rather than break it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm set web-1 --tag web
  muster rule create web-apart --tag web --apart
  muster rule create db-with-cache --tag shop-data --together --hard")]
#[command(group = clap::ArgGroup::new("kind").required(true).args(["together", "apart"]))]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// Which machines: those with this tag.
    #[arg(long)]
    tag: Name,
    /// Keep them on the same node.
    #[arg(long)]
    together: bool,
    /// Keep them on different nodes.
    #[arg(long)]
    apart: bool,
    /// Never break the rule, even if a machine stays off for it.
    #[arg(long)]
    hard: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let kind = if args.together { RuleKind::Together } else { RuleKind::Apart };
    let body = RuleCreateBody { name: args.name, tag: args.tag, kind, hard: args.hard };
    let rule = context.send::<RuleCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&rule.raw);
    }
    context.out.done(&format!("rule {} holds from the next placement on", rule.value.name))
}
