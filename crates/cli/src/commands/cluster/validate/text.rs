//! The report as text: a group for each check, the worst first.

use std::fmt::Write;

use api::validate::ValidationReport;
use api::validate::Verdict;

use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;
use crate::output::time::length;

/// One line that says it all.
pub(super) fn summary(report: &ValidationReport) -> String {
    let what = match &report.cluster {
        Some(name) => format!("cluster {}", clean_line(name.as_str())),
        None => format!("host {}", clean_line(report.asked_by.as_str())),
    };
    let silent = report.nodes.iter().filter(|node| !node.answered).count();
    let silent = if silent == 0 { String::new() } else { format!(", {silent} silent") };
    format!(
        "{what}: {} failed, {} to be looked at, {} as they should be ({} nodes{silent}, asked by {}, \
         {})",
        report.failed,
        report.warned,
        report.passed,
        report.nodes.len(),
        clean_line(report.asked_by.as_str()),
        length(report.took_ms),
    )
}

pub(super) fn render(out: &Output, report: &ValidationReport) -> String {
    let mut text = summary(report);
    text.push('\n');
    for check in &report.checks {
        let found = report.findings.iter().filter(|found| found.check == *check);
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{check}\n");
        let mut some = false;
        for found in found {
            some = true;
            let (tone, word) = match found.verdict {
                Verdict::Pass => (Tone::Good, "pass"),
                Verdict::Warn => (Tone::Busy, "warn"),
                Verdict::Fail => (Tone::Bad, "FAIL"),
            };
            let subject = clean_line(&found.subject.to_string());
            let said = clean_line(&found.text);
            let _ = writeln!(text, "  {}  {subject}: {said}", out.paint(tone, word));
            if !found.advice.is_empty() {
                let advice = format!("-> {}", clean_line(&found.advice));
                let _ = writeln!(text, "        {}", out.paint(Tone::Faint, &advice));
            }
        }
        if !some {
            let _ = writeln!(text, "  {}", out.paint(Tone::Faint, "nothing to compare"));
        }
    }
    text.trim_end().to_owned()
}
