//! Sessions of browsers, and the links by which they begin.
//!
//! ```text
//!   link --used once--> open session --ended, expired, or its token gone--> no record
//!   token shown ------> open session
//! ```
//!
//! Both stand in the replicated state: a link is used up by one command, so two nodes cannot both
//! take it; a session holds at every node, and ending it ends it everywhere
//! (docs/decisions/0018-sessions-in-the-state.md). Secrets are known to their bearers only; the state
//! keeps digests.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Millis;
use crate::Role;
use crate::SessionId;
use crate::TokenId;
use crate::UnixMillis;

/// Longest that a sign-in link can be used: it is opened at once, or made anew.
pub const LINK_VALID_MAX: Millis = Millis::from_secs(15 * 60);

/// Longest that a session lasts: a working day. Nothing makes it longer.
pub const SESSION_VALID_MAX: Millis = Millis::from_secs(12 * 60 * 60);

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionStage {
    /// A sign-in link that nobody has used yet.
    Link,
    /// A browser is signed in.
    Open,
}

/// A session, or a link that can become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its id; a link's session keeps it.
    pub id: SessionId,
    /// How far it is.
    pub stage: SessionStage,
    /// SHA-256 of the link's or the session's secret, in hexadecimal.
    pub digest: String,
    /// In whose name it acts, as it stands in events.
    pub actor: String,
    /// What may be done in it.
    pub role: Role,
    /// The token that it was begun with: gone, so is the session.
    pub token: Option<TokenId>,
    /// When this stage began.
    pub created: UnixMillis,
    /// When this stage ends by itself.
    pub expires: UnixMillis,
    /// SHA-256 of the word with which its page goes on at another node, in hexadecimal; none for a
    /// link, and for a session of before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onward: Option<String>,
}

impl SessionRecord {
    /// Whether it still counts.
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        now < self.expires
    }
}
