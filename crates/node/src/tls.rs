//! The certificate of the TLS port: made once by this node, pinned by clients.

use std::fs;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use sha2::Digest;
use sha2::Sha256;

/// What others must know to trust the port.
#[derive(Debug, Clone)]
pub(crate) struct TlsInfo {
    pub(crate) address: SocketAddr,
    pub(crate) fingerprint: String,
}

/// Reads the node's certificate, making it at the first start, and gives the server's
/// configuration with the certificate's SHA-256.
pub(crate) fn server_config(dir: &Path, name: &str) -> anyhow::Result<(Arc<ServerConfig>, String)> {
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
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .context("the TLS certificate and key do not fit together")?;
    Ok((Arc::new(config), fingerprint))
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
