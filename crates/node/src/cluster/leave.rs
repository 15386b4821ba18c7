//! The end of a node's time in a cluster: when the others have taken it out, it puts its state
//! aside and starts anew as a host by itself.

use std::sync::Arc;
use std::time::Duration;

use model::ClusterState;
use model::Gone;
use model::Membership;
use model::NodeId;

use crate::app::App;

/// How often it is looked, also when nothing changes.
const EVERY: Duration = Duration::from_secs(1);

/// Time for the answer to the caller who asked for it.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(500);

/// Whether this node has asked to leave and is out.
pub(crate) fn is_out(state: &ClusterState, me: NodeId, removed: bool, told: Option<Gone>) -> bool {
    if let Some(gone) = state.gone.get(&me) {
        return gone.how == Gone::Left;
    }
    let leaving = state.nodes.get(&me).is_some_and(|node| node.membership == Membership::Leaving);
    // Its own state may never hear of its end: it gets the log no more.
    leaving && (removed || told == Some(Gone::Left))
}

/// Waits for the end, then starts the daemon anew.
pub(crate) async fn follow(app: Arc<App>) {
    wait(&app).await;
    tracing::warn!("this node has left the cluster and begins anew");
    tokio::time::sleep(LAST_WORDS).await;
    match app.peers.dir().ask_reset() {
        Ok(()) => app.restart.notify_one(),
        Err(error) => tracing::error!(%error, "the mark for a new beginning cannot be written"),
    }
}

/// Returns when this node has asked to leave and is out.
pub(crate) async fn wait(app: &App) {
    let mut metrics = app.truth.metrics();
    let mut states = app.truth.watch();
    let mut told = app.peers.gone();
    loop {
        let removed = metrics.borrow_and_update().removed.is_some();
        let gone = *told.borrow_and_update();
        if is_out(&states.borrow_and_update().clone(), app.node, removed, gone) {
            return;
        }
        tokio::select! {
            _ = metrics.changed() => {}
            _ = states.changed() => {}
            _ = told.changed() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use model::NodeRecord;
    use model::UnixMillis;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_who_asked_to_leave_begins_anew() {
        let me = NodeId::new(Uuid::from_u128(1));
        let mut state = ClusterState::default();
        // A joiner that has no state yet.
        assert!(!is_out(&state, me, true, Some(Gone::Left)));
        let mut record = NodeRecord::new(me, "h1".parse().unwrap(), UnixMillis::new(1));
        state.nodes.insert(me, Arc::new(record.clone()));
        assert!(!is_out(&state, me, true, Some(Gone::Evicted)), "an evicted node keeps its data");
        record.membership = Membership::Leaving;
        state.nodes.insert(me, Arc::new(record));
        assert!(!is_out(&state, me, false, None));
        assert!(is_out(&state, me, true, None));
        assert!(is_out(&state, me, false, Some(Gone::Left)));
    }
}
