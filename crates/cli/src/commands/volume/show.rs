//! `muster volume show`.

use api::endpoint::VolumeShow;
use api::model::LunPhase;
use api::model::VolumeKind;
use api::types::VolumeView;
use api::volume::CoordinationView;
use api::volume::VolumeAccess;

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

fn coordination(sheet: &mut Sheet<'_>, now: &CoordinationView) {
    let phase = match (now.phase, now.maintenance) {
        (LunPhase::Preparing { .. }, _) => "is being prepared",
        (LunPhase::Leaving { .. }, _) => "is being taken off its LUN",
        (LunPhase::Ready, true) => "in maintenance",
        (LunPhase::Ready, false) => "in use",
    };
    sheet.row("phase", phase);
    let nobody = || "nobody".to_owned();
    sheet.row("coordinator", now.coordinator.as_ref().map_or_else(nobody, ToString::to_string));
    if let Some(wanted) = &now.wanted {
        sheet.row("on its way to", wanted);
    }
    sheet.row("epoch", now.epoch);
    for node in &now.nodes {
        let access = match node.access {
            VolumeAccess::Direct => "direct",
            VolumeAccess::BlockRedirected => "block-redirected",
            VolumeAccess::FileRedirected => "file-redirected",
            VolumeAccess::Waiting => "waiting",
            VolumeAccess::None => "not mounted",
            VolumeAccess::Unknown => "unknown",
        };
        let leads = now.coordinator.as_ref() == Some(&node.node);
        let leads = if leads { "coordinator, " } else { "" };
        let path = if node.path { "path" } else { "no path" };
        let why = node.why.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
        let since = node.since.map(|since| format!(" since {}", time::both(since, time::now())));
        sheet.row(
            node.node.as_str(),
            format!("{leads}{access}, {path}{why}{}", since.unwrap_or_default()),
        );
    }
}

fn render(out: &Output, volume: &VolumeView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group(volume.name.as_str());
    match &volume.problem {
        None => sheet.toned("state", "ok", Tone::Good),
        Some(problem) => sheet.toned("problem", problem, Tone::Bad),
    }
    sheet.row("kind", if volume.coordination.is_some() { "lun" } else { "share" });
    sheet.row("path", volume.kind.path());
    if let VolumeKind::Lun { lun, fs, fences, .. } = &volume.kind {
        sheet.row("lun", lun);
        sheet.row("file system", fs.name());
        sheet.row("reservations", if *fences { "yes" } else { "no; lost power must be proved" });
    }
    if let Some(now) = &volume.coordination {
        coordination(&mut sheet, now);
    }
    if let (Some(size), Some(free)) = (volume.size, volume.free) {
        sheet.row("space", format!("{free} free of {size}"));
    }
    sheet.row("used by", volume.used_by.join(", "));
    sheet.row("created", time::both(volume.created, time::now()));
    sheet.row("id", volume.id);
    sheet.render()
}
