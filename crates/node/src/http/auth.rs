//! Who asks: the kernel tells on the Unix socket, a token or the cookie of a session on TLS.

use std::sync::Arc;

use api::ApiError;
use api::ErrorKind;
use api::session::COOKIE;
use api::session::IDLE_HEADER;
use api::session::OwnSessionView;
use axum::extract::Request;
use model::Actor;
use model::Millis;
use model::Role;
use model::SessionRecord;
use model::SessionStage;
use sha2::Digest;
use sha2::Sha256;

use crate::app::App;
use crate::app::now;
use crate::cluster::forward;
use crate::http::Caller;
use crate::http::Peer;
use crate::http::Proof;
use crate::http::origin;

/// The longest secret that is looked at: ours have 64 characters.
const SECRET_CHARS_MAX: usize = 256;

/// The caller, if known and allowed to use an endpoint that needs `needed`.
pub(crate) fn caller(app: &App, request: &Request, needed: Role) -> Result<Caller, ApiError> {
    let caller = identify(app, request)?;
    if caller.role < needed {
        return Err(ApiError::new(
            ErrorKind::Forbidden,
            "forbidden",
            format!("{} has the role {}; this needs {needed}", caller.actor, caller.role),
            "ask an administrator for a token of that role: muster token create",
        ));
    }
    Ok(caller)
}

/// A caller of an endpoint that anybody may use. The role is that of nobody in particular.
pub(crate) fn anyone(app: &App, request: &Request) -> Caller {
    identify(app, request).unwrap_or_else(|_| Caller::by_word(Actor::new("anybody"), Role::Viewer))
}

fn identify(app: &App, request: &Request) -> Result<Caller, ApiError> {
    match request.extensions().get::<Peer>() {
        Some(Peer::Unix(Some(caller))) => Ok(caller.clone()),
        Some(Peer::Unix(None)) => Err(ApiError::new(
            ErrorKind::Forbidden,
            "forbidden",
            "this user may not use Muster",
            format!(
                "become a member of the group '{}' and sign in again, or use sudo",
                app.config.operator_group
            ),
        )),
        // A token or a session is looked at again here; for a local user of its own, a node gives
        // its word. That node has looked at the page's origin.
        Some(Peer::Member(_)) if cookie(request).is_some() && !has_token(request) => {
            by_session(app, request).map(|(caller, _)| caller)
        }
        Some(Peer::Member(_)) if !has_token(request) => {
            forward::told_caller(request).ok_or_else(|| {
                ApiError::new(
                    ErrorKind::Unauthenticated,
                    "unauthenticated",
                    "a node's certificate is nobody's right: it did not say for whom it asks",
                    "ask the API with a token: muster token create",
                )
            })
        }
        Some(Peer::Tls(_)) | None if cookie(request).is_some() && !has_token(request) => {
            let (caller, csrf) = by_session(app, request)?;
            origin::check_session(request, &csrf)?;
            Ok(caller)
        }
        Some(Peer::Member(_) | Peer::Tls(_)) | None => by_token(app, request),
    }
}

fn has_token(request: &Request) -> bool {
    request.headers().contains_key("authorization")
}

/// The secret in a session's cookie.
fn cookie(request: &Request) -> Option<&str> {
    let lines = request.headers().get_all("cookie").iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE && value.len() <= SECRET_CHARS_MAX).then_some(value)
    })
}

/// The caller and the session's word.
fn by_session(app: &App, request: &Request) -> Result<(Caller, String), ApiError> {
    let secret = cookie(request).unwrap_or_default();
    let session = session_of(app, secret).ok_or_else(unknown_session)?;
    let own = own_session(app, &session, secret);
    if let Some(idle) = idle(request) {
        app.idle.used(session.id, now().minus(idle));
    }
    let csrf = own.csrf.clone();
    let proof = Proof::Session { own, token: session.token };
    Ok((Caller { actor: Actor::new(&session.actor), role: session.role, proof }, csrf))
}

/// The open session of a secret, if it has not ended.
pub(crate) fn session_of(app: &App, secret: &str) -> Option<Arc<SessionRecord>> {
    let digest = digest(secret);
    let state = app.truth.state();
    let open = |session: &&Arc<SessionRecord>| {
        session.stage == SessionStage::Open && session.digest == digest && session.is_valid(now())
    };
    state.sessions.values().find(open).cloned()
}

/// What a page is told of its own session. The word follows from the secret, which no script can
/// read, and tells nothing of it.
pub(crate) fn own_session(app: &App, session: &SessionRecord, secret: &str) -> OwnSessionView {
    let csrf = digest(&format!("muster csrf {secret}"));
    let idle_s = app.config.session_idle_s;
    OwnSessionView {
        id: session.id,
        expires: session.expires,
        idle_s,
        csrf,
        onward: onward(secret),
    }
}

/// For how long nobody has touched the page that asks, as it says.
fn idle(request: &Request) -> Option<Millis> {
    let told = request.headers().get(IDLE_HEADER)?.to_str().ok()?;
    told.parse().ok().map(Millis::from_secs)
}

/// The word with which a session's page goes on at another node. It follows from the secret and tells
/// nothing of it; the state has its digest.
pub(crate) fn onward(secret: &str) -> String {
    digest(&format!("muster onward {secret}"))
}

/// What the state keeps of a secret.
pub(crate) fn digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether a caller's right has not ended since it was looked at: for what goes on for hours.
pub(crate) fn still(app: &App, caller: &Caller) -> bool {
    let (state, now) = (app.truth.state(), now());
    match &caller.proof {
        Proof::Word => true,
        Proof::Token(id) => state
            .tokens
            .get(id)
            .is_some_and(|token| token.expires.is_none_or(|expires| now < expires)),
        Proof::Session { own, .. } => {
            state.sessions.get(&own.id).is_some_and(|session| session.is_valid(now))
        }
    }
}

/// A session that has ended, goes on elsewhere, or never was.
pub(crate) fn unknown_session() -> ApiError {
    ApiError::new(
        ErrorKind::Unauthenticated,
        "session_ended",
        "this session has ended",
        "sign in again: with a token, or a link that `muster web` prints on the node",
    )
}

/// Nobody that is known.
pub(crate) fn unknown() -> ApiError {
    ApiError::new(
        ErrorKind::Unauthenticated,
        "unauthenticated",
        "no valid token was shown",
        "make one on the node (muster token create NAME --role ROLE) and give it with --token",
    )
}

fn by_token(app: &App, request: &Request) -> Result<Caller, ApiError> {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let secret = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(unknown)?;
    token_caller(app, secret)
}

/// Whoever shows that secret of a token.
pub(crate) fn token_caller(app: &App, secret: &str) -> Result<Caller, ApiError> {
    if secret.len() > SECRET_CHARS_MAX {
        return Err(unknown());
    }
    // Digests of random secrets are compared, so a comparison's duration tells nothing.
    let digest = digest(secret);
    let state = app.truth.state();
    let token = state.tokens.values().find(|token| token.digest == digest).ok_or_else(unknown)?;
    if token.expires.is_some_and(|expires| expires <= now()) {
        return Err(unknown());
    }
    let actor = Actor::new(&format!("token {}", token.name));
    Ok(Caller { actor, role: token.role, proof: Proof::Token(token.id) })
}
