//! `muster witness`: a witness for clusters that have neither a share nor a bucket. It keeps records
//! and knows nothing of what they say (crate `cluster`, `witness::Server`).

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use cluster::witness::Server;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

/// Serves records from `dir` until it is told to end; `ready` is given the token when it listens.
/// `public` is where clusters reach it, if that is not where it listens.
///
/// # Errors
/// Why it could not start, with what to do.
pub fn run(
    dir: &Path,
    listen: SocketAddr,
    public: Option<SocketAddr>,
    ready: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    crate::log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = Server::open(dir, listen, public).await.context("it cannot start")?;
        ready(&server.token().to_string())?;
        // Not under systemd: then there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(address = %server.token().address, dir = %dir.display(), "serving");
        tokio::select! {
            () = server.serve() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
