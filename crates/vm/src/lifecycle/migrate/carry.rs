//! Carries the engine's connections to the other node, byte for byte.

use std::sync::Arc;
use std::sync::PoisonError;

use model::NodeId;
use model::OpId;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Mover;
use super::Shared;

/// Bytes that are on the way at once, in each direction of a connection: a page run of QEMU's, and
/// the few bytes that come back.
const FORTH: usize = 128 * 1024;
const BACK: usize = 8 * 1024;

/// The carriers of one migration; all connections end with it.
pub(super) struct Carriers {
    _task: JoinSet<()>,
    problem: Shared<Option<String>>,
}

impl Carriers {
    /// Carries every connection that the engine opens.
    pub(super) fn start(
        mover: Arc<dyn Mover>,
        to: NodeId,
        op: OpId,
        mut connections: mpsc::Receiver<UnixStream>,
    ) -> Self {
        let problem: Shared<Option<String>> = Arc::default();
        let note = problem.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut all = JoinSet::new();
            while let Some(stream) = connections.recv().await {
                let (mover, note) = (mover.clone(), note.clone());
                all.spawn(async move {
                    if let Err(error) = carry(&*mover, to, op, stream).await {
                        tracing::info!(%op, error, "a connection of a migration has ended");
                        let mut note = note.lock().unwrap_or_else(PoisonError::into_inner);
                        note.get_or_insert(error);
                    }
                });
            }
            while all.join_next().await.is_some() {}
        });
        Self { _task: task, problem }
    }

    /// What went wrong first, if something did.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn carry(
    mover: &dyn Mover,
    to: NodeId,
    op: OpId,
    mut ours: UnixStream,
) -> Result<(), String> {
    // When it fails, the engine sees the end of its connection, and the guest goes on.
    let mut theirs = mover.connect(to, op).await?;
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut ours, &mut theirs, FORTH, BACK).await;
    copied.map(drop).map_err(|error| format!("the connection broke: {error}"))
}
