//! What can go wrong between nodes, in words that end in a next step.

use std::fmt;

use model::NodeId;
use serde::Deserialize;
use serde::Serialize;

use crate::pki::PkiError;

/// Longest text of a refusal that is taken from the network.
const TEXT_CHARS_MAX: usize = 600;

/// Why a node says no. New words may come; an older node reads them as [`Self::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No certificate was shown where one is needed.
    NoCertificate,
    /// The certificate is not of this cluster's CA, or not well made.
    ForeignCertificate,
    /// The certificate has expired.
    CertificateExpired,
    /// The certificate is valid only later: one of the clocks is wrong.
    CertificateNotYetValid,
    /// The node says to be another one than its certificate names.
    WrongNode,
    /// The caller belongs to another cluster.
    WrongCluster,
    /// The node was evicted from the cluster.
    Evicted,
    /// The node has left the cluster.
    Left,
    /// The node's key is not the one that it joined with.
    OtherKey,
    /// There is no version of the protocol that both speak.
    NoCommonVersion,
    /// The bytes are not the protocol.
    Malformed,
    /// A frame is larger than allowed.
    TooLarge,
    /// The method is not known here: an older version.
    UnknownMethod,
    /// Too much at once; later it may work.
    Busy,
    /// The call took longer than its caller wanted to wait.
    Deadline,
    /// The join token is not valid (any more).
    Token,
    /// The state machine does not accept it.
    Refused,
    /// It was tried and failed.
    Failed,
    /// A word of a newer version.
    #[serde(other)]
    Other,
}

/// A no with its reason and a next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// One sentence.
    pub message: String,
    /// What to do.
    #[serde(default)]
    pub hint: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: RefusalCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }

    /// The other side does not speak the protocol.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Malformed, message, "see that the address is a Muster peer port")
    }

    /// As it came from the network: cut and without control characters.
    pub(crate) fn cleaned(mut self) -> Self {
        self.message = clean(&self.message, TEXT_CHARS_MAX);
        self.hint = clean(&self.hint, TEXT_CHARS_MAX);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// Text of a stranger, safe for logs and terminals.
pub(crate) fn clean(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(chars_max).collect()
}

/// Why a call to another node has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection: the call was not carried out.
    #[error("{node} cannot be reached: {problem}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// What was tried and what came of it.
        problem: String,
    },
    /// No address of it is known: the call was not carried out.
    #[error("no address of node {0} is known; see that it has joined: muster node list")]
    NoAddress(NodeId),
    /// No answer in time: it may or may not have been carried out.
    #[error("{node} did not answer within {after_ms} ms")]
    Timeout {
        /// Who.
        node: NodeId,
        /// How long was waited.
        after_ms: u64,
    },
    /// The connection broke: it may or may not have been carried out.
    #[error("the connection to {node} broke: {problem}")]
    Broken {
        /// With whom.
        node: NodeId,
        /// How.
        problem: String,
    },
    /// The body is larger than the method allows.
    #[error("{bytes} bytes are more than a call may carry ({bytes_max})")]
    TooLarge {
        /// How large.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The connection has as many calls as it may have. Nothing was carried out.
    #[error("too many calls to {0} are under way; try again")]
    Busy(NodeId),
    /// This node's own certificate, or the other side's, does not do.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The other side says no. Before the greeting or from the method itself.
    #[error("{node} refuses: {refusal}")]
    Refused {
        /// Who.
        node: NodeId,
        /// Why.
        refusal: Refusal,
    },
}

impl CallError {
    /// The refusal's word, where the other side answered with one.
    pub fn code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.code),
            _ => None,
        }
    }

    /// What went wrong, without the node: for sentences that have named it. Ids tell people nothing.
    pub fn problem(&self) -> String {
        match self {
            Self::Unreachable { problem, .. } => problem.clone(),
            Self::NoAddress(_) => "no address of it is known".to_owned(),
            Self::Timeout { after_ms, .. } => format!("no answer within {after_ms} ms"),
            Self::Broken { problem, .. } => format!("the connection broke: {problem}"),
            Self::Busy(_) => "too many calls to it are under way".to_owned(),
            Self::Refused { refusal, .. } => format!("it refuses: {refusal}"),
            Self::TooLarge { .. } | Self::Pki(_) => self.to_string(),
        }
    }

    /// Whether the call was certainly not carried out.
    pub fn surely_not_done(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Broken { .. } => false,
            Self::Refused { refusal, .. } => {
                !matches!(refusal.code, RefusalCode::Deadline | RefusalCode::Failed)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use model::NodeId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_problem_names_no_id() {
        let node = NodeId::new(Uuid::from_u128(7));
        let problem = "no connection within 1500 ms".to_owned();
        for error in [
            CallError::Unreachable { node, problem: problem.clone() },
            CallError::NoAddress(node),
            CallError::Timeout { node, after_ms: 5 },
            CallError::Broken { node, problem },
            CallError::Busy(node),
        ] {
            assert!(error.to_string().contains(&node.to_string()), "{error}");
            assert!(!error.problem().contains(&node.to_string()), "{}", error.problem());
            assert!(!error.problem().is_empty());
        }
    }
}
