//! Sessions of browsers: signing in with a token or a link, signing out, and links.
//!
//! Secrets are made here and told once; the state has digests (decision 0018).

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::session::COOKIE;
use api::session::SessionBegunView;
use api::session::SessionView;
use api::session::WebLinkView;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::response::Response;
use model::Actor;
use model::Command;
use model::Millis;
use model::Refused;
use model::Role;
use model::SESSION_VALID_MAX;
use model::SessionId;
use model::SessionRecord;
use model::SessionStage;

use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;
use crate::http::Call;
use crate::http::Caller;
use crate::http::Mounts;
use crate::http::Peer;
use crate::http::Proof;
use crate::http::auth;
use crate::http::bad_request;
use crate::http::certificate;
use crate::http::origin;

/// Random bytes of a secret: far beyond guessing.
const SECRET_BYTES: usize = 32;

/// How long a link can be used, in seconds, if nobody says: as long as it takes to open it.
const LINK_S_DEFAULT: u64 = 300;

/// Between these, in seconds.
const LINK_S: std::ops::RangeInclusive<u64> = 10..=900;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.raw::<ep::SessionBegin, _, _>(begin);
    mounts.json::<ep::SessionList, _, _>(list);
    mounts.raw::<ep::SessionEnd, _, _>(end);
    mounts.json::<ep::WebLinkCreate, _, _>(link);
}

async fn begin(call: Call<ep::SessionBegin>, request: Request) -> Result<Response, ApiError> {
    // A page of another site could otherwise sign its visitor in as somebody else.
    // A certificate is shown by the browser whoever asks, so there the page must be ours.
    if call.body.certificate || request.headers().contains_key("origin") {
        origin::check(&request)?;
    }
    let app = &*call.app;
    let by_certificate = call.body.certificate.then_some(());
    let secret = random()?;
    let expires = now().plus(SESSION_VALID_MAX);
    let onward = auth::digest(&auth::onward(&secret));
    let (actor, command) =
        match (&call.body.token, &call.body.link, &call.body.onward, by_certificate) {
            (Some(token), None, None, None) => {
                of_token(app, auth::token_caller(app, token.reveal())?, &secret)?
            }
            (None, None, None, Some(())) => {
                let shown = request.extensions().get::<Peer>().and_then(Peer::certificate);
                of_token(app, certificate::caller(app, shown)?, &secret)?
            }
            (None, Some(link), None, None) => {
                let link = auth::digest(link.reveal());
                let actor = named(app, |session| session.digest == link);
                let digest = auth::digest(&secret);
                let onward = Some(onward);
                (actor, Command::SessionUseLink { link, digest, expires, onward })
            }
            (None, None, Some(word), None) => {
                let word = auth::digest(word.reveal());
                let actor = named(app, |session| session.onward.as_deref() == Some(&word));
                let digest = auth::digest(&secret);
                (actor, Command::SessionGoOn { word, digest, onward })
            }
            _ => {
                return Err(bad_request(
                    "give a token, a link, the word of a session, or a certificate",
                ));
            }
        };
    let by_word = call.body.onward.is_some();
    app.propose(&actor, command).await.map_err(|error| match error.code.as_str() {
        "not_found" if by_word => auth::unknown_session(),
        "not_found" => ApiError::new(
            ErrorKind::Unauthenticated,
            "link_used",
            "this sign-in link has been used, is too old, or was never made",
            "make a new one on the node: muster web",
        ),
        _ => error,
    })?;
    let session = auth::session_of(app, &secret).ok_or_else(auth::unknown)?;
    app.idle.used(session.id, now());
    let view = SessionBegunView {
        actor: session.actor.clone(),
        role: session.role,
        session: auth::own_session(app, &session, &secret),
    };
    let age = session.expires.since(now()).get() / 1_000;
    Ok(([("set-cookie", cookie(&secret, age))], axum::Json(view)).into_response())
}

/// A session of whoever shows a token's secret or certificate: no longer than the token.
fn of_token(app: &App, caller: Caller, secret: &str) -> Result<(Actor, Command), ApiError> {
    let Proof::Token(id) = caller.proof else { return Err(auth::unknown()) };
    let expires = now().plus(SESSION_VALID_MAX);
    let end = app.truth.state().tokens.get(&id).and_then(|token| token.expires);
    let record = SessionRecord {
        id: SessionId::new(new_uuid()),
        stage: SessionStage::Open,
        digest: auth::digest(secret),
        actor: caller.actor.to_string(),
        role: caller.role,
        token: Some(id),
        created: now(),
        expires: end.map_or(expires, |end| end.min(expires)),
        onward: Some(auth::digest(&auth::onward(secret))),
    };
    Ok((caller.actor, Command::SessionCreate { record: Box::new(record) }))
}

/// Who is named in the event: the state decides whether the session is one.
fn named(app: &App, is_it: impl Fn(&SessionRecord) -> bool) -> Actor {
    let state = app.truth.state();
    let found = state.sessions.values().find(|session| is_it(session));
    Actor::new(found.map_or("anybody", |session| &session.actor))
}

/// The cookie's line. `Strict`: no request that another site causes has it.
fn cookie(secret: &str, seconds: u64) -> String {
    format!("{COOKIE}={secret}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Strict")
}

async fn list(call: Call<ep::SessionList>) -> Result<Vec<SessionView>, ApiError> {
    let state = call.app.truth.state();
    let now = now();
    let mut list: Vec<_> = state
        .sessions
        .values()
        .filter(|session| session.is_valid(now))
        .map(|session| SessionView {
            id: session.id,
            stage: session.stage,
            actor: session.actor.clone(),
            role: session.role,
            created: session.created,
            expires: session.expires,
            own: call.caller.session() == Some(session.id),
        })
        .collect();
    list.sort_by_key(|session| (session.created, session.id));
    Ok(list)
}

/// Ends a session: anybody their own, administrators every one.
async fn end(call: Call<ep::SessionEnd>, _request: Request) -> Result<Response, ApiError> {
    let app = &*call.app;
    let which = call.param(0);
    let id = which.parse::<SessionId>().ok();
    let found = id.filter(|id| app.truth.state().sessions.contains_key(id));
    let missing = || ApiError::from(Refused::NotFound { what: "session", which: which.to_owned() });
    let session = found.ok_or_else(missing)?;
    let own = call.caller.session() == Some(session);
    if !own && call.caller.role < Role::Administrator {
        return Err(missing());
    }
    app.propose(&call.caller.actor, Command::SessionEnd { session }).await?;
    let answer = axum::Json(Nothing {});
    Ok(match own {
        true => ([("set-cookie", cookie("", 0))], answer).into_response(),
        false => answer.into_response(),
    })
}

async fn link(call: Call<ep::WebLinkCreate>) -> Result<WebLinkView, ApiError> {
    let app = &*call.app;
    let Some(tls) = &app.tls else {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "no_tls_port",
            "this daemon has no TLS port, so no browser can reach it",
            "set tls_listen in its configuration, such as \"0.0.0.0:7443\", and start it again",
        ));
    };
    let role = call.body.role.unwrap_or(call.caller.role);
    if role > call.caller.role {
        return Err(bad_request("a link can do no more than whoever makes it"));
    }
    let valid_s = call.body.valid_s.unwrap_or(LINK_S_DEFAULT);
    if !LINK_S.contains(&valid_s) {
        return Err(bad_request("a link is valid for 10 to 900 seconds"));
    }
    let secret = random()?;
    let token = call.caller.token();
    let until = now().plus(Millis::from_secs(valid_s));
    let end = token.and_then(|id| app.truth.state().tokens.get(&id).and_then(|it| it.expires));
    let expires = end.map_or(until, |end| end.min(until));
    let id = SessionId::new(new_uuid());
    let record = SessionRecord {
        id,
        stage: SessionStage::Link,
        digest: auth::digest(&secret),
        actor: call.caller.actor.to_string(),
        role,
        token,
        created: now(),
        expires,
        onward: None,
    };
    let command = Command::SessionCreate { record: Box::new(record) };
    app.propose(&call.caller.actor, command).await?;
    let url = format!("https://{}/sign-in#{secret}", reached_at(app, tls.address));
    Ok(WebLinkView { id, url, fingerprint: tls.fingerprint.clone(), role, expires })
}

/// Where a browser reaches the port: an address of this host where it listens on all.
pub(crate) fn reached_at(app: &App, listens: std::net::SocketAddr) -> std::net::SocketAddr {
    let outward = app.config.peer_addresses().first().map(std::net::SocketAddr::ip);
    match listens.ip().is_unspecified() {
        true => std::net::SocketAddr::new(outward.unwrap_or(listens.ip()), listens.port()),
        false => listens,
    }
}

fn random() -> Result<String, ApiError> {
    let mut bytes = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        let message = format!("the host gives no random numbers: {error}");
        ApiError::new(ErrorKind::Failed, "random", message, "try again")
    })?;
    Ok(hex::encode(bytes))
}

impl Caller {
    /// The session by which it asks.
    pub(crate) fn session(&self) -> Option<SessionId> {
        match &self.proof {
            Proof::Session { own, .. } => Some(own.id),
            Proof::Word | Proof::Token(_) => None,
        }
    }

    /// The token that its right comes from.
    pub(crate) fn token(&self) -> Option<model::TokenId> {
        match &self.proof {
            Proof::Token(token) => Some(*token),
            Proof::Session { token, .. } => *token,
            Proof::Word => None,
        }
    }
}
