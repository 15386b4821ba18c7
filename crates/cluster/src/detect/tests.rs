//! What each channel says by itself and against the others.

use std::collections::BTreeSet;
use std::time::Duration;

use model::NodeId;
use uuid::Uuid;

use super::BadSettings;
use super::Detector;
use super::Heard;
use super::Path;
use super::Settings;
use super::Verdict;

const A: Path = Path(0);
const B: Path = Path(1);

fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Watch {
    detector: Detector,
    numbers: u64,
}

impl Watch {
    /// Node 1 watches nodes 2 and 3, from the tenth second of its clock on.
    fn new() -> Self {
        let mut detector = Detector::new(node(1), Settings::default()).unwrap();
        detector.members(ms(10_000), &BTreeSet::from([node(1), node(2), node(3)]));
        Self { detector, numbers: 0 }
    }

    fn heard(&mut self, at: u64, path: Path, from: u128, hears: &[u128]) -> bool {
        self.numbers += 1;
        let hears = hears.iter().map(|n| node(*n)).collect();
        let heard = Heard { from: node(from), incarnation: 1, number: self.numbers, hears };
        self.detector.heard(ms(at), path, heard)
    }

    fn verdict(&self, at: u64, n: u128) -> Verdict {
        self.detector.verdict(ms(at), node(n))
    }

    /// Both others are heard, and both beat, until that time.
    fn run_until(&mut self, end: u64) {
        for at in (10_000..=end).step_by(100) {
            self.heard(at, A, 2, &[1, 3]);
            self.heard(at, A, 3, &[1, 2]);
            self.beat(at, 2, Some(at / 500));
            self.beat(at, 3, Some(at / 500));
        }
    }

    fn beat(&mut self, at: u64, n: u128, counter: Option<u64>) {
        self.detector.beat(ms(at), node(n), counter);
    }
}

#[test]
fn silence_on_every_channel_is_death() {
    let mut watch = Watch::new();
    watch.run_until(20_000);
    for at in (20_100..30_000).step_by(100) {
        watch.heard(at, A, 3, &[1]);
        let verdict = watch.verdict(at, 2);
        match at {
            ..21_000 => assert_eq!(verdict, Verdict::Alive, "at {at}"),
            21_000..21_500 => assert_eq!(verdict, Verdict::Silent { since: ms(20_000) }, "at {at}"),
            _ => assert_eq!(verdict, Verdict::Dead { since: ms(20_000) }, "at {at}"),
        }
        assert_eq!(watch.verdict(at, 3), Verdict::Alive);
    }
}

#[test]
fn a_node_that_beats_is_only_cut_off() {
    let mut watch = Watch::new();
    watch.run_until(20_000);
    for at in (20_100..300_000).step_by(100) {
        watch.heard(at, A, 3, &[1]);
        watch.beat(at, 2, Some(at / 500));
        match watch.verdict(at, 2) {
            Verdict::Dead { .. } => panic!("it beats, at {at}"),
            Verdict::Isolated { since, over } => {
                assert_eq!(since, ms(20_000));
                assert_eq!(over, at >= 260_000, "at {at}");
            }
            Verdict::Silent { .. } | Verdict::Alive => assert!(at < 21_100, "at {at}"),
        }
    }
}

#[test]
fn an_isolated_node_that_loses_power_is_dead() {
    let mut watch = Watch::new();
    watch.run_until(20_000);
    for at in (20_100..30_000).step_by(100) {
        watch.heard(at, A, 3, &[1]);
        watch.beat(at, 2, Some(at / 500));
    }
    assert!(matches!(watch.verdict(29_900, 2), Verdict::Isolated { .. }));
    watch.heard(31_600, A, 3, &[1]);
    assert!(matches!(watch.verdict(31_600, 2), Verdict::Dead { .. }));
}

#[test]
fn a_node_that_others_hear_is_alive() {
    let mut watch = Watch::new();
    watch.run_until(20_000);
    for at in (20_100..40_000).step_by(100) {
        watch.heard(at, A, 3, &[1, 2]);
        assert_eq!(watch.verdict(at, 2), Verdict::Alive, "at {at}");
    }
    // What a node hears that is not heard any more says nothing.
    assert!(matches!(watch.verdict(42_000, 2), Verdict::Dead { .. }));
    assert!(matches!(watch.verdict(42_000, 3), Verdict::Dead { .. }));
}

#[test]
fn the_loss_of_one_network_changes_nothing() {
    let mut watch = Watch::new();
    for at in (10_000..40_000).step_by(200) {
        if at < 20_000 {
            watch.heard(at, A, 2, &[1]);
        }
        watch.heard(at, B, 2, &[1]);
        assert_eq!(watch.verdict(at, 2), Verdict::Alive);
    }
    let paths = watch.detector.paths(node(2));
    assert_eq!((paths[&A], paths[&B]), (ms(19_800), ms(39_800)));
}

#[test]
fn without_a_volume_silence_is_death_at_once() {
    let mut watch = Watch::new();
    watch.heard(10_000, A, 2, &[]);
    assert_eq!(watch.verdict(10_900, 2), Verdict::Alive);
    assert!(matches!(watch.verdict(11_000, 2), Verdict::Dead { .. }));
}

#[test]
fn an_old_beat_that_is_read_for_the_first_time_is_no_sign_of_life() {
    let mut watch = Watch::new();
    watch.heard(10_000, A, 2, &[]);
    watch.beat(11_000, 2, Some(77));
    watch.beat(11_500, 2, Some(77));
    assert!(matches!(watch.verdict(11_600, 2), Verdict::Dead { .. }));
    // It changes: somebody is there.
    watch.beat(11_700, 2, Some(78));
    assert!(matches!(watch.verdict(11_800, 2), Verdict::Isolated { .. }));
}

#[test]
fn a_beat_that_was_read_once_has_time_to_change() {
    let mut watch = Watch::new();
    watch.heard(10_000, A, 2, &[]);
    // The volume came a moment ago.
    watch.beat(10_900, 2, Some(1));
    assert_eq!(watch.verdict(11_100, 2), Verdict::Silent { since: ms(10_000) });
    assert!(matches!(watch.verdict(11_500, 2), Verdict::Dead { .. }));
    watch.beat(11_400, 2, Some(2));
    assert!(matches!(watch.verdict(11_500, 2), Verdict::Isolated { .. }));
}

#[test]
fn a_new_node_has_time_to_be_heard() {
    let mut watch = Watch::new();
    watch.detector.members(ms(50_000), &BTreeSet::from([node(1), node(4)]));
    assert_eq!(watch.verdict(50_900, 4), Verdict::Alive);
    assert!(matches!(watch.verdict(51_000, 4), Verdict::Dead { .. }));
    assert!(!watch.heard(51_000, A, 2, &[]), "node 2 is no member any more");
}

#[test]
fn an_old_copy_of_a_heartbeat_is_dropped() {
    let mut watch = Watch::new();
    let heartbeat =
        |incarnation, number| Heard { from: node(2), incarnation, number, hears: BTreeSet::new() };
    assert!(watch.detector.heard(ms(10_000), A, heartbeat(7, 5)));
    assert!(watch.detector.heard(ms(10_000), B, heartbeat(7, 5)), "the other network's");
    assert!(!watch.detector.heard(ms(10_900), A, heartbeat(7, 4)));
    assert!(watch.detector.heard(ms(10_950), A, heartbeat(8, 1)), "its daemon was started again");
}

#[test]
fn settings_that_would_kill_the_living_are_refused() {
    let settings = Settings::default();
    let bad = [
        (Settings { heartbeat_every: ms(1), ..settings }, BadSettings::Heartbeat),
        (Settings { silent_after: ms(500), ..settings }, BadSettings::Silence),
        (Settings { beatless_after: ms(900), ..settings }, BadSettings::Beats),
    ];
    for (settings, error) in bad {
        assert_eq!(Detector::new(node(1), settings).err(), Some(error));
    }
}
