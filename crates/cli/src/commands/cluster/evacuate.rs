//! `muster cluster evacuate`.

use std::time::Instant;

use api::endpoint::Evacuate;
use api::endpoint::EvacuationPlan;
use api::endpoint::Nothing;
use api::ha::EvacuationBody;
use api::ha::EvacuationQuery;
use api::ha::EvacuationView;
use api::types::ProgressView;

use crate::commands::node::drain::LOOK_EVERY;
use crate::commands::node::drain::ended;
use crate::commands::node::drain::left;
use crate::commands::node::drain::step;
use crate::commands::node::plan;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Progress;

/// Empty several nodes at once: a rack, or a room that is about to lose its power.
///
/// All of them are set to drain together, so that no machine goes from one to another of them. Machines move
/// while they run, by their priority and the idle ones first; each node lets as many leave at once as its way
/// carries. The nodes stay empty until `muster node resume`. Ctrl-C leaves it to itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster evacuate host-1 host-2 --dry-run
  muster cluster evacuate host-1 host-2
  muster cluster evacuate host-1 --with-storage")]
pub(crate) struct Args {
    /// Names or ids of the nodes.
    #[arg(value_name = "NODE", required = true, add = complete::nodes())]
    nodes: Vec<String>,
    /// Let machines on their own disks leave, too, with their files.
    #[arg(long)]
    with_storage: bool,
    /// Only show where the machines would go, and how long it would take.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Args { nodes, with_storage, dry_run } = args;
    let query = |estimate| EvacuationQuery { nodes: nodes.join(","), with_storage, estimate };
    if dry_run {
        let view = context.call::<EvacuationPlan>(&[], &query(true), &Nothing {}).await?;
        return context.out.reply(&view, |view| render(context, view));
    }
    let body = EvacuationBody { nodes: nodes.clone(), with_storage };
    let mut view = context.send::<Evacuate>(&[], &body).await?;
    if !context.wait {
        return context.out.reply(&view, |view| render(context, view));
    }
    let (total, began) = (all_left(&view.value), Instant::now());
    let mut progress = Progress::new(&context.out, &format!("evacuate {}", nodes.join(", ")));
    loop {
        let left = all_left(&view.value);
        let unplaced: usize = view.value.plans.iter().map(|plan| plan.unplaced.len()).sum();
        let Some(step) = step(left, unplaced, began) else { break };
        let total = total.max(left);
        progress.show(Some(&ProgressView { step, done: total.saturating_sub(left), total }));
        tokio::time::sleep(LOOK_EVERY).await;
        view = context.call::<EvacuationPlan>(&[], &query(false), &Nothing {}).await?;
    }
    drop(progress);
    if context.out.json {
        context.out.raw_json(&view.raw)?;
    }
    for plan in &view.value.plans {
        ended(plan)?;
    }
    let names: Vec<String> = view.value.plans.iter().map(|plan| plan.node.to_string()).collect();
    context.out.done(&format!(
        "{} empty: {}",
        if names.len() == 1 { "node" } else { "nodes" },
        names.join(", ")
    ))
}

fn all_left(view: &EvacuationView) -> u64 {
    view.plans.iter().map(left).sum()
}

fn render(context: &Context, view: &EvacuationView) -> String {
    let mut text = String::new();
    for each in &view.plans {
        text.push_str(&format!("{}:\n{}\n", each.node, plan::render(&context.out, each)));
    }
    if let Some(estimate) = &view.estimate {
        text.push_str(&plan::estimate(estimate));
    }
    text.truncate(text.trim_end().len());
    text
}
