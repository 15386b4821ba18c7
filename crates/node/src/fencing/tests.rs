//! Leases and fencing with the real state and clock, and nodes that only exist in the state.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::fence::Agents;
use cluster::guard::boot_time;
use cluster::lease::BootTime;
use cluster::lease::Holding;
use cluster::lease::LeaseAnswer;
use cluster::lease::LeaseGrant;
use cluster::lease::LeaseRequest;
use cluster::lease::LeaseSettings;
use cluster::lease::Mode;
use cluster::raft::NoPeers;
use cluster::raft::PeerMethod;
use cluster::raft::PeerReply;
use cluster::raft::PeerRequest;
use cluster::raft::RaftTransport;
use cluster::raft::Timing;
use cluster::raft::TransportError;
use model::Actor;
use model::Command;
use model::FenceDevice;
use model::FenceDeviceId;
use model::FenceProof;
use model::FenceReason;
use model::LeaseTerms;
use model::NodeCapacity;
use model::NodeId;
use model::Proposal;
use model::UnixMillis;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;
use vm::engine::EngineError;
use vm::engine::fake::FakeEngine;
use vm::engine::fake::FakeHost;

use super::ByLog;
use super::Fencer;
use super::LeaderDesk;
use super::LeaseSource;
use super::LeaseView;
use super::PermitEngine;
use super::source;
use crate::app::now;
use crate::truth::RaftTruth;
use crate::truth::Truth;

const LEADER: NodeId = NodeId::new(Uuid::from_u128(1));
const OTHER: NodeId = NodeId::new(Uuid::from_u128(2));
/// Longest wait of a test.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    dir: tempfile::TempDir,
    truth: Arc<dyn Truth>,
    desk: Arc<LeaderDesk>,
    settings: LeaseSettings,
}

impl Rig {
    /// Two nodes; the first leads, and fences.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = tokio::sync::broadcast::channel(64).0;
        let path = dir.path().join("state.redb");
        let truth = RaftTruth::open(&path, LEADER, Arc::new(NoPeers), Timing::default(), events);
        let truth: Arc<dyn Truth> = truth.await.unwrap();
        // The shortest that is allowed: a takeover after 4 s and a moment.
        let settings = LeaseSettings {
            lease: Duration::from_secs(2),
            guard_margin: Duration::from_secs(1),
            takeover: None,
        };
        let actor = Actor::new("node h1");
        let desk =
            LeaderDesk::new(LEADER, actor, settings, truth.clone(), Box::new(ByLog(truth.clone())));
        let rig = Self { dir, truth, desk: Arc::new(desk), settings };
        for (node, name) in [(LEADER, "h1"), (OTHER, "h2")] {
            let name = name.parse().unwrap();
            let capacity = NodeCapacity::default();
            rig.ok(Command::NodeStarted { node, name, capacity }).await;
        }
        let fencer = Fencer {
            node: LEADER,
            settings,
            desk: rig.desk.clone(),
            agents: Agents::in_dir(rig.dir.path()),
            states: rig.truth.watch(),
        };
        tokio::spawn(fencer.run());
        rig
    }

    async fn ok(&self, command: Command) {
        let proposal = Proposal { at: now(), actor: Actor::new("test"), command };
        self.truth.propose(proposal).await.unwrap();
    }

    async fn ask(&self, epoch: Option<u64>, holding: Option<Holding>) -> LeaseAnswer {
        let request = LeaseRequest { node: OTHER, epoch, holding, watchdog_ms: 0 };
        self.desk.answer(OTHER, request).await
    }

    async fn granted(&self, epoch: Option<u64>, holding: Option<Holding>) -> LeaseGrant {
        match self.ask(epoch, holding).await {
            LeaseAnswer::Granted { grant } => grant,
            other => panic!("{other:?}"),
        }
    }

    /// Two rounds: the guard confirms that its lease ends by itself.
    async fn self_fencing(&self) {
        let first = self.granted(None, None).await;
        assert_eq!(first.mode, Mode::SelfFence);
        assert_eq!(self.terms(), None, "nobody has confirmed anything yet");
        let holding = Holding { key: first.key, mode: first.mode };
        self.granted(Some(0), Some(holding)).await;
        assert_eq!(self.terms(), Some(LeaseTerms { lease_ms: 2_000, watchdog_ms: 0 }));
    }

    fn terms(&self) -> Option<LeaseTerms> {
        self.truth.state().nodes.get(&OTHER).unwrap().fence.terms
    }

    async fn wish(&self, reason: FenceReason) {
        self.ok(Command::FenceBegin { node: OTHER, reason }).await;
    }

    /// What the node is told when its fencing is done. The proof is in the state a moment before
    /// the fencer lets go.
    async fn told(&self, epoch: Option<u64>) -> LeaseAnswer {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.ask(epoch, None).await {
                LeaseAnswer::Refused { .. } if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                answer => return answer,
            }
        }
    }

    /// How the wish ended: a proof, or why there is none.
    async fn outcome(&self) -> Result<FenceProof, String> {
        let mut states = self.truth.watch();
        let end = Instant::now() + PATIENCE;
        loop {
            let state = states.borrow_and_update().clone();
            let record = state.nodes.get(&OTHER).unwrap();
            if let Some(fenced) = &record.fenced {
                return Ok(fenced.proof.clone());
            }
            if record.fence.wish.is_none() {
                return Err(record.fence.failure.clone().map_or(String::new(), |it| it.why));
            }
            tokio::time::timeout_at(end, states.changed()).await.expect("no outcome").unwrap();
        }
    }

    fn agent(&self, body: &str) {
        let path = self.dir.path().join("fence_test");
        write_program(&path, body);
    }

    async fn device(&self) {
        let device = FenceDevice {
            id: FenceDeviceId::new(Uuid::from_u128(9)),
            name: "bmc".parse().unwrap(),
            agent: "fence_test".to_owned(),
            options: BTreeMap::new(),
            secrets: BTreeMap::new(),
            nodes: BTreeMap::from([(OTHER, None)]),
            level: 1,
            timeout_s: 5,
            created: UnixMillis::new(0),
        };
        self.ok(Command::FenceDeviceAdd { device: Box::new(device) }).await;
    }
}

fn write_program(path: &Path, body: &str) {
    let text = format!("#!/bin/sh\nread -r action; action=${{action#action=}}\n{body}\n");
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fences_itself_is_taken_over_only_after_the_wait() {
    let rig = Rig::new().await;
    rig.self_fencing().await;
    let last = Instant::now();
    rig.wish(FenceReason::Suspected { what: "silent".to_owned() }).await;
    let Ok(FenceProof::LeaseOver { waited }) = rig.outcome().await else { panic!("no proof") };
    let least = rig.settings.takeover_after(rig.terms().unwrap());
    assert!(waited.get() >= u64::try_from(least.as_millis()).unwrap());
    // The test's clock began a moment after the desk's.
    assert!(last.elapsed() + Duration::from_millis(200) >= least, "{:?}", last.elapsed());
    let state = rig.truth.state();
    assert_eq!(state.nodes.get(&OTHER).unwrap().epoch, 1);
    // It is told, and gets nothing before its machines have ended.
    assert_eq!(rig.told(Some(0)).await, LeaseAnswer::Fenced { epoch: 1 });
    assert_eq!(rig.ask(None, None).await, LeaseAnswer::Fenced { epoch: 1 });
    let grant = rig.granted(Some(1), None).await;
    assert_eq!(grant.epoch, 1);
    assert!(rig.truth.state().nodes.get(&OTHER).unwrap().fenced.is_none(), "it is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspected_node_that_renews_is_left_alone() {
    let rig = Rig::new().await;
    rig.self_fencing().await;
    rig.wish(FenceReason::Suspected { what: "silent".to_owned() }).await;
    let end = Instant::now() + PATIENCE;
    // While it waits, and not in the instant in which it looks, the node may renew.
    while rig.truth.state().nodes.get(&OTHER).unwrap().fence.wish.is_some() {
        assert!(Instant::now() < end);
        rig.ask(Some(0), None).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.outcome().await, Err(String::new()));
    assert_eq!(rig.truth.state().nodes.get(&OTHER).unwrap().epoch, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_fenced_by_hand_gets_no_lease_any_more() {
    let rig = Rig::new().await;
    rig.self_fencing().await;
    rig.wish(FenceReason::Manual).await;
    let end = Instant::now() + PATIENCE;
    while !matches!(rig.ask(Some(0), None).await, LeaseAnswer::Refused { .. }) {
        assert!(Instant::now() < end);
    }
    while rig.truth.state().nodes.get(&OTHER).unwrap().fenced.is_none() {
        assert!(Instant::now() < end);
        let answer = rig.ask(Some(0), None).await;
        assert!(!matches!(answer, LeaseAnswer::Granted { .. }), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_device_and_without_self_fencing_only_a_word_counts() {
    let rig = Rig::new().await;
    rig.wish(FenceReason::Manual).await;
    let why = rig.outcome().await.unwrap_err();
    assert!(why.contains("muster fence device add") && why.contains("confirm-off"), "{why}");
    rig.wish(FenceReason::ConfirmedOff).await;
    assert_eq!(rig.outcome().await, Ok(FenceProof::Statement));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_does_not_count_against_a_lease_that_was_just_renewed() {
    let rig = Rig::new().await;
    rig.granted(None, None).await;
    rig.wish(FenceReason::ConfirmedOff).await;
    let why = rig.outcome().await.unwrap_err();
    assert!(why.contains("it is not off"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_proof_at_once_and_its_leases_do_not_end_by_themselves() {
    let rig = Rig::new().await;
    rig.self_fencing().await;
    rig.agent("[ $action = status ] && { echo OFF; exit 2; }; exit 0");
    rig.device().await;
    let grant = rig.granted(Some(0), None).await;
    assert_eq!(grant.mode, Mode::Proof);
    assert_eq!(rig.terms(), None, "written before the grant");
    let begun = Instant::now();
    rig.wish(FenceReason::Suspected { what: "silent".to_owned() }).await;
    let Ok(FenceProof::Devices { said }) = rig.outcome().await else { panic!("no proof") };
    assert_eq!((said[0].device.as_str(), said[0].output.as_str()), ("bmc", "OFF"));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_lies_is_found_out_by_the_node_itself() {
    let rig = Rig::new().await;
    rig.agent("[ $action = status ] && exit 2; exit 0");
    rig.device().await;
    rig.granted(None, None).await;
    rig.wish(FenceReason::Suspected { what: "silent".to_owned() }).await;
    let end = Instant::now() + PATIENCE;
    // It goes on asking for its lease.
    while rig.truth.state().nodes.get(&OTHER).unwrap().fence.wish.is_some() {
        assert!(Instant::now() < end);
        let answer = rig.ask(Some(0), None).await;
        assert!(!matches!(answer, LeaseAnswer::Fenced { .. }), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = rig.outcome().await.unwrap_err();
    assert!(why.contains("still heard"), "{why}");
}

/// A device of another outlet: the node is cut off from all networks, lives, and writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_lies_is_found_out_by_what_the_node_writes_to_a_volume() {
    let rig = Rig::new().await;
    rig.agent("[ $action = status ] && exit 2; exit 0");
    rig.device().await;
    rig.granted(None, None).await;
    let (every, desk) = (Duration::from_millis(200), rig.desk.clone());
    let read_before = std::sync::Mutex::new(Instant::now());
    let beats = || {
        let mut before = read_before.lock().unwrap();
        desk.note_beat(OTHER, *before, every);
        *before = Instant::now();
    };
    beats();
    rig.wish(FenceReason::Suspected { what: "silent".to_owned() }).await;
    let end = Instant::now() + PATIENCE;
    while rig.truth.state().nodes.get(&OTHER).unwrap().fence.wish.is_some() {
        assert!(Instant::now() < end);
        assert!(rig.truth.state().nodes.get(&OTHER).unwrap().fenced.is_none());
        beats();
        tokio::time::sleep(every).await;
    }
    let why = rig.outcome().await.unwrap_err();
    assert!(why.contains("still heard"), "{why}");
    // When it is really off, what was written before the device spoke does not count.
    rig.wish(FenceReason::Suspected { what: "silent".to_owned() }).await;
    assert!(matches!(rig.outcome().await, Ok(FenceProof::Devices { .. })));
}

/// A daemon that starts anew has a new reign: what was measured before does not count, and what
/// it grants is newer than all before.
#[tokio::test(flavor = "multi_thread")]
async fn each_start_is_a_new_reign() {
    let rig = Rig::new().await;
    let first = rig.granted(None, None).await;
    let actor = Actor::new("node h1");
    let again = LeaderDesk::new(
        LEADER,
        actor,
        rig.settings,
        rig.truth.clone(),
        Box::new(ByLog(rig.truth.clone())),
    );
    let request = LeaseRequest { node: OTHER, epoch: Some(0), holding: None, watchdog_ms: 0 };
    let LeaseAnswer::Granted { grant } = again.answer(OTHER, request).await else {
        panic!("no grant")
    };
    assert!(grant.key > first.key);
    let stale = Command::NodeFenced {
        node: OTHER,
        epoch: 0,
        reign: first.key.term,
        proof: FenceProof::Statement,
    };
    let proposal = Proposal { at: now(), actor: Actor::new("test"), command: stale };
    assert!(rig.truth.propose(proposal).await.is_err());
    let other = rig.desk.answer(LEADER, request).await;
    assert!(matches!(other, LeaseAnswer::Refused { .. }), "for another node: {other:?}");
}

#[test]
fn machines_start_only_under_a_live_lease_of_a_guard_that_answers() {
    let alone = LeaseView { alone: Some(3), guard: None, known: None, trouble: None };
    assert_eq!(alone.may_start(boot_time()), Ok(3));
    let view = LeaseView { alone: None, guard: None, known: None, trouble: None };
    let why = view.may_start(boot_time()).unwrap_err();
    assert!(why.contains("muster-guard"), "{why}");
}

/// A machine that is started right after its node joined must not fail for want of a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_lease_that_is_about_to_come_and_not_for_ever() {
    let none = LeaseView {
        alone: None,
        guard: None,
        known: None,
        trouble: Some("nobody leads".to_owned()),
    };
    let (published, lease) = watch::channel(none.clone());
    let engine = Arc::new(FakeEngine::new(&FakeHost::new()));
    let gate = |patience| PermitEngine::new(engine.clone(), lease.clone(), patience);
    let soon = gate(PATIENCE);
    let waits = tokio::spawn(async move { soon.permit_soon().await });
    // What changes without a lease ends no wait.
    published.send_replace(LeaseView { trouble: Some("still nobody".to_owned()), ..none.clone() });
    published.send_replace(LeaseView { alone: Some(3), ..none.clone() });
    assert_eq!(waits.await.unwrap().unwrap(), 3);
    published.send_replace(none);
    let refused = gate(Duration::from_millis(50)).permit_soon().await.unwrap_err();
    assert!(matches!(&refused, EngineError::NoLease { .. }), "{refused}");
}

/// The same over the way to the peers: the bytes of a request and of its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_asks_by_bytes_and_garbage_is_refused() {
    struct Wire(Arc<LeaderDesk>);
    #[async_trait::async_trait]
    impl RaftTransport for Wire {
        async fn send(&self, to: NodeId, ask: PeerRequest) -> Result<PeerReply, TransportError> {
            assert_eq!((to, ask.method), (LEADER, PeerMethod::Lease));
            source::serve(&self.0, OTHER, &ask).await.map_err(TransportError::Refused)
        }
    }
    let rig = Rig::new().await;
    let source = source::PeerSource {
        node: OTHER,
        desk: rig.desk.clone(),
        transport: Arc::new(Wire(rig.desk.clone())),
        leader: Box::new(|| Some(LEADER)),
        timeout: Duration::from_secs(1),
    };
    let request = LeaseRequest { node: OTHER, epoch: None, holding: None, watchdog_ms: 0 };
    let answer = LeaseSource::ask(&source, request).await.unwrap();
    assert!(matches!(answer, LeaseAnswer::Granted { .. }), "{answer:?}");
    for (version, body) in [(1, "{}"), (1, "\u{0}"), (2, "{}")] {
        let body = body.as_bytes().to_vec();
        let timeout = Duration::from_secs(1);
        let ask = PeerRequest { method: PeerMethod::Lease, version, timeout, body };
        assert!(source::serve(&rig.desk, OTHER, &ask).await.is_err());
    }
    let nobody = source::PeerSource { leader: Box::new(|| None), ..source };
    assert!(LeaseSource::ask(&nobody, request).await.is_err());
}

/// A node that is back has a lease before its copy of the state says what was taken from it.
#[test]
fn nothing_starts_by_a_state_that_is_older_than_the_lease() {
    let now = BootTime::from_nanos(1_000);
    let guard = cluster::guard::Status {
        pid: 1,
        group: "group".into(),
        now,
        stage: cluster::lease::Stage::Open,
        epoch: Some(4),
        key: None,
        mode: Some(Mode::SelfFence),
        start_until: Some(BootTime::from_nanos(2_000)),
        ends: None,
        populated: false,
        frozen: false,
        watchdog_ms: 0,
        watchdog_armed: false,
        problem: None,
    };
    let view = |known| LeaseView { alone: None, guard: Some(guard.clone()), known, trouble: None };
    assert_eq!(view(Some(4)).may_start(now), Ok(4));
    for old in [None, Some(3)] {
        let why = view(old).may_start(now).unwrap_err();
        assert!(why.contains("not yet"), "{why}");
    }
}
