//! Where the bytes of an image come from: a file of this host or an HTTP(S) server.
//!
//! A source is opened at an offset with the *identity* it had when the first part was fetched
//! (ETag or modification time). A source that is not the same any more, or cannot start in the
//! middle, answers with offset 0 and the caller begins again. Trust boundary: everything a server
//! says.

mod http;
mod local;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;

pub use http::HttpLimits;
pub(super) use http::HttpSource;
pub(super) use local::LocalSource;

/// Where to go on.
#[derive(Debug, Clone, Default)]
pub(in crate::image) struct Position {
    /// First byte that is wanted.
    pub offset: u64,
    /// Identity of the source when the bytes before `offset` were read.
    pub identity: Option<String>,
}

/// An opened source.
pub(in crate::image) struct Opened {
    /// Where `body` starts: the offset asked for, or 0.
    pub offset: u64,
    /// Length of the whole source, if it tells.
    pub total: Option<u64>,
    /// What to show again when resuming; `None` if it cannot be resumed.
    pub identity: Option<String>,
    /// The bytes.
    pub body: Box<dyn Body>,
}

/// A source of an image.
#[async_trait]
pub(in crate::image) trait Source: Send + Sync {
    /// Opens the source at `position`, or at 0 if it changed since or cannot seek.
    async fn open(&self, position: &Position) -> Result<Opened, FetchError>;
}

/// A stream of bytes.
#[async_trait]
pub(in crate::image) trait Body: Send {
    /// The next piece (at most a few hundred KiB), or `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError>;
}

/// Why a source could not be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The address is none that we fetch.
    #[error("`{url}` cannot be fetched: {reason}; state an http:// or https:// address")]
    BadUrl {
        /// The address, cut.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection.
    #[error("no connection to {host}; check the address and the host's network and try again")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host has no trusted certificates.
    #[error(
        "this host has no trusted certificates; install the Debian package ca-certificates: {detail}"
    )]
    NoRoots {
        /// Why.
        detail: String,
    },
    /// The server was silent.
    #[error("{host} {what} for {} s; try again, the import goes on where it stopped", .limit.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
        /// What did not come.
        what: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The server refused.
    #[error("{host} answered {status}; check the address and try again")]
    Status {
        /// Host and port.
        host: String,
        /// HTTP status code.
        status: u16,
    },
    /// The server sends us around.
    #[error("the address leads to more than {limit} redirects; state the final address")]
    TooManyRedirects {
        /// How many we follow.
        limit: u32,
    },
    /// The server sends us from https to something weaker.
    #[error("{host} redirects from https to `{to}`; state that address if you trust it")]
    Downgrade {
        /// Host and port.
        host: String,
        /// Where to.
        to: String,
    },
    /// More than we take.
    #[error("the source has {size} bytes or more, at most {limit} are taken")]
    TooLarge {
        /// Size seen or stated, in bytes.
        size: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// The connection broke, or what came is not HTTP.
    #[error(
        "the connection to {host} broke after {got} bytes; try again, the import goes on there"
    )]
    Cut {
        /// Host and port.
        host: String,
        /// Bytes of this connection's body that had come.
        got: u64,
        /// What the library said.
        detail: String,
    },
    /// The server encodes the body in a way we did not ask for.
    #[error(
        "{host} sends the file in the encoding `{encoding}`; fetch it by hand and import the file"
    )]
    Encoding {
        /// Host and port.
        host: String,
        /// Its name, cut.
        encoding: String,
    },
    /// The local file is no file.
    #[error("`{path}` is not a regular file; state the path of an image file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// The local file cannot be read.
    #[error("`{path}` cannot be read; check the path and its permissions on this host")]
    Read {
        /// The path.
        path: String,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The local file changed under us.
    #[error("`{path}` changed while it was read; wait until nobody writes to it and import again")]
    Changed {
        /// The path.
        path: String,
    },
}

impl FetchError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }
}
