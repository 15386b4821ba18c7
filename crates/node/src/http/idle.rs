//! Sessions of browsers that nobody uses end by themselves (decision 0033).
//!
//! ```text
//!   page: a key, a click, a touch --header with each request--> its node notes "used then"
//!   each node, now and then: too long ago here? --asks the others--> one knows better: noted here
//!                                                                 --> nobody does: SessionEnd
//! ```
//!
//! When a session was used stands in the memory of the node that its page talks to, and in no log:
//! the cluster writes once when a session ends, not for each minute of use. A node that knows
//! nothing of a session (it has just started) counts from when it first saw it. A node that does not answer
//! has not seen it either: then somebody signs in once more than needed, which is the safe side.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::future::join_all;
use model::Actor;
use model::Command;
use model::Millis;
use model::SessionId;
use model::SessionStage;
use model::UnixMillis;
use peer::Method;

use crate::app::App;
use crate::app::now;

/// How often sessions are looked through, at the most and at the least.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// How long another node is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// When sessions were used last, as far as this node knows.
#[derive(Debug, Default)]
pub(crate) struct Idle(Mutex<HashMap<SessionId, Seen>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    at: UnixMillis,
    /// Somebody used it then; else this node has just heard of it.
    used: bool,
}

impl Idle {
    /// Notes that somebody used a session at that time.
    pub(crate) fn used(&self, session: SessionId, at: UnixMillis) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(session).or_insert(Seen { at, used: true });
        // What is told late, or of a page that stands open beside another one, takes nothing back.
        *known = Seen { at: known.at.max(at), used: known.used || at >= known.at };
    }

    /// Those of the open sessions that nobody has used for the limit. Sessions that have ended are
    /// forgotten.
    fn over(&self, open: &HashSet<SessionId>, now: UnixMillis, limit: Millis) -> Vec<SessionId> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|session, _| open.contains(session));
        for session in open {
            seen.entry(*session).or_insert(Seen { at: now, used: false });
        }
        let mut over: Vec<SessionId> = seen
            .iter()
            .filter(|(_, seen)| now.since(seen.at) >= limit)
            .map(|(session, _)| *session)
            .collect();
        over.sort_unstable();
        over
    }

    /// For how many milliseconds sessions have not been used that were used here.
    fn told(&self, now: UnixMillis) -> BTreeMap<SessionId, u64> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = seen.iter().filter(|(_, seen)| seen.used);
        used.map(|(session, seen)| (*session, now.since(seen.at).get())).collect()
    }
}

/// What this node tells the others.
pub(crate) fn session_uses(app: &App) -> BTreeMap<SessionId, u64> {
    app.idle.told(now())
}

/// Ends what nobody uses, as long as the daemon lives.
pub(crate) async fn follow_idle(app: Arc<App>) {
    let limit = Millis::from_secs(app.config.session_idle_s);
    if limit.get() == 0 {
        return;
    }
    let pause = Duration::from_millis(limit.get() / 20).clamp(LOOK_MIN, LOOK_MAX);
    loop {
        tokio::time::sleep(pause).await;
        look(&app, limit).await;
    }
}

async fn look(app: &App, limit: Millis) {
    let state = app.truth.state();
    let is_open = |session: &model::SessionRecord| session.stage == SessionStage::Open;
    let open = state.sessions.values().filter(|it| is_open(it)).map(|it| it.id).collect();
    if app.idle.over(&open, now(), limit).is_empty() {
        return;
    }
    let others = state.nodes.keys().filter(|node| **node != app.node);
    let asked = others.map(|node| async {
        let told = app.peers.ask(*node, Method::SESSIONS, &(), ASK_TIMEOUT).await;
        told.unwrap_or_else(|_| BTreeMap::<SessionId, u64>::new())
    });
    let asked_at = now();
    for (session, idle_ms) in join_all(asked).await.into_iter().flatten() {
        app.idle.used(session, asked_at.minus(Millis::new(idle_ms)));
    }
    for session in app.idle.over(&open, now(), limit) {
        let actor = Actor::new("the idle limit");
        // Another node may have ended it, and without a majority it is tried again.
        if let Err(error) = app.propose(&actor, Command::SessionEnd { session }).await {
            tracing::debug!(%session, %error, "a session that nobody uses has not ended yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LIMIT: Millis = Millis::from_secs(60);

    fn session(n: u128) -> SessionId {
        SessionId::new(Uuid::from_u128(n))
    }

    fn at(second: u64) -> UnixMillis {
        UnixMillis::new(second * 1_000)
    }

    #[test]
    fn a_session_that_is_used_goes_on_and_one_that_is_not_is_over() {
        let idle = Idle::default();
        let open = HashSet::from([session(1), session(2)]);
        idle.used(session(1), at(100));
        assert_eq!(idle.over(&open, at(100), LIMIT), []);
        idle.used(session(1), at(150));
        assert_eq!(idle.over(&open, at(159), LIMIT), []);
        // The other one was never used here: it counts from when it was first seen.
        assert_eq!(idle.over(&open, at(160), LIMIT), [session(2)]);
        assert_eq!(idle.over(&open, at(210), LIMIT), [session(1), session(2)]);
    }

    #[test]
    fn an_older_word_takes_nothing_back_and_what_was_only_seen_is_not_told_as_used() {
        let idle = Idle::default();
        let open = HashSet::from([session(1), session(2)]);
        idle.used(session(1), at(100));
        idle.used(session(1), at(50));
        assert_eq!(idle.over(&open, at(159), LIMIT), []);
        assert_eq!(idle.told(at(160)), BTreeMap::from([(session(1), 60_000)]));
        // Another node has seen the second one used before this one first saw it.
        idle.used(session(2), at(120));
        assert_eq!(idle.told(at(160)).len(), 1);
        idle.used(session(2), at(200));
        assert_eq!(idle.told(at(200))[&session(2)], 0);
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let idle = Idle::default();
        idle.used(session(1), at(100));
        assert_eq!(idle.over(&HashSet::new(), at(500), LIMIT), []);
        assert!(idle.told(at(500)).is_empty());
    }
}
