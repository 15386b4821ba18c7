//! What the API says of the witness.

use std::collections::BTreeMap;

use model::NodeId;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// The witness: a voter that is no node, as the node that was asked finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WitnessView {
    /// Its id, new for each that is set.
    pub id: NodeId,
    /// Where it is.
    pub place: WitnessPlaceView,
    /// When it was set.
    pub since: UnixMillis,
    /// Who set it.
    pub by: String,
    /// Whether it votes now: it does while the number of nodes that vote is even.
    pub votes: bool,
    /// It is being removed.
    pub retired: bool,
    /// Whether the node that was asked reaches it.
    pub reachable: bool,
    /// What is wrong with it, seen from that node.
    pub problem: Option<String>,
}

/// Where a witness is. Secrets are named and never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WitnessPlaceView {
    /// A directory of a share that all nodes mount.
    Directory {
        /// The same on each node.
        path: String,
    },
    /// An object store.
    Object {
        /// `s3://BUCKET/FOLDER` or `az://CONTAINER/FOLDER`.
        url: String,
        /// Its options.
        options: BTreeMap<String, String>,
        /// Names of the options that are not shown.
        secrets: Vec<String>,
    },
    /// A block device that all nodes see.
    Block {
        /// The same on each node.
        path: String,
    },
    /// A `muster witness` on another machine.
    Remote {
        /// Where it listens.
        address: String,
    },
}

/// A witness to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WitnessSetBody {
    /// Where it shall be.
    pub place: WitnessPlaceBody,
}

/// Where a witness shall be.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WitnessPlaceBody {
    /// A directory of a share that all nodes mount at the same path. It must exist.
    Directory {
        /// Absolute.
        path: String,
    },
    /// An object store that writes on condition.
    Object {
        /// `s3://BUCKET/FOLDER` or `az://CONTAINER/FOLDER`.
        url: String,
        /// Options in the words of the store's own programs, in small letters: `aws_endpoint`,
        /// `aws_region`, `azure_storage_account_name`.
        #[serde(default)]
        options: BTreeMap<String, String>,
        /// Options that are never shown again: `aws_secret_access_key`.
        #[serde(default)]
        secrets: BTreeMap<String, String>,
    },
    /// A block device that all nodes see and that holds nothing else; at least 256 MiB.
    Block {
        /// Below `/dev`, the same on each node: `/dev/disk/by-id/...`.
        path: String,
    },
    /// A `muster witness` on another machine.
    Remote {
        /// What it printed when it started.
        token: String,
        /// Where the nodes reach it, ADDRESS:PORT, if that is not what the token says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
}

/// Secrets stay out of logs.
impl std::fmt::Debug for WitnessPlaceBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory { path } => write!(f, "Directory({path})"),
            Self::Block { path } => write!(f, "Block({path})"),
            Self::Object { url, .. } => write!(f, "Object({url})"),
            Self::Remote { address, .. } => write!(f, "Remote({address:?})"),
        }
    }
}
