//! TLS between nodes: version 1.3 only, aws-lc-rs only, no resumption, both sides with the
//! cluster's certificates.
//!
//! The caller judges the called side's certificate within the handshake: nothing is sent to a
//! false node. The called side lets the handshake pass and judges right after it, before it reads
//! more than the greeting (`server::admit`): so that who is refused is told why, in words.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use model::NodeId;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;

use crate::clock::Clock;
use crate::pki::CaPublic;
use crate::pki::CertificateFacts;
use crate::pki::Identity;
use crate::pki::PkiError;

/// The name that a client says (SNI): there is nothing to choose by it.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from("muster.invalid").expect("a constant that is a name")
}

/// What the caller expects of the called side.
#[derive(Debug, Clone)]
pub(crate) enum Expect {
    /// This node of this cluster.
    Node(CaPublic, NodeId),
    /// Any node of the cluster whose CA has this SHA-256.
    Pinned([u8; 32]),
}

/// What the caller learned in the handshake.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict(Arc<Mutex<Option<Result<CertificateFacts, PkiError>>>>);

impl Verdict {
    /// What came of looking at the certificate, if the handshake came that far.
    pub(crate) fn take(&self) -> Option<Result<CertificateFacts, PkiError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, verdict: Result<CertificateFacts, PkiError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }
}

fn made(error: &rustls::Error) -> PkiError {
    PkiError::Make { what: "the TLS configuration", problem: error.to_string() }
}

/// The caller's side. `own` is none when it has no certificate yet.
pub(crate) fn client(
    expect: Expect,
    own: Option<&Identity>,
    clock: &Clock,
) -> Result<(Arc<ClientConfig>, Verdict), PkiError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verdict = Verdict::default();
    let verifier = Arc::new(CheckServer {
        expect,
        verdict: verdict.clone(),
        clock: clock.clone(),
        provider: provider.clone(),
    });
    let builder = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| made(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(own.chain(), own.private_key()?)
            .map_err(|error| made(&error))?,
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok((Arc::new(config), verdict))
}

/// The called side.
pub(crate) fn server(own: &Identity, clock: &Clock) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(LetPass { provider: provider.clone() });
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| made(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain(), own.private_key()?)
        .map_err(|error| made(&error))?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct CheckServer {
    expect: Expect,
    verdict: Verdict,
    clock: Clock,
    provider: Arc<CryptoProvider>,
}

impl CheckServer {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> Result<CertificateFacts, PkiError> {
        let now = self.clock.now();
        match &self.expect {
            Expect::Node(ca, wanted) => {
                let facts = ca.check(leaf, now)?;
                match facts.node {
                    Some(found) if found == *wanted => Ok(facts),
                    Some(found) => Err(PkiError::WrongNode { wanted: *wanted, found }),
                    None => Err(PkiError::NoNode),
                }
            }
            Expect::Pinned(digest) => {
                let ca = chain.iter().map(CaPublic::from_der).find(|ca| ca.digest() == *digest);
                match ca {
                    Some(ca) => ca.check(leaf, now),
                    None => Err(PkiError::OtherCluster {
                        theirs: CertificateFacts::read(leaf)?.issuer,
                        ours: "the token's".to_owned(),
                    }),
                }
            }
        }
    }
}

impl ServerCertVerifier for CheckServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.check(leaf, chain);
        let result = match &verdict {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            // The exact reason goes by way of the verdict.
            Err(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        };
        self.verdict.put(verdict);
        result
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

/// Takes any certificate, or none, but only from somebody who has its key.
#[derive(Debug)]
struct LetPass {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for LetPass {
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
