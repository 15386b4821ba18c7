//! `muster node fencing`.

use api::endpoint::NodeFencing;
use api::fence::CertaintyView;
use api::fence::NodeFencingView;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show what makes sure that a node's machines never run twice, and whether it is fenced.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster node fencing host-2")]
pub(crate) struct Args {
    /// Name of the node.
    #[arg(value_name = "NODE", add = complete::nodes())]
    node: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let view = context.get::<NodeFencing>(&[&args.node]).await?;
    context.out.reply(&view, |view| render(&context.out, view))
}

fn render(out: &Output, view: &NodeFencingView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group(view.name.as_str());
    match view.certainty {
        CertaintyView::Alone => sheet.row("certainty", "not needed: it is the only node"),
        CertaintyView::Proof => {
            sheet.toned("certainty", "proof: a fence device switches it off", Tone::Good);
        }
        CertaintyView::SelfFencing { watchdog, takeover_ms } => {
            let behind = if watchdog { "guard and watchdog" } else { "guard, no watchdog" };
            let text =
                format!("self-fencing ({behind}); takeover after {} s", takeover_ms.div_ceil(1000));
            sheet.toned("certainty", &text, if watchdog { Tone::Good } else { Tone::Busy });
        }
        CertaintyView::None => {
            sheet.toned("certainty", "none: only an administrator's word counts", Tone::Bad);
        }
    }
    if let Some(wish) = &view.wish {
        sheet.toned("is being fenced", time::both(wish.since, time::now()), Tone::Busy);
    }
    if let Some(fenced) = &view.fenced {
        sheet.toned("is fenced", fenced.proof.words(), Tone::Bad);
        sheet.row("since", time::both(fenced.at, time::now()));
    }
    if let Some(failure) = &view.failure {
        sheet.toned("was not fenced", &failure.why, Tone::Bad);
    }
    sheet.row("epoch", view.epoch);
    sheet.render()
}
