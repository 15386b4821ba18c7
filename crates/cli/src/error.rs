//! The one form of failure: kind, message, hint, and the exit code that follows.

use api::ApiError;
use api::ErrorKind;
use serde_json::json;

/// Exit code after Ctrl-C: 128 and the number of SIGINT, as shells do it.
const EXIT_INTERRUPTED: u8 = 130;

/// The table of exit codes: code, when, what to do. Printed in the reference.
pub(crate) const EXIT_CODES: &[(u8, &str, &str)] = &[
    (0, "It was done.", ""),
    (
        1,
        "It was tried and failed.",
        "Read the message and the hint; the command may be tried again.",
    ),
    (
        2,
        "The command or a value in it is wrong, or it needs `--yes` without a terminal.",
        "Change the command.",
    ),
    (3, "There is no such thing.", "Check the name: `muster vm list`, `muster image list`..."),
    (
        4,
        "Not allowed: no valid token, or the role does not suffice.",
        "See `muster whoami`; ask an administrator for a token with a higher role.",
    ),
    (
        5,
        "It does not fit the present state: a name in use, an operation under way, a machine that \
         must be off.",
        "Wait, or change the state first.",
    ),
    (
        6,
        "The daemon does not answer or is too busy.",
        "See whether it runs (`systemctl status muster`), then try again.",
    ),
    (
        130,
        "Interrupted by Ctrl-C.",
        "An operation that was begun goes on unless it says it was stopped: `muster op list`.",
    ),
];

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) struct CliError {
    error: ApiError,
    exit: u8,
    /// The reader has gone: nothing is to be said.
    silent: bool,
}

impl CliError {
    /// The command or a value in it is wrong.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        ApiError::new(ErrorKind::BadRequest, "usage", message, hint).into()
    }

    /// Something on this machine did not work.
    pub(crate) fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        ApiError::new(ErrorKind::Failed, "failed", message, hint).into()
    }

    /// The user pressed Ctrl-C.
    pub(crate) fn interrupted(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let error = ApiError::new(ErrorKind::Failed, "interrupted", message, hint);
        Self { error, exit: EXIT_INTERRUPTED, silent: false }
    }

    /// As [`CliError::interrupted`] where that is the usual way to end.
    pub(crate) fn interrupted_silently() -> Self {
        Self { silent: true, ..Self::interrupted("interrupted", "") }
    }

    /// Whoever read the output has enough of it (`muster vm list | head -1`): no failure.
    pub(crate) fn reader_gone() -> Self {
        let error = ApiError::new(ErrorKind::Failed, "closed", "the reader has gone", "");
        Self { error, exit: 0, silent: true }
    }

    /// What the process ends with.
    pub(crate) const fn exit_code(&self) -> u8 {
        self.exit
    }

    /// Whether nothing is to be said.
    pub(crate) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// Class, message and hint.
    pub(crate) const fn error(&self) -> &ApiError {
        &self.error
    }

    /// The form for programs.
    pub(crate) fn to_json(&self) -> String {
        json!({ "error": self.error }).to_string()
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        let exit = error.kind.exit_code();
        Self { error, exit, silent: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_row_in_the_table() {
        for kind in [
            ErrorKind::BadRequest,
            ErrorKind::Unauthenticated,
            ErrorKind::Forbidden,
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::TooLarge,
            ErrorKind::Failed,
            ErrorKind::Unavailable,
        ] {
            let code = CliError::from(ApiError::new(kind, "x", "x", "")).exit_code();
            assert!(EXIT_CODES.iter().any(|row| row.0 == code), "{kind:?}");
        }
        assert!(EXIT_CODES.iter().any(|row| row.0 == EXIT_INTERRUPTED));
    }
}
