//! The CA: made once for a cluster, signs nodes.

use std::fmt;

use model::ClusterId;
use model::NodeId;
use model::UnixMillis;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertificateSigningRequestParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::PublicKeyData;
use rcgen::SanType;
use rcgen::SerialNumber;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::CertificateFacts;
use super::PkiError;
use super::facts::CLUSTER_URN;
use super::facts::NODE_URN;
use crate::clock::unix_time;

/// Life of a node's certificate.
pub(crate) const NODE_DAYS: u64 = 90;

/// Life of the CA: longer than any cluster's hardware.
const CA_DAYS: u64 = 30 * 365;

/// How much earlier than now a certificate begins: clocks of hosts differ, and a host that has
/// just booted may not have asked a time server yet.
const BACKDATED_MS: u64 = 3_600_000;

const DAY_MS: u64 = 86_400_000;

/// The largest signing request that is looked at: ours have 300 bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// The CA with its key: whoever has it can make members.
pub struct ClusterCa {
    public: CaPublic,
    key: KeyPair,
}

/// The CA's certificate: enough to check others.
#[derive(Clone, PartialEq, Eq)]
pub struct CaPublic {
    der: CertificateDer<'static>,
    pem: String,
}

impl ClusterCa {
    /// Makes a CA for a cluster.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn create(cluster: ClusterId, name: &str, now: UnixMillis) -> Result<Self, PkiError> {
        let failed = |error: rcgen::Error| PkiError::Make {
            what: "the cluster's CA",
            problem: error.to_string(),
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Muster");
        params.distinguished_name.push(DnType::OrganizationalUnitName, cluster.to_string());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = validity(now, CA_DAYS);
        let certificate = params.self_signed(&key).map_err(failed)?;
        let public = CaPublic { der: certificate.der().clone(), pem: certificate.pem() };
        Ok(Self { public, key })
    }

    /// The CA from its stored form.
    ///
    /// # Errors
    /// [`PkiError::Unreadable`].
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key).map_err(|error| PkiError::Unreadable {
            what: "the key of the cluster's CA",
            problem: error.to_string(),
        })?;
        Ok(Self { public: CaPublic::from_pem(certificate)?, key })
    }

    /// Its certificate.
    pub fn public(&self) -> &CaPublic {
        &self.public
    }

    /// Its key in PEM: a secret.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Issues a certificate for a node that has shown, by a signed request, that the key is its
    /// own. Nothing of the request but the key is used. Answers with PEM.
    ///
    /// # Errors
    /// [`PkiError`]: the request is none, or its signature is wrong.
    pub fn issue(
        &self,
        cluster: ClusterId,
        node: NodeId,
        request: &[u8],
        now: UnixMillis,
    ) -> Result<String, PkiError> {
        let unreadable = |problem: String| PkiError::Unreadable {
            what: "the request for a certificate",
            problem,
        };
        if request.len() > REQUEST_BYTES_MAX {
            return Err(unreadable("it is too large".to_owned()));
        }
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|error| unreadable(error.to_string()))?;
        self.sign(cluster, node, &request.public_key, validity(now, NODE_DAYS))
    }

    /// Issues a certificate for a key.
    pub(super) fn sign(
        &self,
        cluster: ClusterId,
        node: NodeId,
        key: &impl PublicKeyData,
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ) -> Result<String, PkiError> {
        let failed = |problem: String| PkiError::Make { what: "a node's certificate", problem };
        let uri = |text: String| {
            text.try_into().map(SanType::URI).map_err(|_| failed("its name".to_owned()))
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Muster");
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params.subject_alt_names =
            vec![uri(format!("{NODE_URN}{node}"))?, uri(format!("{CLUSTER_URN}{cluster}"))?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial().map_err(failed)?);
        (params.not_before, params.not_after) = (not_before, not_after);
        let failed = |error: rcgen::Error| failed(error.to_string());
        let issuer = Issuer::from_ca_cert_der(&self.public.der, &self.key).map_err(failed)?;
        let certificate = params.signed_by(key, &issuer).map_err(failed)?;
        Ok(certificate.pem())
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("ClusterCa").field("public", &self.public).finish_non_exhaustive()
    }
}

impl CaPublic {
    /// Reads the certificate of a CA.
    ///
    /// # Errors
    /// [`PkiError::Unreadable`].
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der = certificate_from_pem(pem)?;
        CertificateFacts::read(&der)?;
        Ok(Self { der, pem: pem.to_owned() })
    }

    /// As it came in a TLS handshake.
    pub(crate) fn from_der(der: &CertificateDer<'_>) -> Self {
        Self { der: der.clone().into_owned(), pem: String::new() }
    }

    /// In PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate: what a join token pins.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// The cluster's name at the time the CA was made.
    pub fn name(&self) -> String {
        CertificateFacts::read(&self.der).map(|facts| facts.issuer).unwrap_or_default()
    }

    /// Checks that this CA issued a certificate, that it is valid now, and which node it names.
    ///
    /// # Errors
    /// [`PkiError`] says what is wrong and what to do.
    pub fn check(&self, leaf: &[u8], now: UnixMillis) -> Result<CertificateFacts, PkiError> {
        let facts = CertificateFacts::read(leaf)?;
        let invalid = |problem: String| PkiError::Invalid { whose: facts.whose(), problem };
        // The time first: of a certificate with two faults, this is the one people can mend.
        let der = CertificateDer::from(leaf);
        let parsed = rustls::server::ParsedCertificate::try_from(&der)
            .map_err(|error| invalid(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(|error| invalid(error.to_string()))?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider();
        // The signature is judged at a time at which the certificate holds, so that a wrong CA
        // and a wrong clock are told apart.
        let within = now.max(facts.not_before).min(facts.not_after);
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            &[],
            unix_time(within),
            algorithms.signature_verification_algorithms.all,
        )
        .map_err(|error| match error {
            rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
            ) => PkiError::OtherCluster { theirs: facts.issuer.clone(), ours: self.name() },
            error => invalid(error.to_string()),
        })?;
        facts.check_time(now)?;
        if facts.node.is_none() {
            return Err(PkiError::NoNode);
        }
        Ok(facts)
    }
}

impl fmt::Debug for CaPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaPublic({})", hex::encode(self.digest()))
    }
}

pub(super) fn certificate_from_pem(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| PkiError::Unreadable {
        what: "the certificate",
        problem: error.to_string(),
    })
}

/// From an hour ago to `days` from now.
pub(super) fn validity(now: UnixMillis, days: u64) -> (OffsetDateTime, OffsetDateTime) {
    let at = |ms: u64| {
        let secs = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(secs).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    (
        at(now.get().saturating_sub(BACKDATED_MS)),
        at(now.get().saturating_add(days.saturating_mul(DAY_MS))),
    )
}

/// Twenty bytes at most (RFC 5280, 4.1.2.2), positive, random.
fn serial() -> Result<SerialNumber, String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}
