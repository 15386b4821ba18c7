//! Who asks: the kernel tells on the Unix socket, a token tells on TLS.

use api::ApiError;
use api::ErrorKind;
use axum::extract::Request;
use model::Actor;
use model::Role;
use sha2::Digest;
use sha2::Sha256;

use crate::app::App;
use crate::app::now;
use crate::cluster::forward;
use crate::http::Caller;
use crate::http::Peer;

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
    identify(app, request)
        .unwrap_or_else(|_| Caller { actor: Actor::new("anybody"), role: Role::Viewer })
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
        // A token is looked at again here; for a local user of its own, a node gives its word.
        Some(Peer::Member(_)) if !request.headers().contains_key("authorization") => {
            forward::told_caller(request).ok_or_else(|| {
                ApiError::new(
                    ErrorKind::Unauthenticated,
                    "unauthenticated",
                    "a node's certificate is nobody's right: it did not say for whom it asks",
                    "ask the API with a token: muster token create",
                )
            })
        }
        Some(Peer::Member(_) | Peer::Tls) | None => by_token(app, request),
    }
}

fn by_token(app: &App, request: &Request) -> Result<Caller, ApiError> {
    let unknown = || {
        ApiError::new(
            ErrorKind::Unauthenticated,
            "unauthenticated",
            "no valid token was shown",
            "make one on the node (muster token create NAME --role ROLE) and give it with --token",
        )
    };
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let secret = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(unknown)?;
    if secret.len() > SECRET_CHARS_MAX {
        return Err(unknown());
    }
    // Digests of random secrets are compared, so a comparison's duration tells nothing.
    let digest = hex::encode(Sha256::digest(secret.as_bytes()));
    let state = app.truth.state();
    let token = state.tokens.values().find(|token| token.digest == digest).ok_or_else(unknown)?;
    if token.expires.is_some_and(|expires| expires <= now()) {
        return Err(unknown());
    }
    Ok(Caller { actor: Actor::new(&format!("token {}", token.name)), role: token.role })
}
