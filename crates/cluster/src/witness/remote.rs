//! A record on another machine: `muster witness`, which any small box can run, and its client.
//!
//! ```text
//!   frame    = length of the head (u32, little endian) | length of the body (u32) | head (JSON) | body
//!   request  = head { secret, record, what: read | write { expected } | remove },  body of a write
//!   answer   = head { what: record { tag } | none | written { tag } | changed | removed | failed },
//!              body of a record
//! ```
//!
//! One request for each connection, over TLS 1.3. The server's certificate is its own; the token
//! that it prints pins it by digest, and carries the secret that a client must know. The server
//! keeps records as [`Directory`] does, one request after another, and knows nothing of clusters.
//!
//! Until the secret is right, nothing above [`HEAD_BYTES_MAX`] is read. Connections are counted and
//! have a deadline.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::version::TLS13;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsConnector;

use super::directory::Directory;
use super::record::RECORD_BYTES_MAX;
use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

/// The largest head of a frame: a secret, a name and a tag.
const HEAD_BYTES_MAX: usize = 4 << 10;

/// Connections at once. A cluster has at most a few open.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client waits for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of the secret.
const SECRET_BYTES: usize = 32;

/// Begins each token, with its version.
const TOKEN_PREFIX: &str = "muster-witness-1.";

/// What a cluster must know to use a `muster witness`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessToken {
    /// Where it listens.
    pub address: SocketAddr,
    /// SHA-256 of its certificate, in hexadecimal.
    pin: String,
    /// What its clients must know, in hexadecimal.
    secret: String,
}

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not the token of a witness; `muster witness` prints it when it starts")]
pub struct BadToken;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its files.
    #[error("the witness cannot use {path}: {source}")]
    Files {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Its address.
    #[error("the witness cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Its certificate.
    #[error("the witness has no usable certificate: {0}; remove tls.der and key.der for new ones")]
    Certificate(String),
}

impl WitnessToken {
    /// The same witness by another address.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }
}

impl fmt::Debug for WitnessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WitnessToken({})", self.address)
    }
}

impl fmt::Display for WitnessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for WitnessToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let coded = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(BadToken)?;
        let json = URL_SAFE_NO_PAD.decode(coded).map_err(|_| BadToken)?;
        serde_json::from_slice(&json).map_err(|_| BadToken)
    }
}

#[derive(Serialize, Deserialize)]
struct Asked {
    secret: String,
    record: String,
    what: What,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Read,
    Write { expected: Option<String> },
    Remove,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Record {
        tag: String,
    },
    None,
    Written {
        tag: String,
    },
    Changed,
    Removed,
    /// Certainly not done.
    Unavailable(String),
    Unknown(String),
    Refused(String),
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

async fn write_frame(
    io: &mut (impl AsyncWrite + Unpin),
    head: &impl Serialize,
    body: &[u8],
) -> std::io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    io.write_all(&length(head.len())).await?;
    io.write_all(&length(body.len())).await?;
    io.write_all(&head).await?;
    io.write_all(body).await?;
    io.flush().await
}

/// The head, and how long the body is.
async fn read_head<T: serde::de::DeserializeOwned>(
    io: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<(T, usize)> {
    let bad = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let head = usize::try_from(io.read_u32_le().await?).unwrap_or(usize::MAX);
    let body = usize::try_from(io.read_u32_le().await?).unwrap_or(usize::MAX);
    if head > HEAD_BYTES_MAX || body > RECORD_BYTES_MAX {
        return Err(bad("the message is too large"));
    }
    let mut bytes = vec![0; head];
    io.read_exact(&mut bytes).await?;
    Ok((serde_json::from_slice(&bytes)?, body))
}

async fn read_body(io: &mut (impl AsyncRead + Unpin), length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// A `muster witness`.
pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    secret: String,
    token: WitnessToken,
    records: Directory,
    turn: Arc<Mutex<()>>,
}

impl Server {
    /// Opens a server that keeps its certificate, secret and records in `dir`, and tells its clients
    /// to come to `public` (else to where it listens).
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn open(
        dir: &Path,
        listen: SocketAddr,
        public: Option<SocketAddr>,
    ) -> Result<Self, ServeError> {
        let files = |source| ServeError::Files { path: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(files)?;
        let (certificate, key, secret) = own_files(dir)?;
        let pin = digest(&certificate);
        let certificate_error = |error: rustls::Error| ServeError::Certificate(error.to_string());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(certificate_error)?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate)],
                PrivatePkcs8KeyDer::from(key).into(),
            )
            .map_err(certificate_error)?;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| ServeError::Listen { address: listen, source })?;
        let bound = listener.local_addr().map_err(files)?;
        let token = WitnessToken { address: public.unwrap_or(bound), pin, secret: secret.clone() };
        let records = dir.join("records");
        std::fs::create_dir_all(&records).map_err(files)?;
        Ok(Self {
            listener,
            tls: TlsAcceptor::from(Arc::new(config)),
            secret,
            token,
            records: Directory::new(records, "witness"),
            turn: Arc::default(),
        })
    }

    /// What clients need.
    pub fn token(&self) -> &WitnessToken {
        &self.token
    }

    /// Serves until it is dropped.
    pub async fn serve(self) {
        let own = Arc::new(self);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match own.listener.accept().await {
                Ok((stream, from)) => {
                    let own = own.clone();
                    tokio::spawn(async move {
                        let served =
                            tokio::time::timeout(CONNECTION_TIMEOUT, own.connection(stream)).await;
                        if let Ok(Err(error)) = served {
                            tracing::debug!(%from, %error, "a connection failed");
                        }
                        drop(permit);
                    });
                }
                // Out of descriptors, perhaps: time for those that are open to end.
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut tls = self.tls.accept(stream).await?;
        let (asked, length): (Asked, usize) = read_head(&mut tls).await?;
        // Digests, so that the time of the comparison says nothing.
        let named = !asked.record.is_empty()
            && asked.record.len() <= 64
            && asked.record.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let (answer, bytes) = if digest(asked.secret.as_bytes()) != digest(self.secret.as_bytes()) {
            (Answer::Refused("the token is not this witness's".to_owned()), Vec::new())
        } else if !named {
            (Answer::Refused("no name of a record".to_owned()), Vec::new())
        } else {
            let body = read_body(&mut tls, length).await?;
            let store = self.records.beside(&asked.record);
            let turn = self.turn.clone().lock_owned().await;
            // What was begun is ended, whether or not the client is still there.
            let work = tokio::spawn(async move {
                let done = perform(&*store, asked.what, body).await;
                drop(turn);
                done
            });
            work.await.unwrap_or((Answer::Unknown("it failed".to_owned()), Vec::new()))
        };
        write_frame(&mut tls, &answer, &bytes).await?;
        tls.shutdown().await
    }
}

async fn perform(store: &dyn WitnessStore, what: What, body: Vec<u8>) -> (Answer, Vec<u8>) {
    let done = match what {
        What::Read => match store.read().await {
            Ok(Some((bytes, tag))) => return (Answer::Record { tag: tag.0 }, bytes),
            other => other.map(|_| Answer::None),
        },
        What::Write { expected } => {
            store.write_if(expected.map(Tag).as_ref(), body).await.map(|written| match written {
                Written::Yes(tag) => Answer::Written { tag: tag.0 },
                Written::No => Answer::Changed,
            })
        }
        What::Remove => store.remove().await.map(|()| Answer::Removed),
    };
    let answer = done.unwrap_or_else(|error| match error {
        StoreError::Unavailable(why) => Answer::Unavailable(why),
        StoreError::Unknown(why) => Answer::Unknown(why),
        StoreError::Refused(why) => Answer::Refused(why),
    });
    (answer, Vec::new())
}

/// Certificate, key and secret, made at the first start.
fn own_files(dir: &Path) -> Result<(Vec<u8>, Vec<u8>, String), ServeError> {
    let (tls, key, secret) = (dir.join("tls.der"), dir.join("key.der"), dir.join("secret"));
    if !secret.exists() {
        let made = rcgen::generate_simple_self_signed(vec!["muster-witness".to_owned()])
            .map_err(|error| ServeError::Certificate(error.to_string()))?;
        let mut random = [0; SECRET_BYTES];
        getrandom::fill(&mut random).map_err(|error| ServeError::Certificate(error.to_string()))?;
        write_private(&tls, made.cert.der())?;
        write_private(&key, &made.signing_key.serialize_der())?;
        // Last: where it is, the others are.
        write_private(&secret, hex::encode(random).as_bytes())?;
    }
    let read = |path: &Path| {
        let files = |source| ServeError::Files { path: path.display().to_string(), source };
        std::fs::read(path).map_err(files)
    };
    let text = String::from_utf8(read(&secret)?).unwrap_or_default();
    if text.len() != 2 * SECRET_BYTES {
        return Err(ServeError::Certificate("the secret is damaged".to_owned()));
    }
    Ok((read(&tls)?, read(&key)?, text))
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ServeError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let draft = path.with_extension("new");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|source| ServeError::Files { path: path.display().to_string(), source })
}

/// Lets exactly one certificate pass.
#[derive(Debug)]
struct Pinned {
    pin: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if digest(leaf) == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A record on a `muster witness`.
#[derive(Clone)]
pub struct Remote {
    token: WitnessToken,
    record: String,
    tls: TlsConnector,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({}, {})", self.token.address, self.record)
    }
}

impl Remote {
    /// The record `name` (letters, digits, dashes, at most 64) at that witness.
    ///
    /// # Errors
    /// The TLS library has no provider that can do this.
    pub fn new(token: WitnessToken, name: &str) -> Result<Self, StoreError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pinned = Arc::new(Pinned { pin: token.pin.clone(), provider: provider.clone() });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| StoreError::Refused(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { token, record: name.to_owned(), tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn ask(&self, what: What, body: &[u8]) -> Result<(Answer, Vec<u8>), StoreError> {
        let address = self.token.address;
        let unavailable =
            |why: &dyn fmt::Display| StoreError::Unavailable(format!("{address}: {why}"));
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            // Its certificate is known by digest; the name says nothing.
            let name = ServerName::try_from("muster.invalid").map_err(std::io::Error::other)?;
            self.tls.connect(name, stream).await
        };
        let mut tls = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| unavailable(&"no connection in time"))?
            .map_err(|error| unavailable(&error))?;
        let asked = Asked { secret: self.token.secret.clone(), record: self.record.clone(), what };
        let exchange = async {
            write_frame(&mut tls, &asked, body).await?;
            let (answer, length): (Answer, usize) = read_head(&mut tls).await?;
            Ok::<_, std::io::Error>((answer, read_body(&mut tls, length).await?))
        };
        let unknown = |why: &dyn fmt::Display| StoreError::Unknown(format!("{address}: {why}"));
        let (answer, body) = tokio::time::timeout(CONNECTION_TIMEOUT, exchange)
            .await
            .map_err(|_| unknown(&"no answer in time"))?
            .map_err(|error| unknown(&error))?;
        match answer {
            Answer::Unavailable(why) => Err(unavailable(&why)),
            Answer::Unknown(why) => Err(unknown(&why)),
            Answer::Refused(why) => Err(StoreError::Refused(format!("{address}: {why}"))),
            answer => Ok((answer, body)),
        }
    }
}

fn odd() -> StoreError {
    StoreError::Unknown("the answer is to another question".to_owned())
}

#[async_trait]
impl WitnessStore for Remote {
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        match self.ask(What::Read, &[]).await? {
            (Answer::Record { tag }, bytes) => Ok(Some((bytes, Tag(tag)))),
            (Answer::None, _) => Ok(None),
            _ => Err(odd()),
        }
    }

    async fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: Vec<u8>,
    ) -> Result<Written, StoreError> {
        let expected = expected.map(|tag| tag.0.clone());
        match self.ask(What::Write { expected }, &bytes).await?.0 {
            Answer::Written { tag } => Ok(Written::Yes(Tag(tag))),
            Answer::Changed => Ok(Written::No),
            _ => Err(odd()),
        }
    }

    async fn remove(&self) -> Result<(), StoreError> {
        match self.ask(What::Remove, &[]).await?.0 {
            Answer::Removed => Ok(()),
            _ => Err(odd()),
        }
    }

    fn beside(&self, name: &str) -> Arc<dyn WitnessStore> {
        Arc::new(Self { record: name.to_owned(), ..self.clone() })
    }

    fn reads_are_fresh(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        format!("witness at {}", self.token.address)
    }
}
