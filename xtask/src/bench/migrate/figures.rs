//! The figures of all guests and variants, their medians, and what Muster's may be of raw QEMU's.

use super::Kind;
use super::Variant;
use super::passage::Passage;
use super::passage::Predicted;
use crate::bench::report::Report;
use crate::bench::report::median;
use crate::bench::report::quantile;

/// Muster's blackout may be so much longer than that of raw QEMU at its best, in ms.
const BLACKOUT_MORE_MS: f64 = 10.0;

/// And so much of that of raw QEMU as it comes, where the guest is loaded.
const BLACKOUT_SHARE: f64 = 0.5;

/// The whole command may take so much longer than raw QEMU's migration at its best, in ms: it also
/// prepares the destination and agrees on the owner.
const TOTAL_MORE_MS: f64 = 300.0;

/// A prediction may be wrong by this share, or by so many ms.
const PREDICTED_SHARE: f64 = 0.2;
const PREDICTED_MS: f64 = 20.0;

/// All migrations of a run; those that did not converge are none.
#[derive(Debug, Default)]
pub(super) struct Figures {
    all: Vec<(Kind, Variant, Vec<Option<Passage>>)>,
}

impl Figures {
    pub(super) fn add(&mut self, kind: Kind, variant: Variant, passage: Option<Passage>) {
        let found = self.all.iter_mut().find(|it| it.0.name == kind.name && it.1 == variant);
        match found {
            Some((_, _, passages)) => passages.push(passage),
            None => self.all.push((kind, variant, vec![passage])),
        }
    }

    /// Medians and targets.
    pub(super) fn report(&self, report: &mut Report) {
        println!("\nMedians");
        for (kind, variant, passages) in &self.all {
            let what = format!("{}, {}", kind.name, variant.name());
            let done: Vec<&Passage> = passages.iter().flatten().collect();
            report.note(format!("{what}: completed of {}", passages.len()), done.len() as f64, "");
            if done.is_empty() {
                continue;
            }
            let of = |figure: fn(&Passage) -> f64| median_of(&done, figure);
            report.note(format!("{what}: total"), of(|it| it.done.total_ms), "ms");
            report.note(format!("{what}: blackout"), of(|it| it.blackout_ms), "ms");
            // What a machine that others use, too, disturbs least.
            let least = least_of(&done, |it| it.blackout_ms);
            report.note(format!("{what}: blackout, least"), least, "ms");
            report.note(format!("{what}: noise before"), of(|it| it.noise_ms), "ms");
            report.note(format!("{what}: claimed pause"), of(|it| it.done.pause_ms), "ms");
            report.note(format!("{what}: on the wire"), of(|it| it.done.mib), "MiB");
            report.note(format!("{what}: passes"), of(|it| it.done.passes), "");
            report.note(format!("{what}: dirtied before"), of(|it| it.dirtied_mib_s), "MiB/s");
            if *variant == Variant::Muster {
                report.note(format!("{what}: whole command"), of(|it| it.done.wall_ms), "ms");
                predictions(report, &what, &done);
                self.targets(report, *kind, &done);
            }
        }
    }

    /// Against raw QEMU of the same run.
    fn targets(&self, report: &mut Report, kind: Kind, muster: &[&Passage]) {
        let blackout = |it: &Passage| it.blackout_ms;
        let best = self.completed(kind, Variant::Best);
        if !best.is_empty() {
            let own = median_of(muster, blackout);
            let peer = median_of(&best, blackout);
            let metric = format!("{}: blackout, against raw best", kind.name);
            report.within(metric, own, "ms", peer, peer + BLACKOUT_MORE_MS);
            let own = median_of(muster, |it| it.done.wall_ms);
            let peer = median_of(&best, |it| it.done.wall_ms);
            let metric = format!("{}: whole command, against raw best", kind.name);
            report.within(metric, own, "ms", peer, peer + TOTAL_MORE_MS);
            let own = median_of(muster, |it| it.done.mib);
            let peer = median_of(&best, |it| it.done.mib);
            let metric = format!("{}: on the wire, against raw best", kind.name);
            report.within(metric, own, "MiB", peer, peer);
        }
        let defaults = self.completed(kind, Variant::Defaults);
        // Where raw QEMU never completes by default, there is nothing to be better than.
        if kind.is_loaded() && !defaults.is_empty() {
            let (own, peer) = (median_of(muster, blackout), median_of(&defaults, blackout));
            let metric = format!("{}: blackout, against raw defaults", kind.name);
            report.within(metric, own, "ms", peer, BLACKOUT_SHARE * peer);
        }
    }

    fn completed(&self, kind: Kind, variant: Variant) -> Vec<&Passage> {
        let same = self.all.iter().filter(|it| it.0.name == kind.name && it.1 == variant);
        same.flat_map(|it| it.2.iter().flatten()).collect()
    }

    /// A line of medians for each guest and variant, and the least blackout.
    pub(super) fn table(&self) -> String {
        let mut text =
            "| guest | who | total ms | command ms | blackout ms | MiB | passes | done |\n\
                        | --- | --- | --- | --- | --- | --- | --- | --- |\n"
                .to_owned();
        for (kind, variant, passages) in &self.all {
            let done: Vec<&Passage> = passages.iter().flatten().collect();
            let of = |figure: fn(&Passage) -> f64| match done.is_empty() {
                true => "-".to_owned(),
                false => format!("{:.0}", median_of(&done, figure)),
            };
            let least = match done.is_empty() {
                true => "-".to_owned(),
                false => format!("{:.0}", least_of(&done, |it| it.blackout_ms)),
            };
            text += &format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {}/{} |\n",
                kind.name,
                variant.name(),
                of(|it| it.done.total_ms),
                of(|it| it.done.wall_ms),
                of(|it| it.blackout_ms),
                least,
                of(|it| it.done.mib),
                of(|it| it.done.passes),
                done.len(),
                passages.len(),
            );
        }
        text
    }
}

/// How far what was said before is from what came.
fn predictions(report: &mut Report, what: &str, done: &[&Passage]) {
    let pairs = |predicted: fn(&Predicted) -> f64, measured: fn(&Passage) -> f64| {
        let pairs = done.iter().filter_map(|it| {
            let came = measured(it);
            Some(((predicted(it.done.predicted.as_ref()?) - came).abs(), came))
        });
        let (wrong, came): (Vec<f64>, Vec<f64>) = pairs.unzip();
        (median(&wrong), (PREDICTED_SHARE * median(&came)).max(PREDICTED_MS))
    };
    let (wrong, allowed) = pairs(|it| it.total_ms, |it| it.done.total_ms);
    report.at_most(format!("{what}: prediction of the total wrong by"), wrong, "ms", allowed);
    let (wrong, allowed) = pairs(|it| it.pause_ms, |it| it.done.pause_ms);
    report.at_most(format!("{what}: prediction of the pause wrong by"), wrong, "ms", allowed);
}

fn median_of(passages: &[&Passage], figure: impl Fn(&Passage) -> f64) -> f64 {
    median(&passages.iter().map(|it| figure(it)).collect::<Vec<_>>())
}

fn least_of(passages: &[&Passage], figure: impl Fn(&Passage) -> f64) -> f64 {
    quantile(&passages.iter().map(|it| figure(it)).collect::<Vec<_>>(), 0.0)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::Figures;
    use crate::bench::migrate::GUESTS;
    use crate::bench::migrate::Variant;
    use crate::bench::migrate::passage::Done;
    use crate::bench::migrate::passage::Passage;
    use crate::bench::migrate::passage::Predicted;
    use crate::bench::report::Report;

    fn passage(total_ms: f64, blackout_ms: f64) -> Passage {
        let predicted = Some(Predicted { total_ms: total_ms + 30.0, pause_ms: 9.0 });
        let done = Done {
            ended: Instant::now(),
            total_ms,
            wall_ms: total_ms + 40.0,
            pause_ms: 10.0,
            mib: 100.0,
            passes: 3.0,
            predicted,
        };
        Passage { done, blackout_ms, noise_ms: 8.0, dirtied_mib_s: 50.0 }
    }

    #[test]
    fn targets_are_of_raw_qemu_in_the_same_run() {
        let mut figures = Figures::default();
        figures.add(GUESTS[1], Variant::Defaults, Some(passage(2000.0, 110.0)));
        figures.add(GUESTS[1], Variant::Best, Some(passage(150.0, 40.0)));
        figures.add(GUESTS[1], Variant::Muster, Some(passage(300.0, 51.0)));
        figures.add(GUESTS[2], Variant::Defaults, None);
        let mut report = Report::default();
        figures.report(&mut report);
        let missed = report.missed().join("\n");
        assert!(missed.starts_with("d50: blackout, against raw best: 51 ms"), "{missed}");
        assert_eq!(missed.lines().count(), 1, "{missed}");
        let table = figures.table();
        assert!(table.contains("| d400 | raw defaults | - | - | - | - | - | - | 0/1 |"), "{table}");
        assert!(
            table.contains("| d50 | Muster | 300 | 340 | 51 | 51 | 100 | 3 | 1/1 |"),
            "{table}"
        );
    }
}
