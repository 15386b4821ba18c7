//! `muster network list`.

use api::endpoint::NetworkList;
use api::types::NetworkView;

use crate::commands::network::made_of;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// List networks.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster network list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let networks = context.get::<NetworkList>(&[]).await?;
    context.out.reply(&networks, |networks| render(&context.out, networks))
}

fn render(out: &Output, networks: &[NetworkView]) -> String {
    let mut list = List::new(out, &["NAME", "KIND", "ADAPTERS", "STATE"]);
    for network in networks {
        list.row(vec![
            Field::from(&network.name),
            Field::from(made_of(&network.kind)),
            Field::from(network.adapters.len()),
            match &network.problem {
                None => Field::toned("ok", Tone::Good),
                Some(problem) => Field::toned(problem, Tone::Bad),
            },
        ]);
    }
    list.render("no networks; make one with: muster network create NAME --subnet 10.77.0.0/24")
}
