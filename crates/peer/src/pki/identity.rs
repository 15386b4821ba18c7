//! Who this node is: its key, its certificate, and its cluster's CA.

use std::fmt;

use model::ClusterId;
use model::NodeId;
use model::UnixMillis;
use rcgen::CertificateParams;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use serde::Deserialize;
use serde::Serialize;

use super::CaPublic;
use super::CertificateFacts;
use super::ClusterCa;
use super::KeyDigest;
use super::PkiError;
use super::authority::NODE_DAYS;
use super::authority::certificate_from_pem;
use super::authority::validity;

/// A node's key: made by the node, never leaves it.
pub struct NodeKey(KeyPair);

/// A node's place in a cluster, as it proves it to others. Its JSON form is what a node keeps on
/// disk; it holds the key, so the file is for root only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Identity {
    cluster: ClusterId,
    cluster_name: String,
    node: NodeId,
    ca: CaPublic,
    certificate: CertificateDer<'static>,
    facts: CertificateFacts,
    stored: Stored,
}

/// | version | change |
/// | --- | --- |
/// | 1 | first |
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    version: u32,
    cluster: ClusterId,
    cluster_name: String,
    node: NodeId,
    ca: String,
    certificate: String,
    key: String,
}

const STORED_VERSION: u32 = 1;

impl NodeKey {
    /// A new key.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn create() -> Result<Self, PkiError> {
        KeyPair::generate()
            .map(Self)
            .map_err(|error| PkiError::Make { what: "the node's key", problem: error.to_string() })
    }

    /// Reads what [`NodeKey::pem`] gave.
    ///
    /// # Errors
    /// [`PkiError::Unreadable`].
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        KeyPair::from_pem(pem).map(Self).map_err(|error| PkiError::Unreadable {
            what: "the node's key",
            problem: error.to_string(),
        })
    }

    /// A request for a certificate (PKCS #10, DER): proves that this node has the key.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn request(&self) -> Result<Vec<u8>, PkiError> {
        let request = CertificateParams::default().serialize_request(&self.0);
        request.map(|request| request.der().to_vec()).map_err(|error| PkiError::Make {
            what: "the request for a certificate",
            problem: error.to_string(),
        })
    }

    /// In PEM: a secret.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey")
    }
}

impl Identity {
    /// Puts together what a node has and what it was given. The certificate must be of the CA and
    /// of the node, and hold now.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn new(
        (cluster, cluster_name): (ClusterId, &str),
        node: NodeId,
        ca: &CaPublic,
        certificate: &str,
        key: &NodeKey,
        now: UnixMillis,
    ) -> Result<Self, PkiError> {
        let identity = Self::try_from(Stored {
            version: STORED_VERSION,
            cluster,
            cluster_name: cluster_name.to_owned(),
            node,
            ca: ca.pem().to_owned(),
            certificate: certificate.to_owned(),
            key: key.pem(),
        })?;
        ca.check(&identity.certificate, now)?;
        Ok(identity)
    }

    /// The identity of the first node of a cluster, from the CA that was made with it.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn first(
        (cluster, cluster_name): (ClusterId, &str),
        node: NodeId,
        ca: &ClusterCa,
        now: UnixMillis,
    ) -> Result<Self, PkiError> {
        let key = NodeKey::create()?;
        let certificate = ca.sign(cluster, node, &key.0, validity(now, NODE_DAYS))?;
        Self::new((cluster, cluster_name), node, ca.public(), &certificate, &key, now)
    }

    /// The same node and key with a new certificate.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn renewed(&self, ca: &ClusterCa, now: UnixMillis) -> Result<Self, PkiError> {
        let key = NodeKey::from_pem(&self.stored.key)?;
        let certificate = ca.sign(self.cluster, self.node, &key.0, validity(now, NODE_DAYS))?;
        let cluster = (self.cluster, self.cluster_name.as_str());
        Self::new(cluster, self.node, ca.public(), &certificate, &key, now)
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The cluster's name.
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The cluster's CA.
    pub fn ca(&self) -> &CaPublic {
        &self.ca
    }

    /// What the node's certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Digest of the node's public key.
    pub fn key_digest(&self) -> KeyDigest {
        self.facts.key
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        // The CA goes along: who joins has only its digest.
        vec![self.certificate.clone(), self.ca.der().clone()]
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        let key = NodeKey::from_pem(&self.stored.key)?;
        PrivateKeyDer::try_from(key.0.serialize_der()).map_err(|problem| PkiError::Unreadable {
            what: "the node's key",
            problem: problem.to_owned(),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Identity")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl TryFrom<Stored> for Identity {
    type Error = PkiError;

    fn try_from(stored: Stored) -> Result<Self, PkiError> {
        if stored.version > STORED_VERSION {
            return Err(PkiError::Unreadable {
                what: "the node's identity",
                problem: format!("version {} is newer than this program", stored.version),
            });
        }
        let certificate = certificate_from_pem(&stored.certificate)?;
        let facts = CertificateFacts::read(&certificate)?;
        match facts.node {
            None => return Err(PkiError::NoNode),
            Some(found) if found != stored.node => {
                return Err(PkiError::WrongNode { wanted: stored.node, found });
            }
            Some(_) => {}
        }
        NodeKey::from_pem(&stored.key)?;
        Ok(Self {
            cluster: stored.cluster,
            cluster_name: stored.cluster_name.clone(),
            node: stored.node,
            ca: CaPublic::from_pem(&stored.ca)?,
            certificate,
            facts,
            stored,
        })
    }
}

impl From<Identity> for Stored {
    fn from(identity: Identity) -> Self {
        identity.stored
    }
}
