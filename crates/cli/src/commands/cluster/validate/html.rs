//! The report as one HTML page: no scripts, nothing loaded, all text escaped.

use std::fmt::Display;
use std::fmt::Write;

use api::validate::ValidationReport;
use api::validate::Verdict;

use super::text::summary;
use crate::output::clean_line;
use crate::output::time::absolute;
use crate::output::word;

/// Says to a browser what the page is made of: text and this style, so that nothing that slipped in
/// could be run or loaded.
const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\">
<meta http-equiv=\"Content-Security-Policy\" \
content=\"default-src 'none'; style-src 'unsafe-inline'\">
<meta name=\"viewport\" content=\"width=device-width\">
<meta name=\"color-scheme\" content=\"light dark\">
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; width: 100%; margin: .5em 0 1.5em }
th, td { text-align: left; vertical-align: top; padding: .3em .6em; border-bottom: 1px solid #8884 }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.pass { color: #2a7a2a } .warn { color: #a06a00; font-weight: 600 }
.fail { color: #c02020; font-weight: 700 }
.advice { color: #777 }
</style>
";

/// Text as it stands in a page.
fn escape(text: impl Display) -> String {
    let text = clean_line(&text.to_string());
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

pub(super) fn render(report: &ValidationReport) -> String {
    let mut page = HEAD.to_owned();
    let title = match &report.cluster {
        Some(name) => format!("Validation of cluster {name}"),
        None => format!("Validation of host {}", report.asked_by),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<title>{0}</title></head><body>\n<h1>{0}</h1>\n<p>{1}</p>\n<p>Begun {2}, by Muster {3}. \
         Warnings stop nothing.</p>\n",
        escape(title),
        escape(summary(report)),
        escape(absolute(report.started)),
        escape(&report.version),
    );
    findings(&mut page, report);
    nodes(&mut page, report);
    disks(&mut page, report);
    links(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

fn findings(page: &mut String, report: &ValidationReport) {
    for check in &report.checks {
        let found: Vec<_> = report.findings.iter().filter(|it| it.check == *check).collect();
        if found.is_empty() {
            continue;
        }
        let _ = write!(page, "<h2>{}</h2>\n<table>\n", escape(check));
        for it in found {
            let word = match it.verdict {
                Verdict::Pass => "pass",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
            };
            let advice = match it.advice.as_str() {
                "" => String::new(),
                advice => format!("<br><span class=\"advice\">{}</span>", escape(advice)),
            };
            let _ = writeln!(
                page,
                "<tr><td class=\"{word}\">{word}</td><td>{}</td><td>{}{advice}</td></tr>",
                escape(&it.subject),
                escape(&it.text),
            );
        }
        page.push_str("</table>\n");
    }
}

fn table(page: &mut String, title: &str, header: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "<h2>{}</h2>\n<table>\n<tr>", escape(title));
    for title in header {
        let _ = write!(page, "<th>{}</th>", escape(title));
    }
    page.push_str("</tr>\n");
    for row in rows {
        page.push_str("<tr>");
        for field in row {
            let class = if field.parse::<i64>().is_ok() { " class=\"n\"" } else { "" };
            let field = if field.is_empty() { "-".to_owned() } else { field };
            let _ = write!(page, "<td{class}>{}</td>", escape(field));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

fn or_empty(value: Option<impl ToString>) -> String {
    value.map(|it| it.to_string()).unwrap_or_default()
}

fn nodes(page: &mut String, report: &ValidationReport) {
    let rows = report.nodes.iter().map(|it| {
        let addresses: Vec<_> = it
            .addresses
            .iter()
            .map(|it| format!("{} ({})", it.address, it.device.as_deref().unwrap_or("no device")))
            .collect();
        vec![
            it.node.clone(),
            if it.answered { "yes" } else { "no" }.to_owned(),
            it.muster.clone(),
            or_empty(it.qemu.as_ref()),
            it.kernel.clone(),
            format!("{} {}", it.cpu_vendor, it.cpu_model).trim().to_owned(),
            it.accelerator.map(|it| word(&it)).unwrap_or_default(),
            if it.answered { it.memory.to_string() } else { String::new() },
            or_empty(it.clock_ahead_ms),
            addresses.join(", "),
        ]
    });
    let header = [
        "node",
        "answered",
        "Muster",
        "QEMU",
        "kernel",
        "processor",
        "machines by",
        "memory",
        "clock ahead, ms",
        "addresses",
    ];
    table(page, "What the nodes are", &header, rows.collect());
}

fn disks(page: &mut String, report: &ValidationReport) {
    let rows = report.nodes.iter().flat_map(|node| {
        node.disks.iter().map(|it| {
            vec![
                node.node.clone(),
                it.place.clone(),
                it.path.clone(),
                it.filesystem.clone(),
                or_empty(it.device.as_ref()),
                or_empty(it.cache.as_ref()),
                it.flushes.to_string(),
                it.flush_median_us.to_string(),
                it.flush_p99_us.to_string(),
            ]
        })
    });
    let header = [
        "node",
        "place",
        "path",
        "file system",
        "device",
        "cache",
        "flushes",
        "median, us",
        "p99, us",
    ];
    table(page, "Disks", &header, rows.collect());
}

fn links(page: &mut String, report: &ValidationReport) {
    let rows = report.links.iter().map(|it| {
        vec![
            it.from.clone(),
            it.to.clone(),
            it.network.clone(),
            format!("{} of {}", it.answered, it.sent),
            it.min_us.to_string(),
            it.median_us.to_string(),
            it.p99_us.to_string(),
            it.jitter_us.to_string(),
            it.mtu.to_string(),
            or_empty(it.passed),
        ]
    });
    let header = [
        "from",
        "to",
        "network",
        "answered",
        "min, us",
        "median, us",
        "p99, us",
        "jitter, us",
        "MTU",
        "largest that arrived",
    ];
    table(page, "Ways between nodes", &header, rows.collect());
}

#[cfg(test)]
mod tests {
    use api::model::Bytes;
    use api::model::UnixMillis;
    use api::validate::Check;
    use api::validate::FindingView;
    use api::validate::Subject;
    use api::validate::ValidatedLinkView;
    use api::validate::ValidatedNodeView;

    use super::*;
    use crate::output::Output;

    const HOSTILE: &str =
        "<script>alert('x')</script>\" onload=\"y\u{202e}\u{1b}[2J &amp;\n</table>";

    fn report() -> ValidationReport {
        let text = || HOSTILE.to_owned();
        ValidationReport {
            started: UnixMillis::new(1_700_000_000_000),
            took_ms: 1_500,
            cluster: Some("lab".parse().unwrap()),
            asked_by: "n1".parse().unwrap(),
            version: text(),
            checks: Check::ALL.to_vec(),
            passed: 0,
            warned: 0,
            failed: 1,
            findings: vec![FindingView {
                check: Check::Nodes,
                subject: Subject::Volume { volume: text(), node: Some(text()) },
                verdict: Verdict::Fail,
                text: text(),
                advice: text(),
                measured: None,
            }],
            nodes: vec![ValidatedNodeView {
                node: text(),
                answered: true,
                muster: text(),
                qemu: Some(text()),
                kernel: text(),
                cpu_vendor: text(),
                cpu_model: text(),
                cpu_features: 1,
                accelerator: None,
                memory: Bytes::mib(1),
                clock_ahead_ms: Some(-3),
                addresses: Vec::new(),
                disks: Vec::new(),
            }],
            links: vec![ValidatedLinkView {
                from: text(),
                to: text(),
                network: text(),
                sent: 3,
                answered: 2,
                min_us: 1,
                median_us: 2,
                p99_us: 3,
                jitter_us: 1,
                mtu: 1_500,
                passed: None,
            }],
        }
    }

    #[test]
    fn words_of_nodes_are_text_and_nothing_else() {
        let page = render(&report());
        let lower = page.to_lowercase();
        for bad in ["<script", "onload=\"", "\u{202e}", "\u{1b}", "javascript:", "http://", "src="]
        {
            assert!(!lower.contains(bad), "{bad}");
        }
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;"));
        assert!(page.contains("&amp;amp;"), "what looks escaped is escaped once more");
        // Each tag that is opened by this page is closed by it.
        for tag in ["table", "tr", "td", "h2", "body", "html"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn the_page_shows_all_parts_of_the_report() {
        let page = render(&report());
        let parts =
            ["<td class=\"fail\">fail</td>", "What the nodes are", "Ways between nodes", "2 of 3"];
        for part in parts {
            assert!(page.contains(part), "{part}");
        }
        let text = super::super::text::render(&Output::plain(), &report());
        assert!(text.contains("FAIL") && text.contains("nothing to compare"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
