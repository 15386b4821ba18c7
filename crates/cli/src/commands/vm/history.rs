//! `muster vm history`.

use api::endpoint::VmHistory;
use api::settings::SettingsChangeView;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;

/// Show what was changed in a machine's settings, when and by whom.
///
/// The newest 50 changes are kept. Of keys for the guest and of its first-boot configuration it is
/// told only that they changed: they may hold secrets. What a change set can be set back with
/// `muster vm set`; the web console has a button for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm history web-1
  muster vm history web-1 --json | jq '.[0].fields'")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let changes = context.get::<VmHistory>(&[&args.vm]).await?;
    context.out.reply(&changes, |changes| render(&context.out, changes))
}

fn render(out: &Output, changes: &[SettingsChangeView]) -> String {
    let mut list = List::new(out, &["WHEN", "WHO", "REVISION", "SETTING", "BEFORE", "AFTER"]);
    let now = time::now();
    for change in changes {
        for field in &change.fields {
            let told = |value: &Option<String>| match (value, field.withheld) {
                (_, true) => Field::from("(not kept)"),
                (None, false) => Field::from("-"),
                (Some(value), false) => Field::from(value.clone()),
            };
            list.row(vec![
                Field::from(time::relative(change.at, now)),
                Field::from(change.by.clone()),
                Field::from(change.revision.to_string()),
                Field::from(field.field.clone()),
                told(&field.old),
                told(&field.new),
            ]);
        }
    }
    list.render("nothing was changed since it was created\n")
}
