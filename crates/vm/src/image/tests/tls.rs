//! HTTPS: a server whose certificate the host trusts, and one whose it does not.

use std::sync::Arc;

use rcgen::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const CHILD_DIR: &str = "MUSTER_TEST_TLS_DIR";
const CHILD_URL: &str = "MUSTER_TEST_TLS_URL";

/// Serves `body` over TLS to everybody; returns its port and its certificate.
async fn serve(body: Vec<u8>) -> (u16, String) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, body) = (acceptor.clone(), body.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (port, cert.pem())
}

/// Not a test by itself: the process whose trusted certificates the test chooses.
#[tokio::test]
async fn tls_child() {
    let (Ok(dir), Ok(url)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_URL)) else { return };
    let mut config = config(Path::new(&dir));
    config.fetch_attempts_max = 1;
    let request = request(1, ImportSource::Url(url), SourceFormat::Raw);
    let done = ImageStore::open(config).unwrap().import(request).wait().await;
    let outcome = match done {
        Ok(imported) => imported.sha256,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        }
    };
    std::fs::write(Path::new(&dir).join("outcome"), outcome).unwrap();
}

async fn import_trusting(roots: &str, url: String) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("roots.pem");
    std::fs::write(&file, roots).unwrap();
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::tests::tls::tls_child"])
        .env(CHILD_DIR, dir.path())
        .env(CHILD_URL, url)
        .env("SSL_CERT_FILE", &file)
        .env_remove("SSL_CERT_DIR")
        .stdout(std::process::Stdio::null())
        .status();
    let status = tokio::time::timeout(DEADLINE, status).await.expect("in time").unwrap();
    assert!(status.success());
    std::fs::read_to_string(dir.path().join("outcome")).unwrap()
}

#[tokio::test]
async fn a_certificate_the_host_trusts_is_enough_and_needed() {
    let raw = disk(2);
    let (port, certificate) = serve(raw.clone()).await;
    let url = |host: &str| format!("https://{host}:{port}/disk.raw");
    assert_eq!(import_trusting(&certificate, url("localhost")).await, sha256(&raw));

    // A certificate for another name, one that nobody trusts, and a host without any.
    let outcome = import_trusting(&certificate, url("127.0.0.1")).await;
    assert!(outcome.contains("no connection") && outcome.contains("certificate"), "{outcome}");
    let (_, other) = serve(Vec::new()).await;
    let outcome = import_trusting(&other, url("localhost")).await;
    assert!(outcome.contains("no connection") && outcome.contains("certificate"), "{outcome}");
    let outcome = import_trusting("", url("localhost")).await;
    assert!(outcome.contains("ca-certificates"), "{outcome}");
}
