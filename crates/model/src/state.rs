//! The replicated state: everything that is the same on every node.
//!
//! Records stand behind [`Arc`] in maps whose copies share what is the same ([`Map`]), so a snapshot
//! for readers costs a few pointers, however many records there are, and a change copies only the
//! record it touches and the way to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ClusterNetworkRecord;
use crate::ClusterRecord;
use crate::DiskSource;
use crate::DiskSpec;
use crate::Event;
use crate::FenceDevice;
use crate::FenceDeviceId;
use crate::Fenced;
use crate::ForcedRecord;
use crate::GoneNode;
use crate::ImageId;
use crate::ImageRecord;
use crate::JoinTokenId;
use crate::JoinTokenRecord;
use crate::LeaseReign;
use crate::LunId;
use crate::LunSeen;
use crate::Map;
use crate::Membership;
use crate::Name;
use crate::NetworkId;
use crate::NetworkRecord;
use crate::NodeCapacity;
use crate::NodeFacts;
use crate::NodeFence;
use crate::NodeId;
use crate::NodeMode;
use crate::OpId;
use crate::OpRecord;
use crate::OpRequest;
use crate::Platform;
use crate::Proposal;
use crate::Rebuild;
use crate::Rebuilt;
use crate::Refused;
use crate::Role;
use crate::RuleId;
use crate::RuleRecord;
use crate::SessionId;
use crate::SessionRecord;
use crate::SettingsChange;
use crate::Subject;
use crate::TokenId;
use crate::UnixMillis;
use crate::VmId;
use crate::VmRecord;
use crate::VolumeId;
use crate::VolumeRecord;
use crate::WitnessRecord;
use crate::apply;

/// Version of the state's stored form.
///
/// | version | change |
/// | --- | --- |
/// | 1 | first |
pub const STATE_FORMAT: u32 = 1;

/// The replicated state machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Version of this form, [`STATE_FORMAT`].
    pub format: u32,
    /// Nodes.
    pub nodes: Map<NodeId, Arc<NodeRecord>>,
    /// Virtual machines, those in the recycle bin among them.
    pub vms: Map<VmId, Arc<VmRecord>>,
    /// Names (in the form of [`Name::key`]) of the VMs that are not in the recycle bin.
    pub vm_names: Map<String, VmId>,
    /// The newest changes of settings of each VM, oldest first; none for a VM that never was changed.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub history: Map<VmId, Arc<Vec<SettingsChange>>>,
    /// Images.
    pub images: Map<ImageId, Arc<ImageRecord>>,
    /// Networks.
    pub networks: Map<NetworkId, Arc<NetworkRecord>>,
    /// Operations: those under way and the last ones that ended.
    pub ops: Map<OpId, Arc<OpRecord>>,
    /// API tokens.
    pub tokens: Map<TokenId, Arc<TokenRecord>>,
    /// Sessions of browsers, and links that can become one.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub sessions: Map<SessionId, Arc<SessionRecord>>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Map<VolumeId, Arc<VolumeRecord>>,
    /// Rules on where VMs may run.
    #[serde(default)]
    pub rules: Map<RuleId, Arc<RuleRecord>>,
    /// The cluster's name and CA; none for a host that never made or joined one.
    #[serde(default)]
    pub cluster: Option<Arc<ClusterRecord>>,
    /// Tokens by which hosts may join.
    #[serde(default)]
    pub join_tokens: Map<JoinTokenId, Arc<JoinTokenRecord>>,
    /// Nodes that were members.
    #[serde(default)]
    pub gone: Map<NodeId, Arc<GoneNode>>,
    /// Fence devices.
    #[serde(default)]
    pub fence_devices: Map<FenceDeviceId, Arc<FenceDevice>>,
    /// Networks of hosts that something is said about, by the words of their subnet.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub cluster_networks: Map<String, Arc<ClusterNetworkRecord>>,
    /// Whether machines move over networks with the migration role only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub migration_strict: bool,
    /// Whether machines that wait for each other are moved apart by themselves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub balance: bool,
    /// The leader whose leases and proofs count.
    #[serde(default)]
    pub lease_reign: LeaseReign,
    /// The last forcing of the quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Arc<ForcedRecord>>,
    /// The voter that is no node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Arc<WitnessRecord>>,
}

/// A node as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub name: Name,
    /// When its daemon started last.
    pub started: UnixMillis,
    /// Raised each time it is fenced: whoever acts for it names the present one, so that a node
    /// that comes back from a pause is refused (DESIGN.md section 4, rule 4).
    #[serde(default)]
    pub epoch: u64,
    /// Since it was fenced and until it has ended its old machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Fenced>,
    /// When it was lost lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<UnixMillis>,
    /// Until when it is not trusted: it was lost too often. It gets VMs only where no other node can
    /// take them; those that it has go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<UnixMillis>,
    /// What an administrator wants of it.
    #[serde(default)]
    pub mode: NodeMode,
    /// Whether VMs on its own disks leave, too, with their files, while it is drained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drains_files: bool,
    /// What it has to give, as it said last.
    #[serde(default)]
    pub capacity: NodeCapacity,
    /// What machines can be like there; none before it has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Platform>)]
    pub platform: Option<Arc<Platform>>,
    /// What it says of itself.
    #[serde(default)]
    pub facts: NodeFacts,
    /// SHA-256 of its public key, in hexadecimal; none before there is a cluster.
    #[serde(default)]
    pub key: Option<String>,
    /// When it became a member.
    #[serde(default)]
    pub joined: UnixMillis,
    /// How it stands to the cluster.
    #[serde(default)]
    pub membership: Membership,
    /// Its leases, and the way to its fencing.
    #[serde(default)]
    pub fence: NodeFence,
    /// Since it has lost its log, and until that counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<Rebuild>,
    /// When its log was made anew last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilt: Option<Rebuilt>,
    /// LUNs that it sees, by what they call themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub luns: BTreeMap<LunId, LunSeen>,
}

impl NodeRecord {
    /// A node that has just come.
    pub fn new(id: NodeId, name: Name, started: UnixMillis) -> Self {
        Self {
            id,
            name,
            started,
            platform: None,
            facts: NodeFacts::default(),
            key: None,
            joined: started,
            membership: Membership::Member,
            epoch: 0,
            fenced: None,
            losses: Vec::new(),
            quarantine: None,
            mode: NodeMode::default(),
            drains_files: false,
            capacity: NodeCapacity::default(),
            fence: NodeFence::default(),
            rebuild: None,
            rebuilt: None,
            luns: BTreeMap::new(),
        }
    }

    /// What an event about it is about.
    pub(crate) fn subject(&self) -> Subject {
        Subject::Node { id: self.id, name: self.name.to_string() }
    }
}

/// An API token as the cluster knows it. The secret itself is known to its bearer only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// Its name.
    pub name: Name,
    /// What its bearer may do.
    pub role: Role,
    /// SHA-256 of the secret, in hexadecimal.
    pub digest: String,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends by itself.
    pub expires: Option<UnixMillis>,
    /// SHA-256 of the public key of the certificate that its bearer shows instead of a secret, in
    /// hexadecimal. Of such a token nobody knows a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// What an accepted command did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// What to tell the world.
    pub events: Vec<Event>,
}

impl Default for ClusterState {
    fn default() -> Self {
        Self {
            format: STATE_FORMAT,
            nodes: Map::new(),
            vms: Map::new(),
            vm_names: Map::new(),
            history: Map::new(),
            images: Map::new(),
            networks: Map::new(),
            ops: Map::new(),
            tokens: Map::new(),
            sessions: Map::new(),
            volumes: Map::new(),
            rules: Map::new(),
            cluster: None,
            join_tokens: Map::new(),
            gone: Map::new(),
            fence_devices: Map::new(),
            cluster_networks: Map::new(),
            migration_strict: false,
            balance: false,
            lease_reign: LeaseReign::default(),
            forced: None,
            witness: None,
        }
    }
}

impl ClusterState {
    /// Accepts a command and changes the state, or refuses it and changes nothing.
    ///
    /// # Errors
    /// [`Refused`] says why; the state is as it was.
    pub fn apply(&mut self, proposal: &Proposal) -> Result<Applied, Refused> {
        apply::apply(self, proposal)
    }

    /// The VM of that name or id, also one in the recycle bin if it is given by id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_vm(&self, name_or_id: &str) -> Result<&Arc<VmRecord>, Refused> {
        let by_name = self.vm_names.get(&name_or_id.to_ascii_lowercase()).copied();
        by_name
            .or_else(|| name_or_id.parse().ok())
            .and_then(|id| self.vms.get(&id))
            .ok_or_else(|| not_found("vm", name_or_id))
    }

    /// The image of that name or id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_image(&self, name_or_id: &str) -> Result<&Arc<ImageRecord>, Refused> {
        let key = name_or_id.to_ascii_lowercase();
        let id = name_or_id.parse::<ImageId>().ok();
        self.images
            .values()
            .find(|image| image.name.key() == key || Some(image.id) == id)
            .ok_or_else(|| not_found("image", name_or_id))
    }

    /// The network of that name or id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_network(&self, name_or_id: &str) -> Result<&Arc<NetworkRecord>, Refused> {
        let key = name_or_id.to_ascii_lowercase();
        let id = name_or_id.parse::<NetworkId>().ok();
        self.networks
            .values()
            .find(|network| network.name.key() == key || Some(network.id) == id)
            .ok_or_else(|| not_found("network", name_or_id))
    }

    /// The token of that name or id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_token(&self, name_or_id: &str) -> Result<&Arc<TokenRecord>, Refused> {
        let key = name_or_id.to_ascii_lowercase();
        let id = name_or_id.parse::<TokenId>().ok();
        self.tokens
            .values()
            .find(|token| token.name.key() == key || Some(token.id) == id)
            .ok_or_else(|| not_found("token", name_or_id))
    }

    /// The volume of that name or id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_volume(&self, name_or_id: &str) -> Result<&Arc<VolumeRecord>, Refused> {
        let key = name_or_id.to_ascii_lowercase();
        let id = name_or_id.parse::<VolumeId>().ok();
        self.volumes
            .values()
            .find(|volume| volume.name.key() == key || Some(volume.id) == id)
            .ok_or_else(|| not_found("volume", name_or_id))
    }

    /// The node of that name or id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_node(&self, name_or_id: &str) -> Result<&Arc<NodeRecord>, Refused> {
        let key = name_or_id.to_ascii_lowercase();
        let id = name_or_id.parse::<NodeId>().ok();
        self.nodes
            .values()
            .find(|node| node.name.key() == key || Some(node.id) == id)
            .ok_or_else(|| not_found("node", name_or_id))
    }

    /// The node of that id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn node(&self, id: NodeId) -> Result<&Arc<NodeRecord>, Refused> {
        self.nodes.get(&id).ok_or_else(|| not_found("node", &id.to_string()))
    }

    /// The fence device of that name or id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn find_fence_device(&self, name_or_id: &str) -> Result<&Arc<FenceDevice>, Refused> {
        let key = name_or_id.to_ascii_lowercase();
        let id = name_or_id.parse::<FenceDeviceId>().ok();
        self.fence_devices
            .values()
            .find(|device| device.name.key() == key || Some(device.id) == id)
            .ok_or_else(|| not_found("fence device", name_or_id))
    }

    /// The VM of that id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn vm(&self, id: VmId) -> Result<&Arc<VmRecord>, Refused> {
        self.vms.get(&id).ok_or_else(|| not_found("vm", &id.to_string()))
    }

    /// The operation of that id.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn op(&self, id: OpId) -> Result<&Arc<OpRecord>, Refused> {
        self.ops.get(&id).ok_or_else(|| not_found("op", &id.to_string()))
    }

    /// The names of the VMs that use an image or are being given a disk from it, those in the
    /// recycle bin among them.
    pub fn users_of_image(&self, image: ImageId) -> Vec<&Name> {
        let from_it = |disk: &DiskSpec| disk.source == DiskSource::Image { image };
        let have =
            self.vms.values().filter(|vm| vm.spec.disks.iter().any(from_it)).map(|vm| &vm.name);
        let get =
            self.ops.values().filter(|op| op.is_running()).filter_map(|op| match &op.request {
                OpRequest::DiskAdd { disk, .. } if from_it(disk) => Some(&op.target),
                _ => None,
            });
        have.chain(get).collect()
    }

    /// Checks what must hold between records, whatever was applied.
    ///
    /// # Errors
    /// A sentence that names what does not hold: an error in this crate, never of a caller.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (key, id) in &self.vm_names {
            let vm = self.vms.get(id).ok_or_else(|| format!("name {key} of no VM"))?;
            if vm.name.key() != *key || vm.deleted.is_some() {
                return Err(format!("name {key} does not belong to {id}"));
            }
        }
        let mut slots = std::collections::BTreeSet::new();
        let mut addresses = std::collections::BTreeSet::new();
        for vm in self.vms.values() {
            if vm.deleted.is_none() && self.vm_names.get(&vm.name.key()) != Some(&vm.id) {
                return Err(format!("{} has no name entry", vm.id));
            }
            if !slots.insert(vm.slot) {
                return Err(format!("slot {} is used twice", vm.slot));
            }
            vm.spec.validate().map_err(|error| format!("{}: {error}", vm.name))?;
            if (vm.power == crate::Power::Saved) != vm.saved.is_some() {
                return Err(format!("{} is {:?} with saved {:?}", vm.name, vm.power, vm.saved));
            }
            for op in &vm.ops {
                if !self.ops.get(op).is_some_and(|op| op.is_running()) {
                    return Err(format!("{} waits for an operation that has ended", vm.name));
                }
            }
            for nic in &vm.spec.nics {
                if let Some(address) = nic.address
                    && !addresses.insert((nic.network.key(), address))
                {
                    return Err(format!("address {address} is used twice"));
                }
            }
        }
        for vm in self.vms.values() {
            if vm.volume.is_some_and(|volume| !self.volumes.contains_key(&volume)) {
                return Err(format!("{} lies on a volume that is gone", vm.name));
            }
            if vm.copies.contains(&vm.place()) {
                return Err(format!("the directory of {} is its own and a copy", vm.name));
            }
            if !self.nodes.contains_key(&vm.owner) {
                return Err(format!("{} is owned by a node that is gone", vm.name));
            }
        }
        for (vm, changes) in &self.history {
            if !self.vms.contains_key(vm) {
                return Err(format!("settings of {vm} are kept, which is no VM"));
            }
            if changes.is_empty() || changes.len() > crate::CHANGES_MAX {
                return Err(format!("{} changes of {vm} are kept", changes.len()));
            }
        }
        self.check_nodes()?;
        self.check_luns()?;
        for session in self.sessions.values() {
            if session.token.is_some_and(|token| !self.tokens.contains_key(&token)) {
                return Err(format!("session {} has lost its token", session.id));
            }
        }
        for op in self.ops.values().filter(|op| op.is_running()) {
            if let Some(vm) = op.request.vm()
                && !self.vms.get(&vm).is_some_and(|vm| vm.ops.contains(&op.id))
            {
                return Err(format!("operation {} is not on its VM's list", op.id));
            }
        }
        Ok(())
    }

    fn check_luns(&self) -> Result<(), String> {
        let mut luns = std::collections::BTreeSet::new();
        for volume in self.volumes.values() {
            if volume.kind.lun().is_some() != volume.coordination.is_some() {
                return Err(format!("volume {} has a coordinator and no LUN", volume.name));
            }
            if volume.kind.lun().is_some_and(|lun| !luns.insert(lun)) {
                return Err(format!("the LUN of volume {} is another one's, too", volume.name));
            }
            let Some(now) = &volume.coordination else { continue };
            for node in [now.holder, now.wanted].into_iter().flatten() {
                if !self.nodes.contains_key(&node) {
                    return Err(format!("volume {} is held by a node that is gone", volume.name));
                }
            }
        }
        Ok(())
    }

    fn check_nodes(&self) -> Result<(), String> {
        let mut names = std::collections::BTreeSet::new();
        let mut addresses = std::collections::BTreeSet::new();
        for node in self.nodes.values() {
            if self.gone.contains_key(&node.id) {
                return Err(format!("{} is a node and gone", node.id));
            }
            if self.cluster.is_some() && !names.insert(node.name.key()) {
                return Err(format!("two nodes are named {}", node.name));
            }
            if node.facts.addresses.iter().any(|address| !addresses.insert(*address)) {
                return Err(format!("{} has an address of another node", node.name));
            }
        }
        Ok(())
    }
}

pub(crate) fn not_found(what: &'static str, which: &str) -> Refused {
    Refused::NotFound { what, which: which.chars().take(80).collect() }
}
