//! The certificate of the TLS port: made once by this node, pinned by clients.

use std::fs;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use sha2::Digest;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What others must know to trust the port.
#[derive(Debug, Clone)]
pub(crate) struct TlsInfo {
    pub(crate) address: SocketAddr,
    pub(crate) fingerprint: String,
}

/// The TLS port, open.
pub(crate) struct TlsPort {
    pub(crate) listener: TcpListener,
    /// Asks no browser for a certificate.
    pub(crate) plain: TlsAcceptor,
    /// Asks for one, and takes whoever has none as well.
    pub(crate) asking: TlsAcceptor,
    pub(crate) info: TlsInfo,
}

/// What the TLS port is served with.
pub(crate) struct Servers {
    pub(crate) plain: Arc<ServerConfig>,
    pub(crate) asking: Arc<ServerConfig>,
    /// SHA-256 of the node's certificate, in hexadecimal.
    pub(crate) fingerprint: String,
}

/// Reads the node's certificate, making it at the first start.
pub(crate) fn server_configs(dir: &Path, name: &str) -> anyhow::Result<Servers> {
    let cert_path = dir.join("cert.pem");
    let key_path = dir.join("key.pem");
    if !cert_path.exists() || !key_path.exists() {
        make(dir, &cert_path, &key_path, name).context("the TLS certificate cannot be made")?;
    }
    let cert = CertificateDer::from_pem_file(&cert_path)
        .with_context(|| format!("{} is not a certificate", cert_path.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key_path)
        .with_context(|| format!("{} is not a key", key_path.display()))?;
    let fingerprint = hex::encode(Sha256::digest(&cert));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let misfit = "the TLS certificate and key do not fit together";
    let plain = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key.clone_key())
        .context(misfit)?;
    let asking = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyHolder { provider }))
        .with_single_cert(vec![cert], key)
        .context(misfit)?;
    Ok(Servers { plain: Arc::new(plain), asking: Arc::new(asking), fingerprint })
}

/// Takes any certificate, or none, but only from somebody who has its key. Who that is, is looked
/// up when they sign in, where a refusal can be told in words.
#[derive(Debug)]
struct AnyHolder {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyHolder {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
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

fn make(dir: &Path, cert_path: &Path, key_path: &Path, name: &str) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let names = vec![name.to_owned(), "localhost".to_owned(), "muster".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    // The key first: a certificate without its key would stop the next start.
    write(key_path, made.signing_key.serialize_pem().as_bytes())?;
    write(cert_path, made.cert.pem().as_bytes())?;
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(part, path)
}
