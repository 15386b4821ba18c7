//! `cargo xtask bench volume`: what the mount point of a shared volume costs beside the raw device path,
//! on the coordinator and on another node. The load and the LUN: `crates/volume/benches/figures.rs`.

use std::collections::BTreeMap;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;

use super::process;
use super::report::Report;
use crate::install;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::quiet;

/// Shares of the raw path's rate (issue "Cluster Shared Volumes"), and what is added at depth 1.
const SEQUENTIAL_SHARE: f64 = 0.85;
const DEPTH_SHARE: f64 = 0.6;
const ADDED_MICROSECONDS: f64 = 15.0;
const GROWTH_SHARE: f64 = 0.8;

/// Options of `cargo xtask bench volume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Milliseconds of each turn; sixty turns of each place and load follow each other.
    #[arg(long, default_value_t = 20)]
    slice: u64,
}

/// A line of the bench's.
#[derive(Debug, Deserialize)]
struct Figure {
    place: String,
    what: String,
    microseconds: Option<f64>,
    /// In a good round: what it would be on a machine that does nothing else.
    good: Option<f64>,
    flushes: Option<f64>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("mounts need root: sudo -E cargo xtask bench volume");
    }
    install::run()?;
    println!("Load average {:.1}", process::load());
    let slice = args.slice.to_string();
    let bench = ["bench", "--quiet", "--package", "volume", "--bench", "figures", "--", &slice];
    let text = quiet(cmd("cargo", bench))?;
    let mut report = Report::default();
    report.note("load average after it", process::load(), "");
    let mut figures = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let figure: Figure = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if let Some(flushes) = figure.flushes {
            report.note(
                format!("{}: flushes of 200 that reached the LUN", figure.place),
                flushes,
                "",
            );
        }
        if let Some(good) = figure.good {
            let what = format!("{}, {}: in a good round", figure.what, figure.place);
            report.note(what, good, "us");
        }
        if let Some(microseconds) = figure.microseconds {
            figures.insert((figure.what, figure.place), microseconds);
        }
    }
    compare(&figures, &mut report)?;
    let missed = report.finish("volume")?;
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

fn compare(figures: &BTreeMap<(String, String), f64>, report: &mut Report) -> Result<()> {
    ensure!(!figures.is_empty(), "the bench has said nothing");
    for ((what, place), value) in figures.iter().filter(|((_, place), _)| place != "raw") {
        let of = |what: &str, place: &str| {
            let found = figures.get(&(what.to_owned(), place.to_owned()));
            found.copied().with_context(|| format!("no figure for {what} at {place}"))
        };
        let (peer, most) = if what.ends_with("new space") {
            let over = of("1 MiB sequential write over it", place)?;
            (over, over / GROWTH_SHARE)
        } else {
            let raw = of(what, "raw")?;
            let most = match what {
                it if it.ends_with("depth 1") => raw + ADDED_MICROSECONDS,
                it if it.ends_with("depth 16") => raw / DEPTH_SHARE,
                _ => raw / SEQUENTIAL_SHARE,
            };
            (raw, most)
        };
        report.within(format!("{what}, {place}"), *value, "us", peer, most);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::report::Report;

    #[test]
    fn each_place_is_held_against_raw_and_growth_against_itself() {
        let mut figures = BTreeMap::new();
        let mut put = |what: &str, place: &str, value| {
            figures.insert((what.to_owned(), place.to_owned()), value);
        };
        for (place, value) in [("raw", 10.0), ("coordinator", 24.0), ("other node", 26.0)] {
            put("4 KiB random read, depth 1", place, value);
            put("1 MiB sequential write over it", place, 100.0);
            put("1 MiB sequential write into new space", place, 124.0);
        }
        let mut report = Report::default();
        super::compare(&figures, &mut report).unwrap();
        let missed = report.missed();
        assert_eq!(missed.len(), 1, "{missed:?}");
        assert!(missed[0].contains("other node") && missed[0].contains("depth 1"), "{missed:?}");
    }
}
