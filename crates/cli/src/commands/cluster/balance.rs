//! `muster cluster balance`.

use api::endpoint::BalanceSet;
use api::endpoint::BalanceShow;
use api::endpoint::VmMigrate;
use api::ha::BalanceBody;
use api::ha::BalanceView;
use api::migrate::VmMigrateBody;
use api::model::AtLimit;
use api::model::MigrateChange;

use crate::commands::vm::migrate::expected;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::operation;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::parse;

/// Move machines apart that wait for each other.
///
/// By pressure, not by percent: where processors are busy and nobody waits, nothing is moved. A machine goes
/// only to a node where machines do not wait, only if the busier of both nodes is clearly less busy after it,
/// and only if its memory can be sent faster than it changes. One machine of a node goes at a time; then it is
/// measured anew. With `--automatic on`, the cluster does so by itself, when the same machine is the one to
/// move for two minutes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster balance --dry-run
  muster cluster balance
  muster cluster balance --automatic on")]
pub(crate) struct Args {
    /// Only show where machines wait, and what would be moved.
    #[arg(long)]
    dry_run: bool,
    /// Let the cluster do it by itself, or no longer.
    #[arg(long, value_name = "on|off", value_parser = parse::switch, conflicts_with = "dry_run")]
    automatic: Option<bool>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if let Some(automatic) = args.automatic {
        let view = context.send::<BalanceSet>(&[], &BalanceBody { automatic }).await?;
        return context.out.reply(&view, |view| render(context, view));
    }
    let view = context.get::<BalanceShow>(&[]).await?;
    if args.dry_run || view.value.steps.is_empty() {
        return context.out.reply(&view, |view| render(context, view));
    }
    if context.out.json {
        context.out.raw_json(&view.raw)?;
    }
    for step in &view.value.steps {
        // Nobody shall stand long for this.
        let policy = MigrateChange { at_limit: Some(AtLimit::Cancel), ..MigrateChange::default() };
        let body =
            VmMigrateBody { to: Some(step.to.to_string()), policy, ..VmMigrateBody::default() };
        let begun = context.send::<VmMigrate>(&[&step.id.to_string()], &body).await?;
        let Some(op) = begun.value.op else { continue };
        operation::step(context, Reply { raw: Vec::new(), value: op }).await?;
        if !context.out.json {
            context.out.done(&format!("{} runs on {}: {}", step.vm, step.to, step.why))?;
        }
    }
    Ok(())
}

fn render(context: &Context, view: &BalanceView) -> String {
    let columns =
        ["NODE", "MACHINES", "PROCESSORS USED", "WAITS FOR A PROCESSOR", "WAITS FOR MEMORY"];
    let mut list = List::new(&context.out, &columns);
    for node in &view.nodes {
        if !node.told {
            let silent = Field::toned("does not tell", Tone::Bad);
            list.row(vec![Field::from(&node.node), silent, "-".into(), "-".into(), "-".into()]);
            continue;
        }
        let percent = |value: u64, pressed: bool| match pressed {
            true => Field::toned(format!("{value} %"), Tone::Busy),
            false => Field::from(format!("{value} %")),
        };
        list.row(vec![
            Field::from(&node.node),
            Field::from(node.vms.to_string()),
            percent(node.cpu_percent, false),
            percent(node.cpu_waits_percent, node.cpu_waits_percent >= 10),
            percent(node.memory_waits_percent, node.memory_waits_percent >= 5),
        ]);
    }
    let mut text = list.render("no nodes");
    text.push('\n');
    for step in &view.steps {
        let takes = expected(&step.predicted);
        text.push_str(&format!(
            "{} from {} to {}: {}; {takes}\n",
            step.vm, step.from, step.to, step.why
        ));
    }
    for stays in &view.stay {
        text.push_str(&format!("{} stays where it is: {}\n", stays.vm, stays.why));
    }
    if view.steps.is_empty() {
        text.push_str("no machine would be better off elsewhere\n");
    }
    text.push_str(match view.automatic {
        true => "the cluster does it by itself",
        false => "the cluster does not do it by itself (muster cluster balance --automatic on)",
    });
    text
}
