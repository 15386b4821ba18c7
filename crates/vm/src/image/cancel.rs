//! Asking an import to stop. Nothing is dropped half-way: every step looks here, ends its own
//! children and files, and returns.

use std::future::Future;

use tokio::sync::watch;

use super::error::ImageError;

/// What becomes of the part that was fetched so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelMode {
    /// Throw it away: the user does not want the image.
    Discard,
    /// Leave it for a later call with the same id: the daemon stops.
    Keep,
}

/// The receiving side, cloned into every step.
#[derive(Debug, Clone)]
pub(super) struct Cancel(watch::Receiver<Option<CancelMode>>);

impl Cancel {
    pub(super) fn channel() -> (watch::Sender<Option<CancelMode>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// For blocking code: an error once the import shall stop.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        match *self.0.borrow() {
            Some(mode) => Err(ImageError::Cancelled(mode)),
            None => Ok(()),
        }
    }

    /// Waits until the import shall stop; forever if it never shall.
    pub(super) async fn requested(&mut self) -> CancelMode {
        let mode = self.0.wait_for(Option::is_some).await.ok().map(|mode| *mode);
        match mode {
            Some(mode) => mode.unwrap_or(CancelMode::Keep),
            // The sender is gone without a word: the job's owner dropped it after it ended.
            None => std::future::pending().await,
        }
    }

    /// Runs `work` unless and until the import shall stop.
    pub(super) async fn guard<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, ImageError> {
        tokio::select! {
            biased;
            mode = self.requested() => Err(ImageError::Cancelled(mode)),
            done = work => Ok(done),
        }
    }
}
