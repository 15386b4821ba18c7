//! Why the state machine does not accept a command. Each refusal ends in a next step.

use crate::Gone;
use crate::LunId;
use crate::Name;
use crate::NameError;
use crate::OpId;
use crate::Power;
use crate::Revision;
use crate::SpecError;
use crate::Verb;

/// A command that was not accepted. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such thing.
    #[error("there is no {what} {which}", what = thing(what))]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Name or id.
        which: String,
    },
    /// The name is in use.
    #[error("a {what} named {name} exists already")]
    NameTaken {
        /// What kind of thing.
        what: &'static str,
        /// The name.
        name: Name,
    },
    /// The id is in use: the command was proposed twice.
    #[error("the id {0} is in use already")]
    IdTaken(String),
    /// The name cannot be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The configuration cannot be.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The guest's processors have what the node's lack.
    #[error("{node} {why}; {target} would crash there")]
    Processor {
        /// The VM.
        target: Name,
        /// The node.
        node: Name,
        /// What is missing, in words that go on from the node's name.
        why: String,
    },
    /// Another operation is under way on the same thing.
    #[error("{target} is busy: {verb} is under way")]
    Busy {
        /// The thing.
        target: Name,
        /// The operation under way.
        op: OpId,
        /// What it does.
        verb: Verb,
    },
    /// The verb does not fit the power state.
    #[error("cannot {verb} {target} while it is {power}", power = power_word(*power))]
    WrongPower {
        /// What was asked for.
        verb: Verb,
        /// Of which VM.
        target: Name,
        /// Its settled power state.
        power: Power,
    },
    /// The VM is in the recycle bin.
    #[error("{0} is in the recycle bin")]
    Deleted(Name),
    /// The VM is not in the recycle bin.
    #[error("{0} is not in the recycle bin")]
    NotDeleted(Name),
    /// Somebody else changed it meanwhile.
    #[error("{target} was changed meanwhile: its revision is {is}, not {wanted}")]
    Stale {
        /// The VM.
        target: Name,
        /// Its revision.
        is: Revision,
        /// The revision that the change was made for.
        wanted: Revision,
    },
    /// This can change only while the VM is off.
    #[error("{what} of {target} can change only while it is off")]
    NeedsOff {
        /// What.
        what: &'static str,
        /// The VM.
        target: Name,
    },
    /// The thing cannot go while others need it.
    #[error("{what} {name} is in use by {users}")]
    InUse {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: Name,
        /// By what.
        users: String,
    },
    /// The image cannot be used now.
    #[error("image {0} is not ready")]
    ImageNotReady(Name),
    /// A disk can only grow.
    #[error("disk {disk} has {is}; it can only grow, and {wanted} is not more")]
    CannotShrink {
        /// The disk.
        disk: Name,
        /// Its size.
        is: crate::Bytes,
        /// The size asked for.
        wanted: crate::Bytes,
    },
    /// A thin copy is smaller than its image.
    #[error("disk {disk} with {wanted} is smaller than its image, which has {least}")]
    SmallerThanImage {
        /// The disk.
        disk: Name,
        /// The size asked for.
        wanted: crate::Bytes,
        /// The image's size.
        least: crate::Bytes,
    },
    /// No address is left, or the wanted one is in use or outside the network.
    #[error("network {network}: {problem}")]
    Address {
        /// The network.
        network: Name,
        /// What is wrong.
        problem: String,
    },
    /// The device family cannot do it.
    #[error("{target} has legacy devices, which cannot {what} while it runs")]
    Legacy {
        /// The VM.
        target: Name,
        /// What was asked for.
        what: &'static str,
    },
    /// The operation has ended.
    #[error("operation {0} has ended already")]
    OpEnded(OpId),
    /// There are too many of a kind.
    #[error("there are {most} {what} already, the most that are allowed")]
    Limit {
        /// What.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// A value that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is no cluster yet.
    #[error("this host is not part of a cluster")]
    NoCluster,
    /// There is one already.
    #[error("this host is part of the cluster {0} already")]
    InCluster(Name),
    /// The join token cannot be used.
    #[error("the join token is not valid: it has ended, was used up or was revoked")]
    JoinToken,
    /// The node is no longer a member.
    #[error("node {name} {}", gone_words(*how))]
    NodeGone {
        /// Its name.
        name: Name,
        /// How it went.
        how: Gone,
    },
    /// It is not a member, and only a join can make it one.
    #[error("node {0} is not a member of this cluster")]
    NotMember(Name),
    /// Another node has the address.
    #[error("{address} is the address of node {node} already")]
    NodeAddress {
        /// The address.
        address: std::net::SocketAddr,
        /// Whose it is.
        node: Name,
    },
    /// The only node cannot go.
    #[error("{0} is the only node of the cluster")]
    LastNode(Name),
    /// Its VMs may still run.
    #[error("there is no proof that {0} runs no VMs any more")]
    NotFenced(Name),
    /// VMs live there.
    #[error("node {node} still has VMs: {users}")]
    OwnsVms {
        /// The node.
        node: Name,
        /// Some of them.
        users: String,
    },
    /// It has volumes mounted, or had when it was lost.
    #[error("node {node} coordinates: {volumes}")]
    Coordinates {
        /// The node.
        node: Name,
        /// The volumes.
        volumes: String,
    },
    /// Another volume has the LUN.
    #[error("LUN {lun} is in use by {users}")]
    LunInUse {
        /// The LUN.
        lun: LunId,
        /// By what.
        users: String,
    },
    /// The node that was asked sees no such LUN.
    #[error("there is no LUN {0} on this node")]
    NoLun(LunId),
    /// Something stands on the LUN.
    #[error("LUN {lun} holds {what}")]
    LunHolds {
        /// The LUN.
        lun: LunId,
        /// What, in words.
        what: String,
    },
    /// The node does not see the volume's LUN.
    #[error("node {node} has no path to the LUN of volume {volume}")]
    NoPath {
        /// The node.
        node: Name,
        /// The volume.
        volume: Name,
    },
    /// The volume has no coordinator: every node mounts it by itself.
    #[error("volume {0} is a share, which no node coordinates")]
    NotOnLun(Name),
}

fn gone_words(how: Gone) -> &'static str {
    match how {
        Gone::Left => "has left the cluster",
        Gone::Evicted => "was evicted from the cluster",
    }
}

fn power_word(power: Power) -> &'static str {
    match power {
        Power::Off => "off",
        Power::Running => "running",
        Power::Paused => "paused",
        Power::Saved => "saved",
    }
}

/// What people call a thing that the command line knows by a shorter word.
fn thing(what: &str) -> &str {
    match what {
        "op" => "operation",
        "nic" => "network adapter",
        "vm" => "VM",
        other => other,
    }
}

impl Refused {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::NoLun(_) => "not_found",
            Self::NameTaken { .. } => "name_taken",
            Self::IdTaken(_) => "id_taken",
            Self::Name(_) => "bad_name",
            Self::Spec(_) => "bad_spec",
            Self::Busy { .. } => "busy",
            Self::WrongPower { .. } => "wrong_power",
            Self::Deleted(_) => "deleted",
            Self::NotDeleted(_) => "not_deleted",
            Self::Stale { .. } => "stale_revision",
            Self::NeedsOff { .. } => "needs_off",
            Self::InUse { .. } => "in_use",
            Self::ImageNotReady(_) => "image_not_ready",
            Self::CannotShrink { .. } => "cannot_shrink",
            Self::SmallerThanImage { .. } => "smaller_than_image",
            Self::Address { .. } => "address",
            Self::Legacy { .. } => "legacy_devices",
            Self::OpEnded(_) => "op_ended",
            Self::Limit { .. } => "limit",
            Self::Invalid(_) => "invalid",
            Self::NoCluster => "no_cluster",
            Self::InCluster(_) => "in_cluster",
            Self::JoinToken => "join_token",
            Self::NodeGone { .. } => "node_gone",
            Self::NotMember(_) => "not_member",
            Self::NodeAddress { .. } => "node_address",
            Self::LastNode(_) => "last_node",
            Self::NotFenced(_) => "not_fenced",
            Self::OwnsVms { .. } => "owns_vms",
            Self::Processor { .. } => "processor",
            Self::Coordinates { .. } => "coordinates_volumes",
            Self::LunInUse { .. } => "lun_in_use",
            Self::LunHolds { .. } => "lun_holds",
            Self::NoPath { .. } => "no_path",
            Self::NotOnLun(_) => "not_on_lun",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { what: what @ ("disk" | "nic"), .. } => {
                format!("list what there is: muster vm {what} list NAME")
            }
            Self::NotFound { what, .. } => format!("list what there is: muster {what} list"),
            Self::NameTaken { .. } => "choose another name".to_owned(),
            Self::IdTaken(_) | Self::Name(_) | Self::Spec(_) | Self::Invalid(_) => {
                "change the request and send it again".to_owned()
            }
            Self::Busy { op, .. } => {
                format!("wait for it (muster op wait {op}) or stop it (muster op cancel {op})")
            }
            Self::WrongPower { power, target, .. } => match power {
                Power::Off => format!("start it first: muster vm start {target}"),
                Power::Running => format!(
                    "shut it down first: muster vm shutdown {target}, or muster vm off {target}"
                ),
                Power::Paused | Power::Saved => {
                    format!("resume it first: muster vm resume {target}")
                }
            },
            Self::Deleted(name) => format!("take it out again: muster vm undelete {name}"),
            Self::Processor { target, .. } => format!(
                "turn it off and on, and it gets what all nodes have (muster vm shutdown {target}, \
                 muster vm start {target}); see: muster cluster cpu"
            ),
            Self::NotDeleted(name) => format!("delete it first: muster vm delete {name}"),
            Self::Stale { target, .. } => {
                format!("look at it again (muster vm show {target}) and repeat the change")
            }
            Self::NeedsOff { target, .. } | Self::Legacy { target, .. } => {
                format!("shut it down first: muster vm shutdown {target}")
            }
            Self::InUse { .. } => "remove it there first".to_owned(),
            Self::ImageNotReady(_) => "see how far it is: muster image list".to_owned(),
            Self::CannotShrink { .. } | Self::SmallerThanImage { .. } => {
                "give a larger size".to_owned()
            }
            Self::Address { .. } => "see the network: muster network show NAME".to_owned(),
            Self::OpEnded(op) => format!("see how it ended: muster op show {op}"),
            Self::Limit { .. } => "remove some that are not needed".to_owned(),
            Self::NoCluster => "make one here (muster cluster create NAME), or join one (muster \
                                cluster join TOKEN)"
                .to_owned(),
            Self::InCluster(_) => "see it: muster cluster status".to_owned(),
            Self::JoinToken => "make a new one on a member: muster cluster token".to_owned(),
            Self::NodeGone { .. } | Self::NotMember(_) => {
                "on that host: muster cluster leave --force, then join with a new token".to_owned()
            }
            Self::NodeAddress { .. } => {
                "evict the old node if it is gone (muster cluster evict), or give this one \
                 another address (cluster_addresses)"
                    .to_owned()
            }
            Self::LastNode(_) => "nothing is left of a cluster without nodes; to begin anew, set \
                                  the host up anew"
                .to_owned(),
            Self::NotFenced(node) => format!(
                "fence it (muster node fence {node}), or cut its power and say so (muster cluster \
                 confirm-off {node})"
            ),
            Self::OwnsVms { .. } => {
                "move or delete them first (muster vm list); of a host that is \
                                     lost with its disks: muster cluster evict NODE --forget-vms"
                    .to_owned()
            }
            _ => self.volume_hint(),
        }
    }

    /// The same, of what is about volumes on LUNs.
    fn volume_hint(&self) -> String {
        match self {
            Self::Coordinates { volumes, .. } => format!(
                "wait until another node has them (muster volume show {}); a lost node must be fenced \
                 for that: muster node fence",
                volumes.split(',').next().unwrap_or_default()
            ),
            Self::LunHolds { .. } => {
                "keep the XFS or ext4 of a former volume: muster volume adopt; what is not needed any \
                 more you wipe on one node (wipefs --all, or blkdiscard); what is reserved is in use: \
                 release it there. Then see: muster disk list"
                    .to_owned()
            }
            Self::NotOnLun(name) => format!("see it: muster volume show {name}"),
            _ => "see which node sees which LUN: muster disk list".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Refused;

    #[test]
    fn what_is_missing_has_the_name_that_people_use_and_a_command_that_lists_it() {
        let words = |what| {
            let refused = Refused::NotFound { what, which: "x".to_owned() };
            (refused.to_string(), refused.hint())
        };
        let list = |command: &str| format!("list what there is: muster {command}");
        assert_eq!(words("op"), ("there is no operation x".into(), list("op list")));
        assert_eq!(words("vm"), ("there is no VM x".into(), list("vm list")));
        let nic = ("there is no network adapter x".into(), list("vm nic list NAME"));
        assert_eq!(words("nic"), nic);
        let id = "x".parse::<crate::OpId>().unwrap_err().to_string();
        assert!(id.starts_with("'x' is no operation id ("), "{id}");
    }
}
