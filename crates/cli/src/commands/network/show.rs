//! `muster network show`.

use api::endpoint::NetworkShow;
use api::model::NetworkKind;
use api::types::NetworkView;

use crate::commands::network::made_of;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show a network.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster network show nat")]
pub(crate) struct Args {
    /// Name or id of the network.
    #[arg(value_name = "NAME", add = complete::networks())]
    network: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let network = context.get::<NetworkShow>(&[&args.network]).await?;
    context.out.reply(&network, |network| render(&context.out, network))
}

/// The network as text.
pub(crate) fn render(out: &Output, network: &NetworkView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group(network.name.as_str());
    match &network.problem {
        None => sheet.toned("state", "ok", Tone::Good),
        Some(problem) => sheet.toned("problem", problem, Tone::Bad),
    }
    sheet.row("kind", made_of(&network.kind));
    if let NetworkKind::Nat { subnet } = &network.kind {
        sheet.row("gateway, DNS", subnet.gateway());
    }
    sheet.row("adapters", network.adapters.join(", "));
    sheet.row("created", time::both(network.created, time::now()));
    sheet.row("id", network.id);
    sheet.render()
}
