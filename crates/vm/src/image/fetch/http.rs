//! An HTTP(S) server as a source: HTTP/1.1 over hyper, TLS by rustls with the host's own trusted
//! certificates.
//!
//! Every wait has a limit, redirects are followed a few times and never from https to http, and a
//! part is only asked for (`Range`) together with what proves that the file is still the same
//! (`If-Range` with a strong ETag or a modification date).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Empty;
use hyper::HeaderMap;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use super::Body;
use super::FetchError;
use super::Opened;
use super::Position;
use super::Source;

/// Longest piece of foreign text we repeat in an error.
const SHOWN_CHARS_MAX: usize = 200;
/// Largest response header we read: 64 KiB, as common servers send.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Limits of the HTTP client.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Redirects that are followed; publishers use one or two.
    pub redirects_max: u32,
    /// Name lookup, TCP and TLS together.
    pub connect: Duration,
    /// From the request to the header of the answer.
    pub header: Duration,
    /// Longest silence within the body.
    pub idle: Duration,
    /// Largest source, in bytes.
    pub source_bytes_max: u64,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            redirects_max: 5,
            connect: Duration::from_secs(15),
            header: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            source_bytes_max: crate::image::inspect::VIRTUAL_SIZE_BYTES_MAX,
        }
    }
}

pub(in crate::image) struct HttpSource {
    url: Url,
    limits: HttpLimits,
}

impl HttpSource {
    /// Checks the address.
    ///
    /// # Errors
    /// Not an absolute http or https address, or one with a password in it (it would end in logs).
    pub(in crate::image) fn new(url: &str, limits: HttpLimits) -> Result<Self, FetchError> {
        let bad = |reason: &str| FetchError::BadUrl { url: cut(url), reason: reason.to_owned() };
        let parsed = Url::parse(url).map_err(|error| bad(&error.to_string()))?;
        check_url(&parsed).map_err(bad)?;
        Ok(Self { url: parsed, limits })
    }

    async fn request(
        &self,
        url: &Url,
        position: &Position,
    ) -> Result<(Response<Incoming>, Connection), FetchError> {
        let host = authority(url);
        let connecting = connect(url, &host);
        let stream = timeout(self.limits.connect, connecting)
            .await
            .map_err(|_| self.late(&host, "could not be reached", self.limits.connect))??;
        let exchange = async {
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(HEADER_BYTES_MAX)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|error| cut_off(&host, 0, &error))?;
            let task = tokio::spawn(async move {
                // A broken connection shows as an error of the body; nothing is lost here.
                let _ = connection.await;
            });
            let guard = Connection(task.abort_handle());
            let request = build_request(url, &host, position)?;
            let response =
                sender.send_request(request).await.map_err(|error| cut_off(&host, 0, &error))?;
            Ok((response, guard))
        };
        timeout(self.limits.header, exchange)
            .await
            .map_err(|_| self.late(&host, "did not answer", self.limits.header))?
    }

    fn late(&self, host: &str, what: &'static str, limit: Duration) -> FetchError {
        FetchError::Timeout { host: host.to_owned(), what, limit }
    }

    fn opened(
        &self,
        host: String,
        response: Response<Incoming>,
        connection: Connection,
        position: &Position,
    ) -> Result<Opened, FetchError> {
        let status = response.status();
        let headers = response.headers();
        if let Some(encoding) = text(headers, header::CONTENT_ENCODING)
            && !encoding.eq_ignore_ascii_case("identity")
        {
            return Err(FetchError::Encoding { host, encoding: cut(&encoding) });
        }
        let length =
            text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let (offset, total) = match status {
            StatusCode::OK => (0, length),
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, header::CONTENT_RANGE);
                let range = range.as_deref().and_then(parse_content_range);
                match range {
                    Some((start, total)) if start == position.offset => (start, total),
                    _ => return Err(not_http(&host, "an answer for another range")),
                }
            }
            other => return Err(FetchError::Status { host, status: other.as_u16() }),
        };
        let stated = total.unwrap_or_else(|| offset.saturating_add(length.unwrap_or(0)));
        if stated > self.limits.source_bytes_max {
            let limit = self.limits.source_bytes_max;
            return Err(FetchError::TooLarge { size: stated, limit });
        }
        let identity = identity(headers);
        Ok(Opened {
            offset,
            total,
            identity,
            body: Box::new(HttpBody {
                body: response.into_body(),
                _connection: connection,
                host,
                got: 0,
                offset,
                idle: self.limits.idle,
                limit: self.limits.source_bytes_max,
            }),
        })
    }
}

#[async_trait]
impl Source for HttpSource {
    async fn open(&self, position: &Position) -> Result<Opened, FetchError> {
        // Without proof that the file is the same, a part of it is worth nothing.
        let mut position = match position.identity {
            Some(_) => position.clone(),
            None => Position::default(),
        };
        let mut url = self.url.clone();
        let mut redirects = 0;
        loop {
            let (response, connection) = self.request(&url, &position).await?;
            let host = authority(&url);
            let status = response.status();
            if status == StatusCode::RANGE_NOT_SATISFIABLE && position.offset > 0 {
                // Shorter than what we have: another file. Begin again.
                position = Position::default();
                continue;
            }
            let location = text(response.headers(), header::LOCATION);
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                let same = identity(response.headers()) == position.identity;
                if status == StatusCode::PARTIAL_CONTENT && !same {
                    position = Position::default();
                    continue;
                }
                return self.opened(host, response, connection, &position);
            };
            redirects += 1;
            if redirects > self.limits.redirects_max {
                return Err(FetchError::TooManyRedirects { limit: self.limits.redirects_max });
            }
            url = redirected(&url, &host, &location)?;
        }
    }
}

fn redirected(url: &Url, host: &str, location: &str) -> Result<Url, FetchError> {
    let bad = |reason: &str| FetchError::BadUrl { url: cut(location), reason: reason.to_owned() };
    let next = url.join(location).map_err(|error| bad(&error.to_string()))?;
    check_url(&next).map_err(bad)?;
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(FetchError::Downgrade { host: host.to_owned(), to: cut(next.as_str()) });
    }
    Ok(next)
}

fn check_url(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("only http and https are fetched");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it names no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it has a user name or password in it");
    }
    Ok(())
}

fn build_request(
    url: &Url,
    host: &str,
    position: &Position,
) -> Result<Request<Empty<Bytes>>, FetchError> {
    let mut target = url.path().to_owned();
    if let Some(query) = url.query() {
        target.push('?');
        target.push_str(query);
    }
    let mut request = Request::get(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("muster/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::ACCEPT_ENCODING, "identity");
    if let (Some(identity), 1..) = (&position.identity, position.offset) {
        request = request
            .header(header::RANGE, format!("bytes={}-", position.offset))
            .header(header::IF_RANGE, identity);
    }
    request
        .body(Empty::new())
        .map_err(|error| FetchError::BadUrl { url: cut(url.as_str()), reason: error.to_string() })
}

/// A strong ETag, else a modification date: what `If-Range` can carry.
fn identity(headers: &HeaderMap) -> Option<String> {
    text(headers, header::ETAG)
        .filter(|tag| tag.starts_with('"'))
        .or_else(|| text(headers, header::LAST_MODIFIED))
        .filter(|identity| identity.len() <= 1024)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `bytes 100-199/200` or `bytes 100-199/*`.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (start <= end && total.is_none_or(|total| end < total)).then_some((start, total))
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(url: &Url, shown: &str) -> Result<Box<dyn Stream>, FetchError> {
    let failed = |source| FetchError::Connect { host: shown.to_owned(), source };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
    if url.scheme() == "http" {
        return Ok(Box::new(tcp));
    }
    let config = tokio::task::spawn_blocking(tls_config)
        .await
        .map_err(|error| failed(io::Error::other(error)))??;
    let name = rustls::pki_types::ServerName::try_from(host)
        .map_err(|error| failed(io::Error::other(error)))?;
    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(failed)?;
    Ok(Box::new(tls))
}

/// The host's own certificates, read for each import: an administrator's change counts at once.
fn tls_config() -> Result<Arc<rustls::ClientConfig>, FetchError> {
    let no_roots = |detail: String| FetchError::NoRoots { detail };
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let detail = found.errors.first().map(ToString::to_string).unwrap_or_default();
        return Err(no_roots(detail));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| no_roots(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Ends the connection's task when the body is not wanted any more.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct HttpBody {
    body: Incoming,
    _connection: Connection,
    host: String,
    got: u64,
    offset: u64,
    idle: Duration,
    limit: u64,
}

#[async_trait]
impl Body for HttpBody {
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let frame =
                timeout(self.idle, self.body.frame()).await.map_err(|_| FetchError::Timeout {
                    host: self.host.clone(),
                    what: "sent nothing",
                    limit: self.idle,
                })?;
            let frame = match frame {
                None => return Ok(None),
                Some(frame) => frame.map_err(|error| cut_off(&self.host, self.got, &error))?,
            };
            // Trailers are of no interest.
            let Ok(data) = frame.into_data() else { continue };
            self.got += data.len() as u64;
            let size = self.offset.saturating_add(self.got);
            if size > self.limit {
                return Err(FetchError::TooLarge { size, limit: self.limit });
            }
            return Ok(Some(data));
        }
    }
}

fn cut_off(host: &str, got: u64, error: &hyper::Error) -> FetchError {
    let mut detail = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        detail.push_str(": ");
        detail.push_str(&inner.to_string());
        cause = inner.source();
    }
    FetchError::Cut { host: host.to_owned(), got, detail: cut(&detail) }
}

fn not_http(host: &str, detail: &str) -> FetchError {
    FetchError::Cut { host: host.to_owned(), got: 0, detail: detail.to_owned() }
}

fn cut(text: &str) -> String {
    text.chars()
        .take(SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
