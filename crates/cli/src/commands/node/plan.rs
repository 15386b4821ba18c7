//! How plans are shown.

use api::ha::PlanView;

use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// A plan as a table.
pub(crate) fn render(out: &Output, plan: &PlanView) -> String {
    let mut list = List::new(out, &["MACHINE", "GOES TO", "RUNS THERE", "AFTER"]);
    for step in &plan.steps {
        list.row(vec![
            Field::from(&step.vm),
            Field::from(&step.to),
            match step.why_not.as_str() {
                "" => Field::toned("yes", Tone::Good),
                why => Field::from(format!("no: {why}")),
            },
            Field::from(step.after.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ]);
    }
    for stays in &plan.unplaced {
        list.row(vec![
            Field::from(&stays.vm),
            Field::toned("nowhere", Tone::Bad),
            Field::toned(format!("no: {}", stays.why), Tone::Bad),
            Field::from(String::new()),
        ]);
    }
    for local in &plan.local {
        list.row(vec![
            Field::from(local),
            Field::toned("stays", Tone::Busy),
            Field::from(format!("only on {}: it is on its own disks", plan.node)),
            Field::from(String::new()),
        ]);
    }
    list.render("no machines have to go anywhere")
}
