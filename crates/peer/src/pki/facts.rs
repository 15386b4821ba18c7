//! What a certificate says, read from its bytes.

use std::fmt;
use std::str::FromStr;

use model::ClusterId;
use model::NodeId;
use model::UnixMillis;
use sha2::Digest;
use sha2::Sha256;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::PkiError;
use super::Stamp;
use crate::error::clean;

/// The longest certificate that is looked at: ours have less than one kilobyte.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// The longest name of a cluster that is shown.
const NAME_CHARS_MAX: usize = 64;

pub(super) const NODE_URN: &str = "urn:muster:node:";
pub(super) const CLUSTER_URN: &str = "urn:muster:cluster:";

/// SHA-256 of a public key (its SubjectPublicKeyInfo): the same for all certificates of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 32]);

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDigest({self})")
    }
}

impl FromStr for KeyDigest {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|error| PkiError::Unreadable {
            what: "the key's digest",
            problem: error.to_string(),
        })?;
        Ok(Self(bytes))
    }
}

/// What a certificate says of itself. Nothing of it is proven by reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The node it names.
    pub node: Option<NodeId>,
    /// The cluster it names.
    pub cluster: Option<ClusterId>,
    /// Name of the issuer: the cluster's name at the time it was made.
    pub issuer: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// It is valid from then on.
    pub not_before: UnixMillis,
    /// It is valid until then.
    pub not_after: UnixMillis,
    /// Digest of its public key.
    pub key: KeyDigest,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`PkiError::Unreadable`].
    pub fn read(der: &[u8]) -> Result<Self, PkiError> {
        let unreadable = |problem: &str| PkiError::Unreadable {
            what: "the certificate",
            problem: problem.to_owned(),
        };
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(unreadable("it is too large"));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|error| unreadable(&error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("bytes follow it"));
        }
        let (mut node, mut cluster) = (None, None);
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            let GeneralName::URI(uri) = name else { continue };
            if let Some(id) = uri.strip_prefix(NODE_URN) {
                // Two names would mean two nodes in one: neither is believed.
                if node.is_some() {
                    return Err(unreadable("it names two nodes"));
                }
                node = Some(id.parse().map_err(|_| unreadable("the node's id is none"))?);
            } else if let Some(id) = uri.strip_prefix(CLUSTER_URN) {
                cluster = id.parse().ok();
            }
        }
        let issuer = certificate.issuer().iter_common_name().next();
        let issuer = issuer.and_then(|name| name.as_str().ok()).unwrap_or("(without a name)");
        let validity = certificate.validity();
        let millis =
            |secs: i64| UnixMillis::new(u64::try_from(secs).unwrap_or(0).saturating_mul(1_000));
        Ok(Self {
            node,
            cluster,
            issuer: clean(issuer, NAME_CHARS_MAX),
            serial: hex::encode(certificate.raw_serial()),
            not_before: millis(validity.not_before.timestamp()),
            not_after: millis(validity.not_after.timestamp()),
            key: KeyDigest(Sha256::digest(certificate.public_key().raw).into()),
        })
    }

    /// When it should be renewed: at two thirds of its life.
    pub fn renew_at(&self) -> UnixMillis {
        let life = self.not_after.get().saturating_sub(self.not_before.get());
        UnixMillis::new(self.not_before.get().saturating_add(life / 3 * 2))
    }

    /// Whether it is valid at that time.
    ///
    /// # Errors
    /// [`PkiError::Expired`] or [`PkiError::NotYetValid`], each with what to do.
    pub fn check_time(&self, now: UnixMillis) -> Result<(), PkiError> {
        if now < self.not_before {
            return Err(PkiError::NotYetValid {
                whose: self.whose(),
                begins: Stamp(self.not_before),
                now: Stamp(now),
            });
        }
        if now > self.not_after {
            return Err(PkiError::Expired {
                whose: self.whose(),
                ended: Stamp(self.not_after),
                now: Stamp(now),
            });
        }
        Ok(())
    }

    /// Its holder, in words.
    pub(crate) fn whose(&self) -> String {
        match self.node {
            Some(node) => format!("node {node}"),
            None => format!("'{}'", self.issuer),
        }
    }
}
