//! The cluster's own certificate authority and what it issues.
//!
//! ```text
//!   CA           made by `cluster create`; its key stands in the replicated state
//!     subject    O = Muster, OU = <cluster id>, CN = <cluster name>
//!   node         SAN urn:muster:node:<uuid> and urn:muster:cluster:<uuid>; both TLS uses
//!     life       90 days; renewed at two thirds; begins an hour before it is issued, since
//!                clocks of hosts differ
//! ```
//!
//! A node keeps its key for as long as it is that node: the state knows the key's digest, so a
//! certificate for a member that somebody else got out of the CA's key is refused. A renewal is
//! the same key with a new certificate and needs nobody else: the node issues it from the CA in
//! its own copy of the state, also when it is cut off or late.

mod authority;
mod facts;
mod identity;

pub use authority::CaPublic;
pub use authority::ClusterCa;
pub use facts::CertificateFacts;
pub use facts::KeyDigest;
pub use identity::Identity;
pub use identity::NodeKey;

use model::NodeId;
use model::UnixMillis;

/// What is wrong with keys and certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// Not a certificate, key or request, or one that this version cannot read.
    #[error("{what} cannot be read: {problem}")]
    Unreadable {
        /// What.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The library could not make it.
    #[error("{what} cannot be made: {problem}")]
    Make {
        /// What.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The certificate has no node's name, or not one of this cluster.
    #[error("the certificate names no Muster node; it is not one of a cluster's")]
    NoNode,
    /// It names another node than the one that was called.
    #[error(
        "the certificate is that of node {found}, not of {wanted}; another host may have its \
         address: see muster node list"
    )]
    WrongNode {
        /// Whom one wanted.
        wanted: NodeId,
        /// Who it is.
        found: NodeId,
    },
    /// Another CA made it.
    #[error(
        "the certificate is of the cluster '{theirs}', not of '{ours}'; see that the address and \
         the token are of the cluster you mean"
    )]
    OtherCluster {
        /// The name in the certificate: that cluster's word.
        theirs: String,
        /// The name of this one.
        ours: String,
    },
    /// It has ended.
    #[error(
        "the certificate of {whose} ended at {ended}, and it is {now} here; if this host's clock \
         is right, restart that node's daemon so that it renews, else set the clock (timedatectl)"
    )]
    Expired {
        /// Whose.
        whose: String,
        /// When it ended.
        ended: Stamp,
        /// What this host's clock says.
        now: Stamp,
    },
    /// It begins in the future.
    #[error(
        "the certificate of {whose} is valid from {begins} on, and it is {now} here: one of the \
         two clocks is wrong; compare them (timedatectl) and set the wrong one"
    )]
    NotYetValid {
        /// Whose.
        whose: String,
        /// When it begins.
        begins: Stamp,
        /// What this host's clock says.
        now: Stamp,
    },
    /// The chain does not hold for another reason.
    #[error("the certificate of {whose} does not hold: {problem}")]
    Invalid {
        /// Whose.
        whose: String,
        /// Why.
        problem: String,
    },
}

/// Digest of the public key that a certificate in PEM is for.
///
/// # Errors
/// [`PkiError::Unreadable`].
pub fn certificate_key(pem: &str) -> Result<KeyDigest, PkiError> {
    Ok(CertificateFacts::read(&authority::certificate_from_pem(pem)?)?.key)
}

/// A time for people: `2026-11-21 06:16 UTC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(pub UnixMillis);

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secs = i64::try_from(self.0.get() / 1_000).unwrap_or(i64::MAX);
        match time::OffsetDateTime::from_unix_timestamp(secs) {
            Ok(at) => write!(
                f,
                "{:04}-{:02}-{:02} {:02}:{:02} UTC",
                at.year(),
                u8::from(at.month()),
                at.day(),
                at.hour(),
                at.minute()
            ),
            Err(_) => write!(f, "{} ms", self.0.get()),
        }
    }
}

#[cfg(test)]
mod tests;
