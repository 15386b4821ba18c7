//! The one form of failure of the lab: class, what happened, next step.

use std::io;
use std::path::Path;

/// Class of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabErrorKind {
    /// A value is wrong.
    Usage,
    /// There is no such lab or node.
    NotFound,
    /// It does not fit the lab's present state.
    Conflict,
    /// It was tried and failed.
    Failed,
    /// The user ended it.
    Interrupted,
}

/// Why the lab did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LabError {
    /// Its class.
    pub kind: LabErrorKind,
    /// What happened.
    pub message: String,
    /// What to do now.
    pub hint: String,
}

impl LabError {
    fn new(kind: LabErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: hint.into() }
    }

    /// A value is wrong.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(LabErrorKind::Usage, message, hint)
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(LabErrorKind::NotFound, message, hint)
    }

    /// It does not fit.
    pub(crate) fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(LabErrorKind::Conflict, message, hint)
    }

    /// It was tried and failed.
    pub(crate) fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(LabErrorKind::Failed, message, hint)
    }

    /// The user ended it.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(LabErrorKind::Interrupted, message, "")
    }

    /// For `map_err`: an operation on a file did not work.
    pub(crate) fn io<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run it as root",
                io::ErrorKind::StorageFull => "free some space there, or use another --dir",
                _ => "see whether that path is as the lab left it; 'muster lab down' clears up",
            };
            Self::failed(format!("cannot {what} {}: {error}", path.display()), hint)
        }
    }

    /// As [`LabError::io`], for system calls of rustix.
    pub(crate) fn sys<'a>(
        what: &'a str,
        path: &'a Path,
    ) -> impl FnOnce(rustix::io::Errno) -> Self + 'a {
        move |error| Self::io(what, path)(error.into())
    }
}
