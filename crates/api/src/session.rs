//! Sessions of browsers: how one begins, what is told of it.
//!
//! A browser holds its session's secret in a cookie that no script reads. With that alone it may
//! look; for anything that changes it must also show the session's `csrf` word in the header
//! [`CSRF_HEADER`], and come from the very page that this daemon serves.

use model::Role;
use model::SecretText;
use model::SessionId;
use model::SessionStage;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// Name of the cookie: by the prefix, browsers keep it to this host, to TLS and to all paths.
pub const COOKIE: &str = "__Host-muster";

/// Header in which a page shows its session's `csrf` word.
pub const CSRF_HEADER: &str = "x-muster-csrf";

/// Header in which a page says for how many seconds nobody has touched it. A request without it,
/// such as a page makes by itself, is no use of a session.
pub const IDLE_HEADER: &str = "x-muster-idle";

/// How to sign in: by exactly one of these.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionBeginBody {
    /// An API token's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub token: Option<SecretText>,
    /// A sign-in link's secret; it is used up by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub link: Option<SecretText>,
    /// The word of a session that was begun at another node and goes on here; its cookie there is
    /// worth nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub onward: Option<SecretText>,
    /// By the certificate that the browser showed when it connected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub certificate: bool,
}

/// The session by which a request came.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnSessionView {
    /// Its id.
    pub id: SessionId,
    /// When it ends by itself.
    pub expires: UnixMillis,
    /// After how many seconds without a key, a click or a touch it ends; 0 is never.
    #[serde(default)]
    pub idle_s: u64,
    /// What a page must show with each request that changes something.
    pub csrf: String,
    /// With what the page goes on at another node if this one falls silent; once.
    pub onward: String,
}

/// A session that has begun. Its secret is in the cookie only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionBegunView {
    /// In whose name it acts, as it stands in events.
    pub actor: String,
    /// What may be done in it.
    pub role: Role,
    /// The session.
    pub session: OwnSessionView,
}

/// A session, or a sign-in link that nobody has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// Whether it is a link still.
    pub stage: SessionStage,
    /// In whose name it acts, as it stands in events.
    pub actor: String,
    /// What may be done in it.
    pub role: Role,
    /// When it began, or the link was made.
    pub created: UnixMillis,
    /// When it ends by itself.
    pub expires: UnixMillis,
    /// Whether it is the one that asks.
    pub own: bool,
}

/// A sign-in link to make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebLinkCreateBody {
    /// What may be done in its session; all that the caller may if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// How long it can be used, in seconds, 10 to 900; 300 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
}

/// A sign-in link, which is shown this once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebLinkView {
    /// Its id; the session keeps it.
    pub id: SessionId,
    /// What to open in a browser, once. The secret stands after the `#`: browsers do not send that
    /// part, so it stands in no log.
    pub url: String,
    /// Fingerprint (SHA-256) of the certificate that the browser will show.
    pub fingerprint: String,
    /// What may be done in its session.
    pub role: Role,
    /// Until when it can be used.
    pub expires: UnixMillis,
}

/// Secrets stay out of logs.
impl std::fmt::Debug for OwnSessionView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnSessionView").field("id", &self.id).finish_non_exhaustive()
    }
}
