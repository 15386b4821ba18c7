//! `muster node drain`.

use std::time::Duration;
use std::time::Instant;

use api::endpoint::NodePlan;
use api::endpoint::NodeSetMode;
use api::endpoint::Nothing;
use api::ha::NodeModeBody;
use api::ha::PlanFor;
use api::ha::PlanQuery;
use api::ha::PlanView;
use api::model::NodeMode;
use api::types::ProgressView;

use crate::commands::node::plan;
use crate::complete;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::progress::Progress;

/// How often it is looked how far a drain is.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long room is waited for. A node that has just come back is heard in the next moments, and
/// the leader goes on trying in any case.
const ROOM_AFTER: Duration = Duration::from_secs(10);

/// Empty a node for maintenance: its machines move to other nodes, and it gets no new ones.
///
/// Machines on a volume are migrated while they run, as many at once as the way carries, by their priority and
/// the idle ones first; what cannot be is saved, moved and resumed. Machines on the node's own disks stay, and are named; with `--with-storage` they leave, too,
/// with their files, to the own disks of other nodes. The node stays empty until `muster node resume`.
/// Ctrl-C leaves the drain to itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node drain host-2 --dry-run
  muster node drain host-2
  muster node drain host-2 --with-storage
  muster node resume host-2")]
pub(crate) struct Args {
    /// Name or id of the node.
    #[arg(value_name = "NAME", add = complete::nodes())]
    node: String,
    /// Let machines on its own disks leave, too, with their files.
    #[arg(long)]
    with_storage: bool,
    /// Only show where the machines would go, and how long it would take.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let with_storage = args.with_storage;
    if args.dry_run {
        let query = PlanQuery { plan: PlanFor::Drain, with_storage, estimate: true };
        let plan = context.call::<NodePlan>(&[&args.node], &query, &Nothing {}).await?;
        return context.out.reply(&plan, |plan| plan::render(&context.out, plan));
    }
    if !context.wait {
        let body = NodeModeBody { mode: NodeMode::Drain, with_storage };
        let plan = context.send::<NodeSetMode>(&[&args.node], &body).await?;
        return context.out.reply(&plan, |plan| plan::render(&context.out, plan));
    }
    let plan = empty(context, &args.node, with_storage, None).await?;
    if context.out.json {
        context.out.raw_json(&plan.raw)?;
    }
    ended(&plan.value)?;
    context.out.done(&format!("node {} is drained", plan.value.node))
}

/// Sets a node to drain and waits until nothing of it can go any more; at most until `deadline`.
///
/// # Errors
/// It cannot be set so, or nobody answers how far it is.
pub(crate) async fn empty(
    context: &Context,
    node: &str,
    with_storage: bool,
    deadline: Option<Instant>,
) -> Result<Reply<PlanView>, CliError> {
    let query = PlanQuery { plan: PlanFor::Drain, with_storage, estimate: false };
    let body = NodeModeBody { mode: NodeMode::Drain, with_storage };
    let mut plan = context.send::<NodeSetMode>(&[node], &body).await?;
    let (total, began) = (left(&plan.value), Instant::now());
    let mut progress = Progress::new(&context.out, &format!("drain {}", plan.value.node));
    loop {
        let left = left(&plan.value);
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let step = step(left, plan.value.unplaced.len(), began).filter(|_| !late);
        let Some(step) = step else { break };
        let total = total.max(left);
        progress.show(Some(&ProgressView { step, done: total.saturating_sub(left), total }));
        tokio::time::sleep(LOOK_EVERY).await;
        plan = context.call::<NodePlan>(&[node], &query, &Nothing {}).await?;
    }
    Ok(plan)
}

/// What is waited for, since `began`; nothing more where none is left, and where none finds room for long.
pub(crate) fn step(left: u64, unplaced: usize, began: Instant) -> Option<String> {
    match unplaced {
        _ if left > 0 => Some(format!("moving machines, {left} left")),
        0 => None,
        _ if began.elapsed() >= ROOM_AFTER => None,
        _ => Some(format!("waiting for room, {unplaced} left")),
    }
}

/// Machines that have not left yet and will.
pub(crate) fn left(plan: &PlanView) -> u64 {
    let moving = plan.moving.iter().filter(|vm| !plan.steps.iter().any(|step| step.vm == **vm));
    (plan.steps.len() + moving.count()) as u64
}

/// What is still on the node, if that is a failure.
///
/// # Errors
/// Machines stay there.
pub(crate) fn ended(plan: &PlanView) -> Result<(), CliError> {
    let stays = |names: Vec<String>, why: &str| {
        let message = format!("{} stay on {}: {why}", names.join(", "), plan.node);
        CliError::failed(message, "shut them down, or make room: muster cluster capacity")
    };
    if let Some(first) = plan.unplaced.first() {
        let names = plan.unplaced.iter().map(|it| it.vm.to_string()).collect();
        return Err(stays(names, &first.why));
    }
    if !plan.local.is_empty() {
        let names = plan.local.iter().map(ToString::to_string).collect();
        return Err(stays(names, "they are on its own disks (--with-storage takes them along)"));
    }
    Ok(())
}
