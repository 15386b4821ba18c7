//! Sessions and sign-in links.

use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::prelude::prop_assert;
use proptest::proptest;
use uuid::Uuid;

use super::session::SESSIONS_EACH_MAX;
use super::tests::World;
use crate::Command;
use crate::Refused;
use crate::Role;
use crate::SessionId;
use crate::SessionRecord;
use crate::SessionStage;
use crate::TokenId;
use crate::UnixMillis;
use crate::session::LINK_VALID_MAX;
use crate::session::SESSION_VALID_MAX;

fn digest(n: u32) -> String {
    format!("{n:064x}")
}

fn session_id(n: u32) -> SessionId {
    SessionId::new(Uuid::from_u128(u128::from(n) + 7_000))
}

fn token_id(n: u32) -> TokenId {
    TokenId::new(Uuid::from_u128(u128::from(n) + 8_000))
}

fn token(n: u32, expires: Option<u64>) -> Command {
    Command::TokenCreate {
        token: token_id(n),
        name: format!("t{n}").parse().unwrap(),
        role: Role::Operator,
        digest: digest(n + 900_000),
        expires: expires.map(UnixMillis::new),
        certificate: None,
    }
}

fn record(n: u32, stage: SessionStage, expires: u64) -> SessionRecord {
    SessionRecord {
        id: session_id(n),
        stage,
        digest: digest(n),
        actor: "user root".to_owned(),
        role: Role::Operator,
        token: None,
        created: UnixMillis::new(0),
        expires: UnixMillis::new(expires),
        onward: (stage == SessionStage::Open).then(|| digest(n + 500_000)),
    }
}

fn go_on(word: u32, secret: u32) -> Command {
    Command::SessionGoOn {
        word: digest(word + 500_000),
        digest: digest(secret),
        onward: digest(secret + 500_000),
    }
}

fn create(record: SessionRecord) -> Command {
    Command::SessionCreate { record: Box::new(record) }
}

fn use_link(link: u32, secret: u32, expires: u64) -> Command {
    Command::SessionUseLink {
        link: digest(link),
        digest: digest(secret),
        expires: UnixMillis::new(expires),
        onward: Some(digest(secret + 500_000)),
    }
}

#[test]
fn a_session_goes_on_once_with_the_same_rights_and_the_same_end() {
    let mut world = World::new();
    world.propose(create(record(1, SessionStage::Open, 60_000))).unwrap();
    let before = world.state.sessions.get(&session_id(1)).unwrap().clone();
    world.propose(go_on(1, 2)).unwrap();
    let after = world.state.sessions.get(&session_id(1)).unwrap().clone();
    assert_eq!(after.digest, digest(2), "the old secret is worth nothing now");
    assert_eq!(
        (after.role, after.expires, &after.actor),
        (before.role, before.expires, &before.actor)
    );
    assert!(matches!(world.propose(go_on(1, 3)), Err(Refused::NotFound { .. })));
    // From there on again, but not with a word that is another session's.
    world.propose(create(record(5, SessionStage::Open, 60_000))).unwrap();
    assert!(matches!(world.propose(go_on(2, 5)), Err(Refused::Invalid(_))));
    world.propose(go_on(2, 3)).unwrap();
    world.now += 60_000;
    assert!(matches!(world.propose(go_on(3, 4)), Err(Refused::NotFound { .. })), "it has ended");
    assert!(world.state.sessions.get(&session_id(1)).is_some_and(|it| it.digest == digest(3)));
}

#[test]
fn a_link_is_no_session_that_goes_on() {
    let mut world = World::new();
    let link = record(1, SessionStage::Link, 60_000);
    let link = SessionRecord { onward: Some(digest(500_001)), ..link };
    world.propose(create(link)).unwrap();
    assert!(matches!(world.propose(go_on(1, 2)), Err(Refused::NotFound { .. })));
}

#[test]
fn a_link_is_used_once() {
    let mut world = World::new();
    world.propose(create(record(1, SessionStage::Link, 60_000))).unwrap();
    world.propose(use_link(1, 2, 90_000)).unwrap();
    let session = world.state.sessions.get(&session_id(1)).unwrap();
    assert_eq!(session.stage, SessionStage::Open);
    assert_eq!(session.digest, digest(2), "the link's secret is worth nothing now");
    assert!(matches!(world.propose(use_link(1, 3, 90_000)), Err(Refused::NotFound { .. })));
    assert!(matches!(world.propose(use_link(2, 3, 90_000)), Err(Refused::NotFound { .. })));
    assert_eq!(world.state.sessions.len(), 1);
}

#[test]
fn links_and_sessions_end_by_themselves_and_last_no_longer_than_they_may() {
    let mut world = World::new();
    let long = |stage, most: crate::Millis| create(record(1, stage, 2_000_000 + most.get()));
    for command in [
        long(SessionStage::Link, LINK_VALID_MAX),
        long(SessionStage::Open, SESSION_VALID_MAX),
        create(record(1, SessionStage::Open, 1)),
    ] {
        assert!(matches!(world.propose(command), Err(Refused::Invalid(_))));
    }
    world.propose(create(record(1, SessionStage::Link, world.now + 10))).unwrap();
    world.now += 20;
    assert!(matches!(world.propose(use_link(1, 2, 9_000)), Err(Refused::NotFound { .. })));
    // What has ended makes room.
    world.propose(create(record(3, SessionStage::Open, world.now + 10))).unwrap();
    assert_eq!(world.state.sessions.len(), 1);
}

#[test]
fn a_session_can_do_no_more_than_its_token_and_goes_with_it() {
    let mut world = World::new();
    world.propose(token(1, Some(50_000))).unwrap();
    let of_token = |n, role, expires| {
        let open = record(n, SessionStage::Open, expires);
        create(SessionRecord { token: Some(token_id(1)), role, ..open })
    };
    let too_much = [of_token(1, Role::Administrator, 40_000), of_token(1, Role::Operator, 60_000)];
    for command in too_much {
        assert!(matches!(world.propose(command), Err(Refused::Invalid(_))));
    }
    world.propose(of_token(1, Role::Viewer, 40_000)).unwrap();
    let link = record(2, SessionStage::Link, 40_000);
    world.propose(create(SessionRecord { token: Some(token_id(1)), ..link })).unwrap();
    world.propose(use_link(2, 5, 90_000)).unwrap();
    assert_eq!(world.state.sessions.get(&session_id(2)).unwrap().expires.get(), 50_000);
    world.propose(Command::TokenRevoke { token: token_id(1) }).unwrap();
    assert_eq!(world.state.sessions.len(), 0);
    let orphan = of_token(4, Role::Viewer, 40_000);
    assert!(matches!(world.propose(orphan), Err(Refused::NotFound { .. })));
}

#[test]
fn nobody_keeps_others_from_signing_in() {
    let mut world = World::new();
    let each = u32::try_from(SESSIONS_EACH_MAX).unwrap();
    for n in 0..each + 5 {
        world.propose(create(record(n, SessionStage::Open, 90_000))).unwrap();
    }
    assert_eq!(world.state.sessions.len(), SESSIONS_EACH_MAX);
    assert!(!world.state.sessions.contains_key(&session_id(4)), "the oldest went");
    assert!(world.state.sessions.contains_key(&session_id(each + 4)));
}

proptest! {
    /// Whatever is proposed in whatever order: every session has its token, and no secret opens two.
    #[test]
    fn sessions_keep_the_invariants(
        steps in proptest::collection::vec((0_u8..6, 0_u32..4, any::<bool>()), 1..60)
            .prop_map(|steps| steps),
    ) {
        let mut world = World::new();
        for (what, n, with_token) in steps {
            let stage = if n % 2 == 0 { SessionStage::Link } else { SessionStage::Open };
            let token_of = with_token.then(|| token_id(n % 2));
            let command = match what {
                0 => token(n % 2, None),
                1 => Command::TokenRevoke { token: token_id(n % 2) },
                2 => create(SessionRecord {
                    token: token_of,
                    ..record(n, stage, world.now + 5)
                }),
                3 | 4 => use_link(n, n + 10 * u32::from(what), world.now + 9),
                _ => Command::SessionEnd { session: session_id(n) },
            };
            // Refusals are part of the game; `propose` checks that they change nothing.
            let _ = world.propose(command);
            let sessions: Vec<_> = world.state.sessions.values().collect();
            let digests: std::collections::BTreeSet<_> =
                sessions.iter().map(|session| &session.digest).collect();
            prop_assert!(digests.len() == sessions.len());
        }
    }
}
