//! A node that was evicted, or given up when the quorum was forced, takes part in nothing any more.
//!
//! It hears so from a member, or reads it on a volume. An evicted node alone could wait until
//! somebody tells it again at each start; but the nodes that a forcing gave up may be a majority of
//! the old voters, and would go on among themselves. So it is noted on the disk, and the daemon
//! starts anew as one that neither votes nor leads nor holds a lease, and whose guard ends its
//! machines: they may run elsewhere by now.

use std::sync::Arc;
use std::time::Duration;

use model::Gone;

use crate::app::App;

/// Between two attempts to write the note.
const AGAIN: Duration = Duration::from_secs(1);

/// Waits for the word, notes it, and starts the daemon anew.
pub(crate) async fn follow(app: Arc<App>) {
    if app.peers.dir().is_out() {
        return;
    }
    let mut told = app.peers.gone();
    let mut marked = app.ha.given_up.subscribe();
    let how = tokio::select! {
        told = told.wait_for(|gone| *gone == Some(Gone::Evicted)) => told.map(|_| "a member says so"),
        marked = marked.wait_for(|given_up| *given_up) => marked.map(|_| "a volume says so"),
    };
    // The daemon ends.
    let Ok(how) = how else { return };
    tracing::error!(how, "this node was taken out of its cluster; its machines are ended");
    while let Err(error) = app.peers.dir().set_out() {
        tracing::error!(%error, "that this node is out cannot be noted");
        tokio::time::sleep(AGAIN).await;
    }
    app.restart.notify_one();
}
