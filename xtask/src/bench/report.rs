//! What a bench found: a table for people, `target/bench/NAME.json` for programs.
//!
//! The file is a list of `{metric, value, unit, target, met, peer}`. A target is the most that the
//! value may be; `met` says whether it is. `peer` is the same figure of what it is compared with
//! (raw QEMU), in the same unit. Rows without a target say what was run and what else was seen.

use std::fs;

use anyhow::Context;
use anyhow::Result;
use serde::Serialize;

use crate::run::target;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    metric: String,
    value: f64,
    unit: &'static str,
    target: Option<f64>,
    met: Option<bool>,
    peer: Option<f64>,
}

/// The figures of one run.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Something that has no target.
    pub(super) fn note(&mut self, metric: impl Into<String>, value: f64, unit: &'static str) {
        self.push(metric.into(), value, unit, None, None);
    }

    /// Something that may be at most so much.
    pub(super) fn at_most(
        &mut self,
        metric: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: f64,
    ) {
        self.push(metric.into(), value, unit, Some(target), None);
    }

    /// Something and the same of a peer, with the most that it may be.
    pub(super) fn within(
        &mut self,
        metric: impl Into<String>,
        value: f64,
        unit: &'static str,
        peer: f64,
        target: f64,
    ) {
        self.push(metric.into(), value, unit, Some(target), Some(peer));
    }

    /// Something and the same of a peer, with the most that it may be of the peer's.
    pub(super) fn against(
        &mut self,
        metric: &str,
        value: f64,
        unit: &'static str,
        peer: f64,
        ratio_max: f64,
    ) {
        self.beside(metric, value, unit, peer);
        self.push(format!("{metric}, ratio"), value / peer, "x", Some(ratio_max), Some(1.0));
    }

    /// Something and the same of a peer, without a target.
    pub(super) fn beside(
        &mut self,
        metric: impl Into<String>,
        value: f64,
        unit: &'static str,
        peer: f64,
    ) {
        self.push(metric.into(), value, unit, None, Some(peer));
    }

    fn push(
        &mut self,
        metric: String,
        value: f64,
        unit: &'static str,
        target: Option<f64>,
        peer: Option<f64>,
    ) {
        let met = target.map(|target| value <= target);
        let row = Row { metric, value, unit, target, met, peer };
        println!("  {}", line(&row));
        self.rows.push(row);
    }

    /// Prints the table and writes the file. The metrics whose targets were missed.
    pub(super) fn finish(&self, name: &str) -> Result<Vec<String>> {
        println!("\n{}", self.table());
        let dir = target().join("bench");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_string_pretty(&self.rows)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        Ok(self.missed())
    }

    /// The metrics whose targets were missed so far.
    pub(super) fn missed(&self) -> Vec<String> {
        self.rows.iter().filter(|row| row.met == Some(false)).map(line).collect()
    }

    fn table(&self) -> String {
        let head = ["metric", "value", "target", "peer", "met"].map(str::to_owned);
        let mut lines = vec![head];
        lines.extend(self.rows.iter().map(cells));
        let width = |column: usize| {
            lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..5).map(width).collect();
        let mut text = String::new();
        for cells in &lines {
            let [metric, value, target, peer, met] = cells;
            let [a, b, c, d, _] = widths[..] else { continue };
            text += &format!("{metric:<a$}  {value:>b$}  {target:>c$}  {peer:>d$}  {met}\n");
        }
        text
    }
}

fn cells(row: &Row) -> [String; 5] {
    let number = |value: Option<f64>| value.map_or_else(String::new, |it| figure(it, row.unit));
    let met = match row.met {
        None => "",
        Some(true) => "yes",
        Some(false) => "NO",
    };
    let target = row.target.map_or_else(String::new, |it| format!("<= {}", figure(it, row.unit)));
    [row.metric.clone(), number(Some(row.value)), target, number(row.peer), met.to_owned()]
}

fn line(row: &Row) -> String {
    let [metric, value, target, peer, met] = cells(row);
    let mut line = format!("{metric}: {value}");
    if !peer.is_empty() {
        line += &format!(", peer {peer}");
    }
    if !target.is_empty() {
        line += &format!(" ({target}: {met})");
    }
    line
}

fn figure(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        it if it.fract() == 0.0 => 0,
        it if it < 10.0 => 2,
        it if it < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// The value that this share (0 to 1) of all values does not exceed, by nearest rank.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The middle value, by nearest rank.
pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::Report;
    use super::quantile;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 198.0);
        assert_eq!(quantile(&values, 0.5), 100.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_value_at_its_target_meets_it_and_nothing_does_not() {
        let mut report = Report::default();
        report.at_most("a", 5.0, "s", 5.0);
        report.at_most("b", f64::NAN, "s", 5.0);
        report.against("c", 1.2, "s", 1.0, 1.1);
        let met: Vec<_> = report.rows.iter().map(|row| row.met).collect();
        assert_eq!(met, [Some(true), Some(false), None, Some(false)]);
        assert!(report.table().contains("c, ratio"));
    }
}
