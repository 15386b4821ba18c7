//! `muster volume list`.

use api::endpoint::VolumeList;
use api::types::VolumeView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// List volumes, as the node that answers sees them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster volume list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let volumes = context.get::<VolumeList>(&[]).await?;
    context.out.reply(&volumes, |volumes| render(&context.out, volumes))
}

fn render(out: &Output, volumes: &[VolumeView]) -> String {
    let mut list = List::new(out, &["NAME", "PATH", "SIZE", "FREE", "USED BY", "STATE"]);
    let size = |size: Option<_>| size.map_or_else(|| "-".to_owned(), |size| format!("{size}"));
    for volume in volumes {
        list.row(vec![
            Field::from(&volume.name),
            Field::from(volume.kind.path().to_owned()),
            Field::from(size(volume.size)),
            Field::from(size(volume.free)),
            Field::from(volume.used_by.len()),
            match &volume.problem {
                None => Field::toned("ok", Tone::Good),
                Some(problem) => Field::toned(problem, Tone::Bad),
            },
        ]);
    }
    list.render("no volumes; make one with: muster volume create NAME --share PATH")
}
