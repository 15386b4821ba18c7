//! Sessions of browsers: beginning by link or token, and the end.

use std::sync::Arc;

use super::Context;
use crate::ClusterState;
use crate::EventKind;
use crate::Refused;
use crate::SessionId;
use crate::SessionRecord;
use crate::SessionStage;
use crate::Severity;
use crate::Subject;
use crate::TokenId;
use crate::UnixMillis;
use crate::session::LINK_VALID_MAX;
use crate::session::SESSION_VALID_MAX;
use crate::state::not_found;

/// Most sessions and links at a time: each request of a browser compares with all of them.
pub(super) const SESSIONS_MAX: usize = 1_000;

/// Most sessions and links in the name of one caller; the oldest makes room for a new one, so that
/// nobody keeps others from signing in.
pub(super) const SESSIONS_EACH_MAX: usize = 32;

/// What opens a session from now on: digests of its secret, and of its word for another node.
pub(super) struct Opened<'a> {
    pub(super) digest: &'a str,
    pub(super) onward: Option<&'a str>,
}

pub(super) fn create(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    record: &SessionRecord,
) -> Result<(), Refused> {
    let now = cx.proposal.at;
    if state.sessions.contains_key(&record.id) {
        return Err(Refused::IdTaken(record.id.to_string()));
    }
    check_digest(state, &record.digest)?;
    if let Some(onward) = &record.onward {
        check_digest(state, onward)?;
    }
    check_end(record.stage, now, record.expires)?;
    if let Some(id) = record.token {
        let token = state.tokens.get(&id).ok_or_else(|| not_found("token", &id.to_string()))?;
        if token.role < record.role || token.expires.is_some_and(|end| end < record.expires) {
            return Err(Refused::Invalid("a session can do no more than its token".to_owned()));
        }
    }
    let mut gone = ended(state, now);
    let mut own: Vec<&Arc<SessionRecord>> = state
        .sessions
        .values()
        .filter(|other| other.is_valid(now) && other.actor == record.actor)
        .collect();
    own.sort_by_key(|other| (other.created, other.id));
    let spare = (own.len() + 1).saturating_sub(SESSIONS_EACH_MAX);
    gone.extend(own.iter().take(spare).map(|other| other.id));
    if state.sessions.len() - gone.len() >= SESSIONS_MAX {
        return Err(Refused::Limit { what: "sessions", most: SESSIONS_MAX });
    }
    for id in gone {
        state.sessions.remove(&id);
    }
    let record = SessionRecord { created: now, ..record.clone() };
    told(cx, &record);
    state.sessions.insert(record.id, Arc::new(record));
    Ok(())
}

/// Makes a link a session. The link can be used by no second one.
pub(super) fn use_link(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    link: &str,
    opened: &Opened<'_>,
    expires: UnixMillis,
) -> Result<(), Refused> {
    let now = cx.proposal.at;
    let found = state.sessions.values().find(|other| {
        other.stage == SessionStage::Link && other.digest == link && other.is_valid(now)
    });
    let Some(found) = found.cloned() else {
        return Err(not_found("sign-in link", "of that secret (used, too old, or never made)"));
    };
    check_opened(state, opened)?;
    check_end(SessionStage::Open, now, expires)?;
    let token = found.token.and_then(|id| state.tokens.get(&id));
    let end = token.and_then(|token| token.expires).map_or(expires, |end| end.min(expires));
    let session = SessionRecord {
        stage: SessionStage::Open,
        digest: opened.digest.to_owned(),
        onward: opened.onward.map(str::to_owned),
        created: now,
        expires: end,
        ..SessionRecord::clone(&found)
    };
    told(cx, &session);
    state.sessions.insert(session.id, Arc::new(session));
    Ok(())
}

/// Goes on with an open session under another secret. Its end stays where it was.
pub(super) fn go_on(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    word: &str,
    opened: &Opened<'_>,
) -> Result<(), Refused> {
    let now = cx.proposal.at;
    let found = state.sessions.values().find(|other| {
        let open = other.stage == SessionStage::Open && other.is_valid(now);
        open && other.onward.as_deref() == Some(word)
    });
    let Some(found) = found.cloned() else {
        return Err(not_found("session", "of that word (used, ended, or never begun)"));
    };
    check_opened(state, opened)?;
    let session = SessionRecord {
        digest: opened.digest.to_owned(),
        onward: opened.onward.map(str::to_owned),
        ..SessionRecord::clone(&found)
    };
    let subject = Subject::Session { id: session.id, name: session.actor.clone() };
    let text = format!("the session of {} goes on at another node", session.actor);
    cx.event(EventKind::SessionBegun, Severity::Info, subject, text, None);
    state.sessions.insert(session.id, Arc::new(session));
    Ok(())
}

pub(super) fn end(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: SessionId,
) -> Result<(), Refused> {
    let Some(session) = state.sessions.remove(&id) else {
        return Err(not_found("session", &id.to_string()));
    };
    let subject = Subject::Session { id, name: session.actor.clone() };
    let text = format!("the session of {} has ended", session.actor);
    cx.event(EventKind::SessionEnded, Severity::Info, subject, text, None);
    Ok(())
}

/// Sessions are worth nothing without the token that they were begun with.
pub(super) fn token_gone(state: &mut ClusterState, token: TokenId) {
    let of_it: Vec<SessionId> = state
        .sessions
        .values()
        .filter(|session| session.token == Some(token))
        .map(|session| session.id)
        .collect();
    for id in of_it {
        state.sessions.remove(&id);
    }
}

fn check_opened(state: &ClusterState, opened: &Opened<'_>) -> Result<(), Refused> {
    check_digest(state, opened.digest)?;
    opened.onward.map_or(Ok(()), |word| check_digest(state, word))
}

fn check_digest(state: &ClusterState, digest: &str) -> Result<(), Refused> {
    if digest.len() != 64 {
        return Err(Refused::Invalid("a session's digest has 64 hexadecimal digits".to_owned()));
    }
    let known = |other: &Arc<SessionRecord>| {
        other.digest == digest || other.onward.as_deref() == Some(digest)
    };
    if state.sessions.values().any(known) {
        return Err(Refused::Invalid("a session's secret is used once".to_owned()));
    }
    Ok(())
}

fn check_end(stage: SessionStage, now: UnixMillis, end: UnixMillis) -> Result<(), Refused> {
    let most = match stage {
        SessionStage::Link => LINK_VALID_MAX,
        SessionStage::Open => SESSION_VALID_MAX,
    };
    if end <= now || end > now.plus(most) {
        let most = most.get() / 60_000;
        return Err(Refused::Invalid(format!(
            "it must be valid for some time, {most} min at most"
        )));
    }
    Ok(())
}

fn ended(state: &ClusterState, now: UnixMillis) -> Vec<SessionId> {
    let ended = state.sessions.values().filter(|other| !other.is_valid(now));
    ended.map(|other| other.id).collect()
}

fn told(cx: &mut Context<'_>, session: &SessionRecord) {
    let SessionRecord { id, actor, role, .. } = session;
    let (kind, text) = match session.stage {
        SessionStage::Link => {
            (EventKind::SessionLink, format!("a sign-in link was made for {actor} ({role})"))
        }
        SessionStage::Open => {
            (EventKind::SessionBegun, format!("{actor} signed in with a browser ({role})"))
        }
    };
    let subject = Subject::Session { id: *id, name: actor.clone() };
    cx.event(kind, Severity::Info, subject, text, None);
}
