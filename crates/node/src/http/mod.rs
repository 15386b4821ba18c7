//! The API's server: handlers by endpoint type, so that method, path, role and types come from the
//! one table in `api`.
//!
//! Trust boundary: everything of a request is a stranger's. Bodies, headers and connections have
//! limits; who asks is told by the kernel (Unix socket) or by a token or session (TLS), and the role
//! is checked before a handler sees anything.

mod auth;
mod certificate;
mod cluster;
mod cluster_networks;
mod consoles;
mod devices;
mod disks;
mod events;
mod fence;
mod ha;
mod idle;
mod images;
mod metrics;
mod networks;
mod nodes;
mod ops;
mod origin;
mod register;
mod serve;
#[cfg(test)]
mod session_tests;
mod sessions;
#[cfg(test)]
mod tests;
mod tokens;
mod vms;
mod volumes;
mod web;
mod where_read;
mod witness;

pub(crate) use ops::own as own_progress;

use std::collections::BTreeSet;
use std::sync::Arc;

use api::ApiError;
use api::ErrorKind;
use api::endpoint::Access;
use api::endpoint::Endpoint;
use api::endpoint::Info;
use api::endpoint::Method;
use api::endpoint::ReplyKind;
use api::endpoint::TABLE;
use api::session::OwnSessionView;
use axum::Router;
use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::extract::RawPathParams;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::MethodFilter;
use axum::routing::on;
use http_body_util::BodyExt;
use model::Actor;
use model::Role;
use model::TokenId;

use crate::app::App;
use crate::truth::LeaderError;

pub(crate) use ha::losses;
pub(crate) use idle::Idle;
pub(crate) use idle::follow_idle;
pub(crate) use idle::session_uses;
pub(crate) use metrics::own as own_history;
pub(crate) use serve::Peer;
pub(crate) use serve::bind_unix;
pub(crate) use serve::serve_connection;
pub(crate) use serve::serve_tls;
pub(crate) use serve::serve_unix;
pub(crate) use sessions::reached_at;

/// Where monitoring programs look.
const METRICS_PATH: &str = "/metrics";

/// Largest request body: a VM with the largest user-data takes some 200 kB.
const BODY_BYTES_MAX: usize = 1 << 20;

/// How much of a body that is too large is read and thrown away, so that its sender gets to read
/// the answer.
const BODY_BYTES_DRAINED_MAX: usize = 16 << 20;

/// Who asks, and what they may do.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) actor: Actor,
    pub(crate) role: Role,
    pub(crate) proof: Proof,
}

/// By what it is known who asks.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// The kernel's word on this host, or the word of the node that passed the request on.
    Word,
    /// A token.
    Token(TokenId),
    /// A browser's session, with the token that it was begun with.
    Session { own: OwnSessionView, token: Option<TokenId> },
}

impl Caller {
    /// A caller that the kernel or another node has named.
    pub(crate) fn by_word(actor: Actor, role: Role) -> Self {
        Self { actor, role, proof: Proof::Word }
    }
}

/// One call of an endpoint.
pub(crate) struct Call<E: Endpoint> {
    pub(crate) app: Arc<App>,
    pub(crate) caller: Caller,
    pub(crate) path: Vec<String>,
    pub(crate) query: E::Query,
    pub(crate) body: E::Body,
}

impl<E: Endpoint> Call<E> {
    /// The path's parameter of that place.
    pub(crate) fn param(&self, place: usize) -> &str {
        self.path.get(place).map_or("", String::as_str)
    }
}

/// Collects routes and knows which rows of the table are still without a handler.
struct Mounts {
    app: Arc<App>,
    router: Router,
    mounted: BTreeSet<&'static str>,
}

/// All routes.
///
/// # Panics
/// If a row of the table has no handler: an error of this crate, seen at the first start.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut mounts = Mounts { app, router: Router::new(), mounted: BTreeSet::new() };
    vms::mount(&mut mounts);
    register::mount(&mut mounts);
    devices::mount(&mut mounts);
    consoles::mount(&mut mounts);
    metrics::mount(&mut mounts);
    images::mount(&mut mounts);
    ops::mount(&mut mounts);
    events::mount(&mut mounts);
    nodes::mount(&mut mounts);
    ha::mount(&mut mounts);
    networks::mount(&mut mounts);
    volumes::mount(&mut mounts);
    disks::mount(&mut mounts);
    tokens::mount(&mut mounts);
    cluster_networks::mount(&mut mounts);
    sessions::mount(&mut mounts);
    cluster::mount(&mut mounts);
    witness::mount(&mut mounts);
    fence::mount(&mut mounts);
    let missing: Vec<_> =
        TABLE.iter().map(|info| info.id).filter(|id| !mounts.mounted.contains(id)).collect();
    assert!(missing.is_empty(), "endpoints without a handler: {missing:?}");
    let Mounts { app, router, .. } = mounts;
    router.fallback(move |request: Request| no_such_route(app.clone(), request))
}

/// What is no endpoint: the web console, or nothing.
async fn no_such_route(app: Arc<App>, request: Request) -> Response {
    if let Some(page) = web::answer(&app, &request) {
        return page;
    }
    let message = format!("there is no {} {}", request.method(), request.uri().path());
    let hint = "see what there is: GET /v1/openapi.json";
    error_response(&ApiError::new(ErrorKind::NotFound, "no_such_route", message, hint))
}

impl Mounts {
    /// Mounts a handler that answers with JSON.
    fn json<E, H, F>(&mut self, handler: H)
    where
        E: Endpoint,
        E::Reply: 'static,
        H: Fn(Call<E>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<E::Reply, ApiError>> + Send,
    {
        self.raw::<E, _, _>(move |call, request| {
            let app = call.app.clone();
            let asks = E::INFO.needs_majority() && !(E::INFO.takes_stale() && is_stale(&request));
            let handler = handler.clone();
            async move {
                // Changes, too: they begin with a look at the state, and what another node has
                // acknowledged must be in it.
                if asks {
                    app.truth.barrier().await.map_err(|error| no_majority(&error))?;
                }
                handler(call).await.map(|reply| axum::Json(reply).into_response())
            }
        });
    }

    /// Mounts a handler that makes the response itself. It gets the request's head, for upgrades.
    fn raw<E, H, F>(&mut self, handler: H)
    where
        E: Endpoint,
        H: Fn(Call<E>, Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, ApiError>> + Send,
    {
        let info: &'static Info = &E::INFO;
        assert!(self.mounted.insert(info.id), "{} is mounted twice", info.id);
        let app = self.app.clone();
        let route = move |request: Request| {
            let app = app.clone();
            let handler = handler.clone();
            async move {
                kept_nowhere(match prepare::<E>(app, request).await {
                    Ok(Prepared::Here(call, request)) => match handler(*call, request).await {
                        Ok(response) => response,
                        Err(error) => error_response(&error),
                    },
                    Ok(Prepared::Answered(response)) => response,
                    Err(error) => error_response(&error),
                })
            }
        };
        let mut router = std::mem::take(&mut self.router);
        if info.reply == ReplyKind::Metrics {
            // Where programs look for it if nobody tells them.
            router = router.route(METRICS_PATH, on(filter(info.method), route.clone()));
        }
        self.router = router.route(info.path, on(filter(info.method), route));
    }
}

/// Browsers keep no answer of the API, and take none for something else than it says it is.
fn kept_nowhere(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Whether the caller is content with what this node knows.
fn is_stale(request: &Request) -> bool {
    request.uri().query().unwrap_or_default().split('&').any(|pair| pair == "stale=true")
}

fn no_majority(error: &LeaderError) -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "no_majority",
        format!("the cluster's state cannot be read or changed now: {error}"),
        "--stale (stale=true) shows what this node last knew; `muster cluster status` who is missing",
    )
}

fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Patch => MethodFilter::PATCH,
        Method::Delete => MethodFilter::DELETE,
    }
}

/// A request that is ready to be answered, or was answered by another node.
enum Prepared<E: Endpoint> {
    Here(Box<Call<E>>, Request),
    Answered(Response),
}

/// Finds out who asks and whether they may, lets another node answer what only that one knows,
/// then reads path, query and body.
async fn prepare<E: Endpoint>(app: Arc<App>, request: Request) -> Result<Prepared<E>, ApiError> {
    where_read::check_member(&E::INFO, request.extensions().get::<Peer>())?;
    if where_read::must_catch_up(&request) {
        // Without a majority, what is known here must do.
        let _ = app.truth.barrier().await;
    }
    let caller = match E::INFO.access {
        Access::Anyone => auth::anyone(&app, &request),
        Access::Needs(role) => auth::caller(&app, &request, role)?,
    };
    let (mut parts, body) = request.into_parts();
    let path: Vec<String> = RawPathParams::from_request_parts(&mut parts, &())
        .await
        .map_err(|error| bad_request(&format!("the path cannot be read: {error}")))?
        .iter()
        .map(|(_, value)| value.to_owned())
        .collect();
    let from_member = matches!(parts.extensions.get::<Peer>(), Some(Peer::Member(_)));
    let first = path.first().map(String::as_str);
    if let Some(node) = where_read::elsewhere(&app, &E::INFO, first).await {
        if from_member {
            // It moved meanwhile: passing it on and on would help nobody.
            return Err(where_read::moved());
        }
        let request = Request::from_parts(parts, body);
        let answer = crate::cluster::forward::to(&app, node, &caller, request).await?;
        return Ok(Prepared::Answered(answer));
    }
    let Query(query) = Query::<E::Query>::try_from_uri(&parts.uri)
        .map_err(|error| bad_request(&format!("the query cannot be read: {error}")))?;
    let bytes = read_body(body).await?;
    let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    let body = serde_json::from_slice(json)
        .map_err(|error| bad_request(&format!("the body cannot be read: {error}")))?;
    let call = Call { app, caller, path, query, body };
    let request = Request::from_parts(parts, axum::body::Body::empty());
    Ok(Prepared::Here(Box::new(call), request))
}

async fn read_body(mut body: axum::body::Body) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| bad_request(&format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        read += data.len();
        if read <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        } else if read > BODY_BYTES_DRAINED_MAX {
            break;
        }
    }
    if read <= BODY_BYTES_MAX {
        return Ok(Bytes::from(bytes));
    }
    Err(ApiError::new(
        ErrorKind::TooLarge,
        "too_large",
        format!("the request is larger than {BODY_BYTES_MAX} bytes"),
        "send less; images are imported from a path or an address",
    ))
}

pub(crate) fn bad_request(message: &str) -> ApiError {
    let hint = "see the fields: GET /v1/openapi.json";
    ApiError::new(ErrorKind::BadRequest, "bad_request", message, hint)
}

fn error_response(error: &ApiError) -> Response {
    let status = axum::http::StatusCode::from_u16(error.kind.status())
        .unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(error)).into_response()
}
