//! `muster disk list`.

use api::endpoint::DiskList;
use api::volume::LunView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// List LUNs: which node sees which, by which paths, and what they hold.
///
/// The disks of a node alone are among them; a shared one has a line for each node. Only what holds
/// "nothing" can become a volume, or XFS and ext4 by "muster volume adopt".
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster disk list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let disks = context.get::<DiskList>(&[]).await?;
    context.out.reply(&disks, |disks| render(&context.out, disks))
}

fn render(out: &Output, disks: &[LunView]) -> String {
    let mut list = List::new(out, &["LUN", "SIZE", "VOLUME", "NODE", "PATHS", "HOLDS"]);
    for disk in disks {
        for node in &disk.nodes {
            let paths = match node.paths.is_empty() {
                true => Field::toned("no path", Tone::Faint),
                false => Field::from(node.paths.join(", ")),
            };
            let volume = disk.volume.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            list.row(vec![
                Field::from(&disk.lun),
                Field::from(disk.size),
                Field::from(volume),
                Field::from(&node.node),
                paths,
                Field::from(node.holds.clone().unwrap_or_else(|| "-".to_owned())),
            ]);
        }
    }
    let mut lines = vec![list.render("no LUN is seen by any node")];
    let problems = disks.iter().filter_map(|disk| Some((&disk.lun, disk.problem.as_ref()?)));
    lines.extend(problems.map(|(lun, problem)| format!("{lun}: {problem}")));
    lines.join("\n")
}
