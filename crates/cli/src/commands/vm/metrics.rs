//! `muster vm metrics`.

use api::endpoint::VmMetrics;
use api::history::Figure;
use api::history::MetricsQuery;
use api::history::MetricsView;
use api::history::SeriesView;
use api::model::Bytes;
use api::model::UnixMillis;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;
use crate::output::word;
use crate::parse;

/// Columns of a line that shows how a figure went.
const COURSE_COLUMNS: usize = 40;

/// Show what a machine used: processors, memory, disks, networks, and what it waited for.
///
/// Measured each second, and kept for a year at falling resolution.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm metrics web-1
  muster vm metrics web-1 --since 1d
  muster vm metrics web-1 --since 2h --resolution 10 --json | jq .series[0].mean")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    #[command(flatten)]
    time: Time,
}

/// Which time is meant.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Time {
    /// How far to look back, such as 10m, 2h or 30d.
    #[arg(long, value_name = "LENGTH", value_parser = parse::seconds, default_value = "10m")]
    since: u64,
    /// Seconds of one point: 1, 10, 60, 600 or 3600; the finest that is kept so long if left out.
    #[arg(long, value_name = "SECONDS")]
    resolution: Option<u64>,
}

impl Time {
    pub(crate) fn query(self) -> MetricsQuery {
        let now = time::now().get();
        let from = UnixMillis::new(now.saturating_sub(self.since.saturating_mul(1_000)));
        MetricsQuery { from: Some(from), to: None, resolution_s: self.resolution }
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let shown = context.query::<VmMetrics>(&[&args.vm], &args.time.query()).await?;
    context.out.reply(&shown, |view| render(&context.out, view))
}

/// Figures with how they went, oldest first.
pub(crate) fn render(out: &Output, view: &MetricsView) -> String {
    let mut list = List::new(out, &["FIGURE", "LAST", "MEAN", "PEAK", "HOW IT WENT"]);
    for series in &view.series {
        let last = series.mean.iter().rev().find_map(|it| *it);
        let peak = series.peak.iter().flatten().copied().reduce(f64::max);
        let told = |value: Option<f64>| {
            Field::from(value.map(|it| in_words(series.figure, it)).unwrap_or_default())
        };
        list.row(vec![
            Field::from(word(&series.figure).replace('_', " ")),
            told(last),
            told(mean(series.mean.iter().flatten())),
            told(peak),
            Field::from(course(series)),
        ]);
    }
    let mut text = list.render("nothing was measured in that time: it did not run\n");
    let silent: Vec<&str> = view.silent.iter().map(|name| name.as_str()).collect();
    if !silent.is_empty() {
        text.push_str(&format!("a part may be missing: no answer from {}\n", silent.join(", ")));
    }
    text
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes, not negative")]
fn in_words(figure: Figure, value: f64) -> String {
    let bytes = || Bytes::new(value.max(0.0) as u64);
    match figure {
        Figure::CpuPercent | Figure::CpuPressure | Figure::MemoryPressure | Figure::IoPressure => {
            format!("{value:.1} %")
        }
        Figure::Memory | Figure::MemoryDemand => rounded(bytes()),
        Figure::DiskRead | Figure::DiskWritten | Figure::NetReceived | Figure::NetSent => {
            format!("{}/s", rounded(bytes()))
        }
    }
}

/// As people say it: `Bytes` itself is exact.
fn rounded(bytes: Bytes) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let mut value = bytes.get() as f64;
    let mut unit = 0;
    while value >= 1_024.0 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    let places = usize::from(unit > 0 && value < 100.0);
    format!("{value:.places$} {}", UNITS[unit])
}

/// A line of blocks, each as high as the highest value of its part of the time; a gap is a space.
fn course(series: &SeriesView) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = series.peak.iter().flatten().copied().fold(0.0, f64::max);
    let chunk = series.peak.len().div_ceil(COURSE_COLUMNS).max(1);
    let block = |part: &[Option<f64>]| {
        let Some(value) = part.iter().flatten().copied().reduce(f64::max) else { return ' ' };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let height = if highest > 0.0 { (value / highest * 7.0).round() as usize } else { 0 };
        BLOCKS[height.min(BLOCKS.len() - 1)]
    };
    series.peak.chunks(chunk).map(block).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_in_their_units_with_their_course() {
        let peak = vec![None, Some(0.0), Some(50.0), Some(100.0)];
        let cpu = SeriesView { figure: Figure::CpuPercent, mean: peak.clone(), peak };
        assert_eq!(course(&cpu), " ▁▅█");
        assert_eq!(in_words(Figure::CpuPercent, 12.34), "12.3 %");
        assert_eq!(in_words(Figure::NetSent, 1_536.0), "1.5 KiB/s");
        assert_eq!(in_words(Figure::Memory, 0.0), "0 B");
        let view = MetricsView {
            series: vec![cpu],
            silent: vec!["h2".parse().unwrap()],
            ..MetricsView::default()
        };
        let text = render(&Output::plain(), &view);
        assert!(text.contains("cpu percent") && text.contains("50.0 %"), "{text}");
        assert!(text.contains("no answer from h2"), "{text}");
        assert!(render(&Output::plain(), &MetricsView::default()).contains("nothing was measured"));
    }
}
