//! Accepting connections: limits, who is at the other end, and HTTP/1.1 on each.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use model::Actor;
use model::NodeId;
use model::Role;
use nix::unistd::Gid;
use nix::unistd::Group;
use nix::unistd::Uid;
use nix::unistd::User;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::app::App;
use crate::config::Config;
use crate::http::Caller;
use crate::http::certificate;
use crate::tls::TlsPort;

/// Connections at once: each console and each follower of events takes one.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a client may take to send its request's head, and a handshake may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A process of this host; none if its user may not use Muster.
    Unix(Option<Caller>),
    /// Anybody; a token has to tell. With the certificate, if a browser showed one and has its key.
    Tls(Option<Arc<CertificateDer<'static>>>),
    /// Another node, which passes somebody's request on.
    Member(NodeId),
}

impl Peer {
    /// The certificate that was shown.
    pub(crate) fn certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(shown) => shown.as_deref().map(AsRef::as_ref),
            Self::Unix(_) | Self::Member(_) => None,
        }
    }
}

/// Makes the socket so that it appears with its rights in place, and listens.
pub(crate) fn bind_unix(path: &Path, config: &Config) -> anyhow::Result<UnixListener> {
    let part = path.with_extension("new");
    // Left by a daemon that was killed; nobody listens, since this daemon holds the lock.
    let _ = std::fs::remove_file(&part);
    let listener = UnixListener::bind(&part)
        .with_context(|| format!("the socket {} cannot be made", path.display()))?;
    if let Ok(Some(group)) = Group::from_name(&config.operator_group) {
        nix::unistd::chown(&part, None, Some(group.gid))?;
    }
    // Anybody may connect and be told why they may not go on; the roles decide.
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o666))?;
    std::fs::rename(&part, path)?;
    Ok(listener)
}

/// Serves the Unix socket until the daemon ends.
pub(crate) async fn serve_unix(listener: UnixListener, router: Router, config: Config) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let peer = Peer::Unix(identify(&stream, &config));
        let router = router.clone();
        tokio::spawn(async move {
            serve_connection(stream, router, peer).await;
            drop(permit);
        });
    }
}

/// Serves the TLS port until the daemon ends.
pub(crate) async fn serve_tls(port: TlsPort, router: Router, app: Arc<App>) {
    let TlsPort { listener, plain, asking, .. } = port;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        // Where nobody signs in by certificate, no browser is made to ask its user for one.
        let acceptor = if certificate::any(&app) { asking.clone() } else { plain.clone() };
        let router = router.clone();
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await;
            if let Ok(Ok(stream)) = handshake {
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let shown = shown.map(|it| Arc::new(it.clone().into_owned()));
                serve_connection(stream, router, Peer::Tls(shown)).await;
            }
            drop(permit);
        });
    }
}

/// Out of descriptors, most likely: trying again at once would only burn a processor.
async fn pause_after(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one connection until it ends.
pub(crate) async fn serve_connection<S>(stream: S, router: Router, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let request: Request = request.map(axum::body::Body::new);
        router.clone().oneshot(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        // Clients hang up at will; that is worth a word only to somebody who looks for it.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Who a local process is, by its user and groups.
fn identify(stream: &UnixStream, config: &Config) -> Option<Caller> {
    let credentials = stream.peer_cred().ok()?;
    let uid = Uid::from_raw(credentials.uid());
    let user = User::from_uid(uid).ok().flatten();
    let name = user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone());
    let actor = Actor::new(&format!("user {name}"));
    if uid.is_root() || uid == Uid::effective() {
        return Some(Caller::by_word(actor, Role::Administrator));
    }
    let gid = Gid::from_raw(credentials.gid());
    let is_member = |group: &str| {
        Group::from_name(group).ok().flatten().is_some_and(|group| {
            group.gid == gid
                || user
                    .as_ref()
                    .is_some_and(|user| user.gid == group.gid || group.mem.contains(&user.name))
        })
    };
    if is_member(&config.admin_group) {
        return Some(Caller::by_word(actor, Role::Administrator));
    }
    is_member(&config.operator_group).then_some(Caller::by_word(actor, Role::Operator))
}
