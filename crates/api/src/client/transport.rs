//! Ways to a daemon: a Unix socket on this machine, or TLS with a pinned certificate.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use sha2::Digest;
use sha2::Sha256;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::UnixStream;

use crate::ApiError;
use crate::ErrorKind;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a daemon listens.
#[derive(Clone)]
pub enum Target {
    /// A socket on this machine; who asks is told by the kernel.
    Unix {
        /// Its path.
        path: PathBuf,
    },
    /// A TLS port; who asks is told by a token.
    Tls {
        /// `host:port`.
        address: String,
        /// SHA-256 of the server's certificate, in hexadecimal.
        fingerprint: String,
        /// The token's secret.
        token: String,
    },
}

/// A connection of either kind.
pub(crate) trait Link: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Tls { address, .. } => write!(f, "https://{address}"),
        }
    }
}

impl Target {
    pub(crate) fn host(&self) -> &str {
        match self {
            Self::Unix { .. } => "localhost",
            Self::Tls { address, .. } => address,
        }
    }

    pub(crate) fn token(&self) -> Option<&str> {
        match self {
            Self::Unix { .. } => None,
            Self::Tls { token, .. } => Some(token),
        }
    }

    pub(crate) async fn connect(&self) -> Result<Box<dyn Link>, ApiError> {
        let connecting = async {
            match self {
                Self::Unix { path } => {
                    let stream = UnixStream::connect(path).await;
                    stream.map(|stream| Box::new(stream) as Box<dyn Link>)
                }
                Self::Tls { address, fingerprint, .. } => connect_tls(address, fingerprint).await,
            }
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(self.unreachable(&std::io::Error::from(std::io::ErrorKind::TimedOut))),
        }
    }

    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ApiError> {
        let link = self.connect().await?;
        let broken = |error: hyper::Error| {
            ApiError::new(
                ErrorKind::Unavailable,
                "cut_off",
                format!("the connection to {self:?} broke: {error}"),
                "see whether the daemon runs: systemctl status muster",
            )
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(link)).await.map_err(broken)?;
        // Ends by itself when the response has been read or dropped.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)
    }

    fn unreachable(&self, error: &std::io::Error) -> ApiError {
        let (message, hint) = match self {
            Self::Unix { path } if error.kind() == std::io::ErrorKind::PermissionDenied => (
                format!("this user may not use {}", path.display()),
                "use sudo, or become a member of the group 'muster' and sign in again",
            ),
            Self::Unix { path } => (
                format!("no daemon answers on {}: {error}", path.display()),
                "start it (systemctl start muster), or name its socket with --socket",
            ),
            Self::Tls { address, .. } => (
                format!("no daemon answers on {address}: {error}"),
                "check the address and the fingerprint (muster node show on that host)",
            ),
        };
        ApiError::new(ErrorKind::Unavailable, "unreachable", message, hint)
    }
}

async fn connect_tls(address: &str, fingerprint: &str) -> std::io::Result<Box<dyn Link>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Pinned { fingerprint: fingerprint.to_owned(), provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("muster").map_err(std::io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, tcp).await?))
}

/// Trusts exactly one certificate, by its digest: the daemon makes its own, so no authority could
/// vouch for it, and a name says nothing.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = hex::encode(Sha256::digest(end_entity));
        let wanted = self.fingerprint.replace(':', "").to_ascii_lowercase();
        if seen == wanted {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General(format!("the server's certificate is {seen}, not {wanted}")))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
