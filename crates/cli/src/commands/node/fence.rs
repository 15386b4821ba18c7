//! `muster node fence`, and what it shares with `muster cluster confirm-off`.

use std::time::Duration;

use api::endpoint::NodeFence;
use api::endpoint::NodeFencing;
use api::fence::NodeFencingView;
use api::fence::TypedNameBody;

use crate::complete;
use crate::confirm::typed;
use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::output::clean;

/// How often it is looked how far a fencing is.
const LOOK: Duration = Duration::from_millis(300);

/// Make sure that nothing of a node runs: switch it off, or let its lease run out.
///
/// Fence devices are tried in the order of their levels. Without one, a node that fences itself gets
/// no lease any more, and its machines are killed when that ends. Machines on shared volumes are then
/// started elsewhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node fence host-2
  muster node fence host-2 --typed host-2")]
pub(crate) struct Args {
    /// Name of the node.
    #[arg(value_name = "NODE", add = complete::nodes())]
    node: String,
    /// The node's name once more, instead of the question.
    #[arg(long, value_name = "NODE")]
    typed: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let danger = format!("{} is switched off with all its machines", args.node);
    let confirm = typed(context, args.typed, &danger, "node")?;
    let body = TypedNameBody { confirm };
    let view = context.send::<NodeFence>(&[&args.node], &body).await?;
    wait(context, view, &args.node).await
}

/// Waits until the fencing has an outcome, unless nobody wants to.
pub(crate) async fn wait(
    context: &Context,
    mut view: Reply<NodeFencingView>,
    node: &str,
) -> Result<(), CliError> {
    if view.value.wish.is_some() && context.wait {
        context.out.note(&format!("{node} is being fenced..."));
    }
    while view.value.wish.is_some() && context.wait {
        tokio::time::sleep(LOOK).await;
        view = context.get::<NodeFencing>(&[node]).await?;
    }
    if context.out.json {
        return context.out.raw_json(&view.raw);
    }
    if let Some(fenced) = &view.value.fenced {
        return context.out.done(&format!("{node} is fenced: {}", fenced.proof.words()));
    }
    match &view.value.failure {
        Some(failure) => Err(CliError::failed(
            format!("{node} is not fenced: {}", clean(&failure.why)),
            format!("see what holds for it: muster node fencing {node}"),
        )),
        None if view.value.wish.is_some() => context.out.done(&format!("{node} is being fenced")),
        None => context.out.done(&format!("{node} came back, and was not fenced")),
    }
}
