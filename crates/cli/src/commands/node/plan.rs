//! How plans are shown.

use api::ha::EstimateView;
use api::ha::PlanView;
use api::model::Name;

use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time::length;

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
    let mut text = list.render("no machines have to go anywhere");
    if let Some(estimate) = &plan.estimate {
        text.push('\n');
        text.push_str(self::estimate(estimate).trim_end());
    }
    text
}

/// How long it will take, in words.
pub(crate) fn estimate(estimate: &EstimateView) -> String {
    let mut text = String::new();
    let known = estimate.vms.saturating_sub(estimate.unknown.len() as u64);
    if known > 0 {
        let machines = if known == 1 { "machine" } else { "machines" };
        let total = length(estimate.total_ms);
        text.push_str(&format!(
            "{known} running {machines}: about {total}, by what was measured now\n"
        ));
    }
    let named =
        |names: &[Name]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !estimate.slow.is_empty() {
        let slow = named(&estimate.slow);
        text.push_str(&format!(
            "change their memory faster than it can be sent, and stand longer: {slow}\n"
        ));
    }
    if !estimate.unknown.is_empty() {
        text.push_str(&format!("not measured: {}\n", named(&estimate.unknown)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_says_what_it_knows_and_what_not() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let all = EstimateView {
            vms: 4,
            total_ms: 72_000,
            slow: vec![name("db-1")],
            unknown: vec![name("web-9")],
        };
        assert_eq!(
            estimate(&all),
            "3 running machines: about 72 s, by what was measured now\n\
             change their memory faster than it can be sent, and stand longer: db-1\n\
             not measured: web-9\n"
        );
        assert_eq!(estimate(&EstimateView::default()), "");
    }
}
