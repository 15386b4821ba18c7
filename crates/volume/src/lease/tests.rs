//! Single rules; whole schedules are in `tests/leases`.

use std::time::Duration;

use model::NodeId;
use uuid::Uuid;

use super::*;

fn node(number: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(number))
}

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

const FILE: FileId = FileId(7);

/// A coordinator of epoch 3 whose file system is played by the test.
struct Played {
    machine: Coordinator,
    now: u64,
    effects: Vec<CoordinatorEffect>,
}

impl Played {
    fn new() -> Self {
        let machine = Coordinator::new(Epoch(3), Limits::default(), [].into(), ms(0));
        Self { machine, now: 0, effects: Vec::new() }
    }

    fn step(&mut self, input: CoordinatorInput) -> &[CoordinatorEffect] {
        self.now += 1;
        self.effects = self.machine.step(ms(self.now), input);
        &self.effects
    }

    fn hear(&mut self, from: NodeId, message: ToCoordinator) -> Vec<CoordinatorEffect> {
        self.step(CoordinatorInput::Message { from, message }).to_vec()
    }

    fn ask(&mut self, from: NodeId, session: SessionId, number: u64, ask: Ask) -> Option<Answer> {
        let done = number;
        self.hear(from, ToCoordinator::Ask { session, number, done, ask });
        self.play()
    }

    /// Does what the file system is asked for, and gives the last answer.
    fn play(&mut self) -> Option<Answer> {
        loop {
            let mut answer = None;
            let mut deed_to_do = None;
            for effect in &self.effects {
                match effect {
                    CoordinatorEffect::Do { id, deed } => deed_to_do = Some((*id, deed.clone())),
                    CoordinatorEffect::Send {
                        message: ToClient::Answer { answer: it, .. },
                        ..
                    } => {
                        answer = Some(it.clone());
                    }
                    _ => {}
                }
            }
            let Some((id, deed)) = deed_to_do else { return answer };
            let outcome = outcome(&deed);
            self.step(CoordinatorInput::Did { id, outcome });
        }
    }

    /// A node with a session, a registered key and the file open.
    fn ready(&mut self, from: NodeId, access: Access) -> (SessionId, OpenId) {
        let effects = self.hear(from, ToCoordinator::Hello { node: from, nonce: 1 });
        let [CoordinatorEffect::Send { message: ToClient::Welcome { session, .. }, .. }] =
            effects[..]
        else {
            panic!("no welcome: {effects:?}");
        };
        self.ask(from, session, 1, Ask::Claimed);
        self.hear(from, ToCoordinator::Registered { session });
        let opened = self.ask(from, session, 2, Ask::Open { file: FILE, access });
        let Some(Answer::Opened { open, .. }) = opened else { panic!("not open: {opened:?}") };
        (session, open)
    }
}

fn outcome(deed: &Deed) -> DeedOutcome {
    match deed {
        Deed::Inspect { .. } => DeedOutcome::File { blocks: 100, writer: None },
        Deed::Prepare { ahead: span, .. } | Deed::Map { span, .. } => {
            DeedOutcome::Extents(vec![Extent { span: *span, device: 5_000 + span.start }])
        }
        Deed::Read { span, .. } => {
            DeedOutcome::Data(vec![0; usize::try_from(span.count).unwrap_or(0)].into())
        }
        _ => DeedOutcome::Done,
    }
}

fn fences(effects: &[CoordinatorEffect]) -> Vec<ReservationKey> {
    let fence = |effect: &CoordinatorEffect| match effect {
        CoordinatorEffect::Fence(key) => Some(*key),
        _ => None,
    };
    effects.iter().filter_map(fence).collect()
}

#[test]
fn blocks_are_freed_only_after_release_or_proof_of_the_fence() {
    let mut it = Played::new();
    let (session, open) = it.ready(node(1), Access::Write);
    let (reader, other) = it.ready(node(2), Access::Read);
    for (from, session, open, access) in
        [(node(1), session, open, Access::Write), (node(2), reader, other, Access::Read)]
    {
        let ask = Ask::Acquire { open, span: Span::new(0, 8), access };
        assert!(matches!(it.ask(from, session, 3, ask), Some(Answer::Granted { .. })));
    }
    assert_eq!(it.machine.leases().count(), 2);
    assert_eq!(it.ask(node(1), session, 4, Ask::Truncate { open, blocks: 2 }), None);
    let all = Span::from(2);
    it.hear(node(1), ToCoordinator::Released { session, file: FILE, upto: 1, span: all });
    assert_eq!(it.play(), None, "the reader still has it");
    // The reader says nothing: its key is fenced, and only the proof counts.
    it.now += 10_000;
    let effects = it.step(CoordinatorInput::Tick).to_vec();
    assert!(fences(&effects).contains(&reader.key()));
    assert!(!effects.iter().any(|effect| matches!(effect, CoordinatorEffect::Do { .. })));
    let effects = it.step(CoordinatorInput::Fenced(reader.key())).to_vec();
    let truncate = |effect: &CoordinatorEffect| {
        matches!(effect, CoordinatorEffect::Do { deed: Deed::Truncate { .. }, .. })
    };
    // The writer was silent for as long, so it has been given up, too, and its job with it.
    assert!(fences(&effects).is_empty() && !effects.iter().any(truncate));
    it.step(CoordinatorInput::Fenced(session.key()));
    assert_eq!(it.machine.leases().count(), 0);
}

#[test]
fn a_node_is_welcomed_again_only_after_its_key_is_fenced() {
    let mut it = Played::new();
    let (session, _) = it.ready(node(1), Access::Write);
    let effects = it.hear(node(1), ToCoordinator::Hello { node: node(1), nonce: 2 });
    assert_eq!(effects, [CoordinatorEffect::Fence(session.key())]);
    let again = it.hear(node(1), ToCoordinator::Hello { node: node(1), nonce: 2 });
    assert_eq!(again, []);
    let effects = it.step(CoordinatorInput::Fenced(session.key())).to_vec();
    let [CoordinatorEffect::Send { message: ToClient::Welcome { nonce: 2, session: next }, .. }] =
        effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_ne!(next.key(), session.key());
    // What comes late of the old session is refused.
    let late = it.hear(node(1), ToCoordinator::Registered { session });
    let gone = ToClient::Gone { session };
    assert_eq!(late, [CoordinatorEffect::Send { to: node(1), message: gone }]);
}

#[test]
fn a_request_is_done_once_however_often_it_comes() {
    let mut it = Played::new();
    let (session, open) = it.ready(node(1), Access::Write);
    let ask = Ask::Write { open, span: Span::new(0, 1), data: [1; 8].into() };
    assert_eq!(it.ask(node(1), session, 3, ask.clone()), Some(Answer::Done));
    let again = ToCoordinator::Ask { session, number: 3, done: 3, ask: ask.clone() };
    let effects = it.hear(node(1), again);
    let [CoordinatorEffect::Send { message: ToClient::Answer { answer, .. }, .. }] = &effects[..]
    else {
        panic!("done again: {effects:?}");
    };
    assert_eq!(*answer, Answer::Done);
    // When the client has said that it knows the answer, the request means nothing any more.
    assert_eq!(it.ask(node(1), session, 4, Ask::Flush { open }), Some(Answer::Done));
    let late = it.hear(node(1), ToCoordinator::Ask { session, number: 3, done: 3, ask });
    assert_eq!(late, []);
}

#[test]
fn a_file_has_one_writer() {
    let mut it = Played::new();
    let (_, open) = it.ready(node(1), Access::Write);
    let (session, _) = it.ready(node(2), Access::Read);
    it.hear(
        node(2),
        ToCoordinator::Ask {
            session,
            number: 3,
            done: 3,
            ask: Ask::Open { file: FILE, access: Access::Write },
        },
    );
    let [CoordinatorEffect::Do { id, .. }] = it.effects[..] else { panic!("{:?}", it.effects) };
    let outcome = DeedOutcome::File { blocks: 1, writer: Some((node(1), open)) };
    it.step(CoordinatorInput::Did { id, outcome });
    assert_eq!(it.play(), Some(Answer::Refused(Refusal::Busy { by: node(1) })));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut it = Played::new();
    let (session, open) = it.ready(node(1), Access::Read);
    let all = Span { start: u64::MAX, count: u64::MAX };
    let (none, odd) = (Span::new(3, 0), [1, 2, 3].into());
    let bad = [
        Ask::Read { open, span: none },
        Ask::Read { open, span: all },
        Ask::Acquire { open, span: all, access: Access::Read },
        Ask::Write { open, span: Span::new(0, 2), data: odd },
        Ask::Truncate { open, blocks: u64::MAX },
        Ask::Clone { open, to: FILE },
    ];
    for (number, ask) in (3..).zip(bad) {
        let answer = it.ask(node(1), session, number, ask.clone());
        assert_eq!(answer, Some(Answer::Refused(Refusal::Invalid)), "{ask:?}");
    }
    let write = Ask::Write { open, span: Span::new(0, 1), data: [0; 8].into() };
    let answer = it.ask(node(1), session, 20, write);
    assert_eq!(answer, Some(Answer::Refused(Refusal::NotOpen)), "opened for reading only");
    // Somebody else's session is nobody's.
    let effects = it.hear(node(9), ToCoordinator::Ping { session });
    assert!(matches!(
        effects[..],
        [CoordinatorEffect::Send { message: ToClient::Gone { .. }, .. }]
    ));
    assert_eq!(it.hear(node(9), ToCoordinator::Hello { node: node(1), nonce: 99 }), []);
    it.hear(node(1), ToCoordinator::Released { session, file: FILE, upto: u64::MAX, span: all });
}

#[test]
fn a_grant_that_comes_after_its_recall_is_not_used() {
    let mut client = Client::new(node(1), Limits::default(), 0);
    let coordinator = node(2);
    let session = SessionId { epoch: Epoch(1), number: 4 };
    let hear = |message| ClientInput::Message { from: coordinator, message };
    let answer = |number, answer| ToClient::Answer { session, number, answer };
    client.step(ms(1), ClientInput::Path(true));
    client.step(ms(1), ClientInput::View { epoch: Epoch(1), coordinator });
    client.step(ms(1), hear(ToClient::Welcome { nonce: 1, session }));
    let key = session.key();
    let outcome = RegisterOutcome::Registered;
    client.step(ms(1), ClientInput::Registered { key, outcome });
    assert!(client.is_direct());
    client.step(ms(1), ClientInput::Open { handle: 1, file: FILE, access: Access::Read });
    let open = OpenId { epoch: Epoch(1), number: 1 };
    client.step(ms(1), hear(answer(2, Answer::Opened { open, blocks: 9 })));
    let span = Span::new(0, 1);
    let what = Io { handle: 1, span, mode: IoMode::Read };
    let effects = client.step(ms(1), ClientInput::Submit { io: 1, what });
    assert!(effects.iter().any(|effect| matches!(
        effect,
        ClientEffect::Send {
            message: ToCoordinator::Ask { number: 3, ask: Ask::Acquire { .. }, .. },
            ..
        }
    )));
    let recall = ToClient::Recall { session, file: FILE, upto: 1, span: Span::from(0) };
    let effects = client.step(ms(1), hear(recall));
    assert!(effects.iter().any(|effect| matches!(
        effect,
        ClientEffect::Send { message: ToCoordinator::Released { upto: 1, .. }, .. }
    )));
    let extents = vec![Extent { span, device: 77 }];
    let grant = Answer::Granted { file: FILE, number: 1, access: Access::Read, extents };
    let effects = client.step(ms(1), hear(answer(3, grant)));
    assert!(!effects.iter().any(|effect| matches!(effect, ClientEffect::Device { .. })));
    assert!(effects.iter().any(|effect| matches!(
        effect,
        ClientEffect::Send { message: ToCoordinator::Ask { ask: Ask::Read { .. }, .. }, .. }
    )));
}

#[test]
fn of_two_that_take_over_the_higher_epoch_wins() {
    let own = ReservationKey::of_coordinator(Epoch(5));
    let begin = || {
        let (mut takeover, effect) = Takeover::new(Epoch(5));
        assert_eq!(effect, TakeoverEffect::Drain);
        assert_eq!(takeover.step(TakeoverInput::Drained), [TakeoverEffect::AbortOwn]);
        assert_eq!(takeover.step(TakeoverInput::Aborted), [TakeoverEffect::Register(own)]);
        assert_eq!(takeover.step(TakeoverInput::Registered), [TakeoverEffect::ReadKeys]);
        takeover
    };
    let client = SessionId { epoch: Epoch(4), number: 2 }.key();
    let before = ReservationKey::of_coordinator(Epoch(4));
    let after = ReservationKey::of_coordinator(Epoch(6));
    let keys = |keys: &[ReservationKey]| TakeoverInput::Keys(keys.to_vec());

    let mut takeover = begin();
    let preempts = [TakeoverEffect::Preempt(before), TakeoverEffect::Preempt(client)];
    assert_eq!(takeover.step(keys(&[client, own, before])), preempts);
    assert_eq!(takeover.step(TakeoverInput::Preempted(client)), []);
    assert_eq!(takeover.step(TakeoverInput::Preempted(before)), [TakeoverEffect::ReadKeys]);
    assert_eq!(takeover.step(keys(&[own])), [TakeoverEffect::Mount]);
    assert_eq!(takeover.step(TakeoverInput::Mounted), [TakeoverEffect::Serve]);

    assert_eq!(begin().step(keys(&[own, after])), [TakeoverEffect::GiveUp]);
    assert_eq!(begin().step(keys(&[before])), [TakeoverEffect::GiveUp], "preempted meanwhile");
    assert_eq!(begin().step(TakeoverInput::Refused), [TakeoverEffect::GiveUp]);
    let mut given_up = begin();
    given_up.step(TakeoverInput::Refused);
    assert_eq!(given_up.step(keys(&[own])), []);
}

/// Asks of a client for its coordinator.
fn asks(effects: &[ClientEffect]) -> Vec<Ask> {
    let ask = |effect: &ClientEffect| match effect {
        ClientEffect::Send { message: ToCoordinator::Ask { ask, .. }, .. } => Some(ask.clone()),
        _ => None,
    };
    effects.iter().filter_map(ask).collect()
}

#[test]
fn a_close_that_was_on_its_way_is_claimed_and_closed_at_the_next_coordinator() {
    let mut client = Client::new(node(1), Limits::default(), 0);
    let (first, next) = (node(2), node(3));
    let session = |epoch| SessionId { epoch: Epoch(epoch), number: 4 };
    let answer =
        |epoch, number, answer| ToClient::Answer { session: session(epoch), number, answer };
    client.step(ms(1), ClientInput::View { epoch: Epoch(1), coordinator: first });
    let hear = |from, message| ClientInput::Message { from, message };
    client.step(ms(1), hear(first, ToClient::Welcome { nonce: 1, session: session(1) }));
    client.step(ms(1), ClientInput::Open { handle: 1, file: FILE, access: Access::Write });
    let open = OpenId { epoch: Epoch(1), number: 1 };
    client.step(ms(1), hear(first, answer(1, 2, Answer::Opened { open, blocks: 0 })));
    let what = Io { handle: 1, span: Span::new(0, 1), mode: IoMode::Write([7; 4096].into()) };
    let effects = client.step(ms(1), ClientInput::Submit { io: 1, what });
    assert!(matches!(asks(&effects)[..], [Ask::Write { .. }]), "{effects:?}");
    client.step(ms(1), hear(first, answer(1, 3, Answer::Done)));
    // Nobody could write it again afterwards, so it is flushed first.
    let effects = client.step(ms(1), ClientInput::Close { handle: 1 });
    assert_eq!(asks(&effects), [Ask::Flush { open }]);
    assert_eq!(client.unflushed_blocks(), 1);
    let effects = client.step(ms(1), hear(first, answer(1, 4, Answer::Done)));
    assert_eq!(client.unflushed_blocks(), 0);
    assert_eq!(asks(&effects), [Ask::Close { open }]);
    // The coordinator ends before it has answered.
    client.step(ms(1), ClientInput::View { epoch: Epoch(2), coordinator: next });
    assert!(client.is_closing_writer(FILE));
    let welcome = ToClient::Welcome { nonce: 2, session: session(2) };
    let effects = client.step(ms(1), hear(next, welcome));
    assert_eq!(asks(&effects), [Ask::Claim { file: FILE, open, access: Access::Write }]);
    // A new open waits until that is over.
    let effects =
        client.step(ms(1), ClientInput::Open { handle: 2, file: FILE, access: Access::Write });
    assert_eq!(asks(&effects), []);
    let effects = client.step(ms(1), hear(next, answer(2, 1, Answer::Opened { open, blocks: 1 })));
    assert!(asks(&effects).contains(&Ask::Close { open }), "{effects:?}");
}

#[test]
fn what_was_not_flushed_is_written_again_before_a_flush_is_answered() {
    let mut client = Client::new(node(1), Limits::default(), 0);
    let coordinator = node(2);
    let hear = |message| ClientInput::Message { from: coordinator, message };
    let session = |number| SessionId { epoch: Epoch(1), number };
    let answer = |of, number, answer| ToClient::Answer { session: session(of), number, answer };
    client.step(ms(1), ClientInput::View { epoch: Epoch(1), coordinator });
    client.step(ms(1), hear(ToClient::Welcome { nonce: 1, session: session(1) }));
    client.step(ms(1), ClientInput::Open { handle: 1, file: FILE, access: Access::Write });
    let open = OpenId { epoch: Epoch(1), number: 1 };
    client.step(ms(1), hear(answer(1, 2, Answer::Opened { open, blocks: 0 })));
    let data: Payload = [7; 4096].into();
    let span = Span::new(3, 1);
    let what = Io { handle: 1, span, mode: IoMode::Write(data.clone()) };
    client.step(ms(1), ClientInput::Submit { io: 1, what });
    client.step(ms(1), hear(answer(1, 3, Answer::Done)));
    let what = Io { handle: 1, span: Span::new(0, 0), mode: IoMode::Flush };
    let effects = client.step(ms(1), ClientInput::Submit { io: 2, what });
    assert_eq!(asks(&effects), [Ask::Flush { open }]);
    // No answer comes; the session has ended, and with it perhaps the LUN's cache.
    client.step(ms(1), hear(ToClient::Gone { session: session(1) }));
    client.step(ms(1), hear(ToClient::Welcome { nonce: 2, session: session(2) }));
    let effects = client.step(ms(1), hear(answer(2, 1, Answer::Opened { open, blocks: 4 })));
    let again: Vec<Ask> = asks(&effects).into_iter().filter(|ask| *ask != Ask::Claimed).collect();
    assert_eq!(again, [Ask::Write { open, span, data }]);
    let number = if asks(&effects).len() == 2 { 3 } else { 2 };
    let effects = client.step(ms(1), hear(answer(2, number, Answer::Done)));
    assert_eq!(asks(&effects), [Ask::Flush { open }]);
}
