//! `muster rule list`.

use api::endpoint::RuleList;
use api::ha::RuleView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::word;

/// List placement rules.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster rule list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let rules = context.get::<RuleList>(&[]).await?;
    context.out.reply(&rules, |rules| render(&context.out, rules))
}

fn render(out: &Output, rules: &[RuleView]) -> String {
    let mut list = List::new(out, &["NAME", "TAG", "KEEPS THEM", "HARD", "MACHINES"]);
    for rule in rules {
        let vms: Vec<_> = rule.vms.iter().map(ToString::to_string).collect();
        list.row(vec![
            Field::from(&rule.name),
            Field::from(&rule.tag),
            Field::from(word(&rule.kind)),
            Field::from(if rule.hard { "yes" } else { "no" }.to_owned()),
            Field::from(vms.join(", ")),
        ]);
    }
    list.render("no rules; make one with: muster rule create NAME --tag TAG --apart")
}
