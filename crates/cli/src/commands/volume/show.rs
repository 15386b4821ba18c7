//! `muster volume show`.

use api::endpoint::VolumeShow;
use api::types::VolumeView;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show a volume, as the node that answers sees it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume show shared")]
pub(crate) struct Args {
    /// Name or id of the volume.
    #[arg(value_name = "NAME", add = complete::volumes())]
    volume: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let volume = context.get::<VolumeShow>(&[&args.volume]).await?;
    context.out.reply(&volume, |volume| render(&context.out, volume))
}

fn render(out: &Output, volume: &VolumeView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group(volume.name.as_str());
    match &volume.problem {
        None => sheet.toned("state", "ok", Tone::Good),
        Some(problem) => sheet.toned("problem", problem, Tone::Bad),
    }
    sheet.row("kind", "share");
    sheet.row("path", volume.kind.path());
    if let (Some(size), Some(free)) = (volume.size, volume.free) {
        sheet.row("space", format!("{free} free of {size}"));
    }
    sheet.row("used by", volume.used_by.join(", "));
    sheet.row("created", time::both(volume.created, time::now()));
    sheet.row("id", volume.id);
    sheet.render()
}
