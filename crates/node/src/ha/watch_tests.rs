use std::sync::Arc;

use model::NodeRecord;
use model::UnixMillis;
use uuid::Uuid;

use super::*;

fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn state() -> ClusterState {
    let mut state = ClusterState::default();
    for n in [1, 2] {
        let name = format!("h{n}").parse().unwrap();
        let record = NodeRecord::new(node(n), name, UnixMillis::new(0));
        state.nodes.insert(node(n), Arc::new(record));
    }
    state
}

/// Times long enough that a busy machine does not matter.
fn watch(silent_ms: u64) -> Watch {
    let settings = Settings {
        silent_after: Duration::from_millis(silent_ms),
        beatless_after: Duration::from_mins(10),
        beat_every: Duration::from_mins(3),
        ..Settings::default()
    };
    Watch::new(node(1), settings).unwrap()
}

fn wait_for(watch: &Watch, wanted: impl Fn(Verdict) -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !wanted(watch.look(&state())[&node(2)]) {
        assert!(Instant::now() < until, "it is {:?}", watch.verdict(node(2)));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_beat_that_changes_on_any_volume_is_a_sign_of_life() {
    let watch = watch(1_000);
    let volume = |n| VolumeId::new(Uuid::from_u128(n));
    watch.look(&state());
    watch.beats(volume(1), &[(node(2), 5)], Instant::now());
    watch.beats(volume(2), &[(node(2), 9)], Instant::now());
    // Read again and the same: no beat. Unequal counters of two volumes are none either.
    watch.beats(volume(1), &[(node(2), 5)], Instant::now());
    wait_for(&watch, |verdict| matches!(verdict, Verdict::Dead { .. } | Verdict::Silent { .. }));
    watch.beats(volume(2), &[(node(2), 10)], Instant::now());
    wait_for(&watch, |verdict| matches!(verdict, Verdict::Isolated { .. }));
}

#[test]
fn who_did_not_look_does_not_call_others_dead() {
    let watch = watch(1_000);
    watch.look(&state());
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(watch.look(&state())[&node(2)], Verdict::Alive);
}
