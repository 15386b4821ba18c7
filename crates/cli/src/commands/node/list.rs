//! `muster node list`.

use api::endpoint::NodeList;
use api::model::NodeMode;
use api::types::NodeView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::word;

/// List nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let nodes = context.get::<NodeList>(&[]).await?;
    context.out.reply(&nodes, |nodes| render(&context.out, nodes))
}

fn render(out: &Output, nodes: &[NodeView]) -> String {
    let header =
        ["NAME", "VMS", "CPUS", "MEMORY", "AVAILABLE", "STORAGE", "FREE", "RUNS ON", "STATE"];
    let mut list = List::new(out, &header);
    for node in nodes {
        list.row(vec![
            Field::from(&node.name),
            Field::from(node.vms_running),
            Field::from(node.cpus),
            Field::from(node.memory),
            Field::from(node.memory_available),
            Field::from(node.storage),
            Field::from(node.storage_available),
            Field::from(word(&node.accelerator)),
            match (node.problems.len(), node.mode) {
                (0, NodeMode::Active) if node.quarantine.is_some() => {
                    Field::toned("quarantine", Tone::Busy)
                }
                (0, NodeMode::Active) => Field::toned("ok", Tone::Good),
                (0, mode) => Field::toned(word(&mode), Tone::Busy),
                (1, _) => Field::toned(&node.problems[0], Tone::Bad),
                (count, _) => Field::toned(format!("{count} problems"), Tone::Bad),
            },
        ]);
    }
    list.render("no nodes")
}
