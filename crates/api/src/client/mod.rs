//! The typed client: one call for each endpoint of the table, over a Unix socket or TLS.
//!
//! A connection is made for each request; on a Unix socket that costs some 50 µs, and nothing is
//! left to go stale when the daemon restarts. Trust boundary: replies are limited in size and
//! decoded strictly; a server that answers nonsense gives an [`ApiError`], never a panic.

mod stream;
mod transport;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use stream::EventStream;
pub use stream::Socket;
pub use transport::Target;

use crate::ApiError;
use crate::ErrorKind;
use crate::endpoint::Endpoint;
use crate::endpoint::Info;
use crate::endpoint::percent_encode;

/// Largest reply that is read: 8,000 VMs take some 4 MiB in a list.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Where the daemon is, and how to speak with it.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    stale: bool,
}

impl Client {
    /// A client for a target. Nothing is connected yet.
    pub const fn new(target: Target) -> Self {
        Self { target, stale: false }
    }

    /// Asks for answers as the node knows them, where that is possible: they may be old, and come
    /// also without a majority.
    pub const fn stale(mut self, stale: bool) -> Self {
        self.stale = stale;
        self
    }

    /// Where this client goes.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// Calls an endpoint that takes neither query nor body.
    ///
    /// # Errors
    /// What the server answered, or [`ErrorKind::Unavailable`] where it could not be reached.
    pub async fn get<E>(&self, path: &[&str]) -> Result<E::Reply, ApiError>
    where
        E: Endpoint<Body = crate::endpoint::Nothing>,
    {
        self.call::<E>(path, &E::Query::default(), &crate::endpoint::Nothing {}).await
    }

    /// Calls an endpoint that takes a body and no query.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn send<E: Endpoint>(
        &self,
        path: &[&str],
        body: &E::Body,
    ) -> Result<E::Reply, ApiError> {
        self.call::<E>(path, &E::Query::default(), body).await
    }

    /// Calls an endpoint.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn call<E: Endpoint>(
        &self,
        path: &[&str],
        query: &E::Query,
        body: &E::Body,
    ) -> Result<E::Reply, ApiError> {
        let bytes = self.call_raw(&E::INFO, path, query, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::new(
                ErrorKind::Failed,
                "bad_reply",
                format!("the daemon's answer to {} cannot be read: {error}", E::INFO.id),
                "use a client of the daemon's version: muster version",
            )
        })
    }

    /// Calls an endpoint and gives its reply as bytes: a picture, or JSON as the server wrote it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn call_raw(
        &self,
        info: &Info,
        path: &[&str],
        query: &impl Serialize,
        body: &impl Serialize,
    ) -> Result<Bytes, ApiError> {
        let request = self.request(info, path, query, body)?;
        let response = self.target.send(request).await?;
        let status = response.status();
        let bytes = collect(response).await?;
        if status.is_success() { Ok(bytes) } else { Err(error_of(status, &bytes)) }
    }

    /// Follows server-sent events of an endpoint.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events<E>(&self, query: &E::Query) -> Result<EventStream<E::Reply>, ApiError>
    where
        E: Endpoint<Body = crate::endpoint::Nothing>,
        E::Reply: DeserializeOwned,
    {
        let request = self.request(&E::INFO, &[], query, &crate::endpoint::Nothing {})?;
        let response = self.target.send(request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(error_of(status, &collect(response).await?));
        }
        Ok(EventStream::new(response.into_body()))
    }

    /// Opens a WebSocket of an endpoint.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn socket<E: Endpoint>(&self, path: &[&str]) -> Result<Socket, ApiError> {
        Socket::open(&self.target, &E::INFO.fill(path)).await
    }

    fn request(
        &self,
        info: &Info,
        path: &[&str],
        query: &impl Serialize,
        body: &impl Serialize,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let mut uri = info.fill(path);
        append_query(&mut uri, query);
        if self.stale && info.takes_stale() {
            uri.push_str(if uri.contains('?') { "&stale=true" } else { "?stale=true" });
        }
        let body = match serde_json::to_vec(body) {
            Ok(body) if body != b"{}" => body,
            Ok(_) => Vec::new(),
            Err(error) => return Err(cannot_send(&error)),
        };
        let mut request = Request::builder()
            .method(info.method.as_str())
            .uri(uri)
            .header("host", self.target.host())
            .header("accept", "application/json, text/event-stream, image/png");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        if let Some(token) = self.target.token() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::new(Bytes::from(body))).map_err(|error| cannot_send(&error))
    }
}

fn cannot_send(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(
        ErrorKind::BadRequest,
        "bad_request",
        format!("the request cannot be written: {error}"),
        "check names and addresses for strange characters",
    )
}

fn append_query(uri: &mut String, query: &impl Serialize) {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(query) else { return };
    let mut separator = '?';
    for (name, value) in fields {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        uri.push(separator);
        uri.push_str(&name);
        uri.push('=');
        percent_encode(&text, uri);
        separator = '&';
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ApiError> {
    let body = Limited::new(response.into_body(), REPLY_BYTES_MAX);
    body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| {
        ApiError::new(
            ErrorKind::Unavailable,
            "cut_off",
            format!("the connection ended in the middle of the answer: {error}"),
            "see whether the daemon runs: systemctl status muster",
        )
    })
}

fn error_of(status: StatusCode, bytes: &[u8]) -> ApiError {
    serde_json::from_slice(bytes).unwrap_or_else(|_| {
        ApiError::new(
            ErrorKind::Failed,
            "http",
            format!("the server answered {status} and not in Muster's words"),
            "check that the address is that of a Muster daemon",
        )
    })
}
