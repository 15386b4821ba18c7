//! The node's side, case by case; what no sequence can break is in `props`.

use std::time::Duration;

use super::BootTime;
use super::Grant;
use super::GrantKey;
use super::LeaseGrant;
use super::Mode;
use super::NodeLease;
use super::NotTaken;
use super::Stage;
use super::machine::EndAll;

fn at(ms: u64) -> BootTime {
    BootTime::from_nanos(ms * 1_000_000)
}

/// A lease of nine seconds, asked for at `sent`.
fn grant(seq: u64, epoch: u64, mode: Mode, sent: u64) -> Grant {
    let key = GrantKey { term: 1, seq };
    Grant {
        lease: LeaseGrant { key, epoch, mode, lease_ms: 9_000, watchdog_ms: 4_000 },
        sent: at(sent),
    }
}

fn stage(lease: &mut NodeLease, ms: u64, populated: bool) -> (Stage, bool, bool) {
    let wanted = lease.wanted(at(ms), populated);
    (wanted.stage, wanted.frozen, wanted.kill)
}

#[test]
fn frozen_at_two_thirds_killed_at_the_end_counted_from_the_request() {
    let mut lease = NodeLease::default();
    assert_eq!(stage(&mut lease, 0, true), (Stage::Blocked, true, false));
    // The answer took three seconds.
    lease.take(at(3_000), grant(1, 0, Mode::SelfFence, 0), false).unwrap();
    assert_eq!(stage(&mut lease, 5_999, true), (Stage::Open, false, false));
    assert_eq!(lease.wanted(at(5_999), true).until, Some(at(6_000)));
    assert_eq!(stage(&mut lease, 6_000, true), (Stage::Frozen, true, false));
    assert_eq!(stage(&mut lease, 8_999, true), (Stage::Frozen, true, false));
    assert_eq!(stage(&mut lease, 9_000, true), (Stage::Ended, true, true));
    // A process that came late into the group of a lease that is over.
    assert_eq!(stage(&mut lease, 20_000, false), (Stage::Ended, true, false));
    assert_eq!(stage(&mut lease, 20_001, true), (Stage::Ended, true, true));
}

#[test]
fn a_renewal_thaws_and_after_the_end_only_with_nothing_left() {
    let mut lease = NodeLease::default();
    lease.take(at(0), grant(1, 0, Mode::SelfFence, 0), false).unwrap();
    assert_eq!(stage(&mut lease, 7_000, true).0, Stage::Frozen);
    lease.take(at(7_100), grant(2, 0, Mode::SelfFence, 7_000), true).unwrap();
    assert_eq!(stage(&mut lease, 7_100, true), (Stage::Open, false, false));
    assert_eq!(stage(&mut lease, 16_000, true).0, Stage::Ended);
    lease.take(at(16_200), grant(3, 0, Mode::SelfFence, 16_100), true).unwrap();
    assert_eq!(stage(&mut lease, 16_200, true), (Stage::Ended, true, true), "one does not die");
    assert_eq!(stage(&mut lease, 16_300, false), (Stage::Open, false, false));
}

#[test]
fn nothing_is_stopped_for_a_lost_lease_where_proof_is_needed() {
    for mode in [Mode::Proof, Mode::Unlimited] {
        let mut lease = NodeLease::default();
        let grant = grant(1, 0, mode, 0);
        lease.take(at(0), grant, false).unwrap();
        assert_eq!(stage(&mut lease, 1_000_000, true), (Stage::Open, false, false));
        assert_eq!(lease.wanted(at(1_000_000), true).watchdog, None);
        assert_eq!(grant.may_start(at(9_000)), mode == Mode::Unlimited);
        assert!(grant.may_start(at(8_999)));
    }
}

#[test]
fn grants_that_must_not_count() {
    let mut lease = NodeLease::default();
    let sf = Mode::SelfFence;
    assert_eq!(lease.take(at(5), grant(1, 0, sf, 6), false), Err(NotTaken::Future));
    assert_eq!(lease.take(at(9_000), grant(1, 0, sf, 0), false), Err(NotTaken::Over));
    assert_eq!(lease.take(at(9_000), grant(1, 0, Mode::Unlimited, 0), false), Err(NotTaken::Over));
    lease.take(at(10), grant(5, 3, sf, 0), false).unwrap();
    assert_eq!(lease.take(at(20), grant(5, 3, sf, 15), false), Err(NotTaken::Older));
    assert_eq!(lease.take(at(20), grant(4, 3, Mode::Proof, 15), false), Err(NotTaken::Older));
    let old = NotTaken::OldEpoch { its: 2, ours: 3 };
    assert_eq!(lease.take(at(20), grant(6, 2, sf, 15), false), Err(old));
    for lease_ms in [0, 1, 1_999, 120_001, u64::MAX] {
        let mut wrong = grant(7, 3, sf, 15);
        wrong.lease.lease_ms = lease_ms;
        assert_eq!(lease.take(at(20), wrong, false), Err(NotTaken::Impossible(lease_ms)));
    }
}

#[test]
fn a_fenced_node_ends_its_machines_before_its_new_epoch_begins() {
    let mut lease = NodeLease::default();
    lease.take(at(0), grant(1, 0, Mode::Proof, 0), false).unwrap();
    let first = Err(NotTaken::EndMachinesFirst { epoch: 1 });
    assert_eq!(lease.take(at(10), grant(2, 1, Mode::Proof, 5), true), first);
    assert_eq!(lease.end_all(1, true), EndAll::UnderWay);
    assert_eq!(stage(&mut lease, 20, true), (Stage::Clearing, true, true));
    let old = NotTaken::OldEpoch { its: 0, ours: 1 };
    assert_eq!(lease.take(at(20), grant(3, 0, Mode::Proof, 5), true), Err(old));
    assert_eq!(lease.take(at(20), grant(2, 1, Mode::Proof, 5), true), first);
    // All dead: closed until there is a grant for the new epoch.
    assert_eq!(stage(&mut lease, 30, false), (Stage::Blocked, true, false));
    assert_eq!(lease.end_all(1, true), EndAll::Done);
    assert_eq!(lease.end_all(0, true), EndAll::Older);
    lease.take(at(40), grant(2, 1, Mode::Proof, 35), false).unwrap();
    assert_eq!(stage(&mut lease, 40, true), (Stage::Open, false, false));
}

#[test]
fn a_guard_that_knows_no_epoch_lets_old_machines_go_on_only_alone() {
    let limited = NodeLease::default().take(at(1), grant(1, 0, Mode::SelfFence, 0), true);
    assert_eq!(limited, Err(NotTaken::EndMachinesFirst { epoch: 0 }));
    NodeLease::default().take(at(1), grant(1, 7, Mode::Unlimited, 0), true).unwrap();
}

#[test]
fn the_watchdog_runs_only_under_a_lease_that_ends() {
    let mut lease = NodeLease::default();
    lease.take(at(0), grant(1, 0, Mode::SelfFence, 0), false).unwrap();
    let wanted = lease.wanted(at(100), true);
    assert_eq!((wanted.watchdog, wanted.pet), (Some(Duration::from_secs(4)), true));
    assert!(lease.wanted(at(8_000), true).pet, "frozen is fine");
    assert!(!lease.wanted(at(9_000), true).pet, "who does not die is reset");
    assert!(lease.wanted(at(9_100), false).pet, "all are dead");
    lease.take(at(9_200), grant(2, 0, Mode::Proof, 9_150), false).unwrap();
    assert_eq!(lease.wanted(at(9_200), true).watchdog, None);
}

#[test]
fn another_cluster_counts_anew_and_machines_stay_with_their_own() {
    let mut lease = NodeLease::default();
    assert!(lease.enter("a", false));
    lease.take(at(0), grant(500, 4, Mode::Unlimited, 0), false).unwrap();
    assert!(lease.enter("a", true));
    // A cluster of one gets another name: machines go on, terms are counted anew.
    assert!(lease.enter("b", true));
    assert_eq!(stage(&mut lease, 10, true).0, Stage::Open);
    lease.take(at(10), grant(1, 4, Mode::SelfFence, 5), true).unwrap();
    assert!(!lease.enter("c", true));
    assert!(lease.enter("c", false));
    lease.take(at(20), grant(1, 0, Mode::SelfFence, 15), false).unwrap();
}
