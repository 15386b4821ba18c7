//! Typed ids: one type per kind of thing, so that a disk's id can never be passed for a VM's.
//!
//! Ids are UUIDs made by whoever proposes a command (version 7, sortable by time); this crate never
//! makes one.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// Text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no {kind} id (a UUID such as 0191f6a0-7c1e-7d2a-8f00-0123456789ab)")]
pub struct IdError {
    /// What kind of id was wanted.
    pub kind: &'static str,
    /// What was given, cut to 64 characters.
    pub text: String,
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = String, format = Uuid)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that the caller has made or read.
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            /// The UUID itself, for file names and foreign interfaces.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The last eight hexadecimal digits: random, short, for names with a length limit.
            pub fn short(self) -> String {
                let text = self.0.simple().to_string();
                text[text.len() - 8..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text).map(Self).map_err(|_| IdError {
                    kind: $kind,
                    text: text.chars().take(64).collect(),
                })
            }
        }
    };
}

typed_id!(
    /// A virtual machine.
    VmId,
    "VM"
);
typed_id!(
    /// A host of the cluster.
    NodeId,
    "node"
);
typed_id!(
    /// A virtual disk.
    DiskId,
    "disk"
);
typed_id!(
    /// A virtual network adapter.
    NicId,
    "NIC"
);
typed_id!(
    /// A disk image that machines are made from.
    ImageId,
    "image"
);
typed_id!(
    /// A virtual network.
    NetworkId,
    "network"
);
typed_id!(
    /// A long-running operation.
    OpId,
    "operation"
);
typed_id!(
    /// An API token.
    TokenId,
    "token"
);
typed_id!(
    /// A session of a browser, or a link that can become one.
    SessionId,
    "session"
);
typed_id!(
    /// A device that can switch nodes off.
    FenceDeviceId,
    "fence device"
);
typed_id!(
    /// A volume that several nodes reach.
    VolumeId,
    "volume"
);
typed_id!(
    /// A rule on where VMs may run.
    RuleId,
    "rule"
);
typed_id!(
    /// A cluster: the nodes that share one state.
    ClusterId,
    "cluster"
);
typed_id!(
    /// A token by which nodes may join a cluster.
    JoinTokenId,
    "join token"
);
