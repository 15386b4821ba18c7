//! The one form of errors on the wire.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// What class an error belongs to; it decides the HTTP status and the CLI's exit code.
///
/// | kind | HTTP | exit | what to do |
/// | --- | --- | --- | --- |
/// | `bad_request` | 400 | 2 | change the request |
/// | `unauthenticated` | 401 | 4 | show a valid token |
/// | `forbidden` | 403 | 4 | ask for a higher role |
/// | `not_found` | 404 | 3 | check the name |
/// | `conflict` | 409 | 5 | wait, or change the state first |
/// | `too_large` | 413 | 2 | send less |
/// | `failed` | 500 | 1 | see the message; the operation may be tried again |
/// | `unavailable` | 503 | 6 | try again in a moment |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot be understood or asks for something that cannot be.
    BadRequest,
    /// It is not known who asks.
    Unauthenticated,
    /// Who asks may not.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// It does not fit the present state.
    Conflict,
    /// The request is too large.
    TooLarge,
    /// It was tried and did not work.
    Failed,
    /// Muster cannot answer now: it starts, stops, or is too busy.
    Unavailable,
}

/// An error with its next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// Its class.
    pub kind: ErrorKind,
    /// A stable word for programs, such as `name_taken`.
    pub code: String,
    /// What happened, one sentence, lower-case.
    pub message: String,
    /// What to do next; empty where there is nothing to say.
    #[serde(default)]
    pub hint: String,
}

impl ErrorKind {
    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Failed => 500,
            Self::Unavailable => 503,
        }
    }

    /// The exit code of the command line.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::BadRequest | Self::TooLarge => 2,
            Self::NotFound => 3,
            Self::Unauthenticated | Self::Forbidden => 4,
            Self::Conflict => 5,
            Self::Unavailable => 6,
        }
    }
}

impl ApiError {
    /// An error of a class, with a stable word, a sentence and a next step.
    pub fn new(
        kind: ErrorKind,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { kind, code: code.to_owned(), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<model::Refused> for ApiError {
    fn from(refused: model::Refused) -> Self {
        use model::Refused;
        let kind = match &refused {
            Refused::NotFound { .. } | Refused::NoLun(_) => ErrorKind::NotFound,
            Refused::NameTaken { .. }
            | Refused::IdTaken(_)
            | Refused::Busy { .. }
            | Refused::WrongPower { .. }
            | Refused::Deleted(_)
            | Refused::NotDeleted(_)
            | Refused::Stale { .. }
            | Refused::NeedsOff { .. }
            | Refused::InUse { .. }
            | Refused::ImageNotReady(_)
            | Refused::Legacy { .. }
            | Refused::Processor { .. }
            | Refused::OpEnded(_)
            | Refused::NoCluster
            | Refused::InCluster(_)
            | Refused::NodeGone { .. }
            | Refused::NotMember(_)
            | Refused::NodeAddress { .. }
            | Refused::LastNode(_)
            | Refused::NotFenced(_)
            | Refused::OwnsVms { .. }
            | Refused::Coordinates { .. }
            | Refused::LunInUse { .. }
            | Refused::LunHolds { .. }
            | Refused::NoPath { .. }
            | Refused::NotOnLun(_)
            | Refused::Limit { .. } => ErrorKind::Conflict,
            Refused::JoinToken => ErrorKind::Forbidden,
            Refused::Name(_)
            | Refused::Spec(_)
            | Refused::CannotShrink { .. }
            | Refused::SmallerThanImage { .. }
            | Refused::Address { .. }
            | Refused::Invalid(_) => ErrorKind::BadRequest,
        };
        Self::new(kind, refused.code(), refused.to_string(), refused.hint())
    }
}
