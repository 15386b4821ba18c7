//! What may be proposed to the replicated state machine.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ClusterId;
use crate::ClusterNetworkRecord;
use crate::Exit;
use crate::FenceDevice;
use crate::FenceDeviceId;
use crate::FenceProof;
use crate::FenceReason;
use crate::FsKind;
use crate::Generation;
use crate::ImageRecord;
use crate::IpSubnet;
use crate::JoinTokenId;
use crate::LeaseTerms;
use crate::LunId;
use crate::LunSeen;
use crate::MigrateReport;
use crate::Millis;
use crate::Name;
use crate::NetworkId;
use crate::NetworkKind;
use crate::NodeCapacity;
use crate::NodeFacts;
use crate::NodeId;
use crate::NodeInterface;
use crate::NodeMode;
use crate::OpId;
use crate::OpOutcome;
use crate::OpRequest;
use crate::Platform;
use crate::RuleId;
use crate::RuleRecord;
use crate::SecretText;
use crate::SessionId;
use crate::SessionRecord;
use crate::Speaker;
use crate::TokenId;
use crate::UnixMillis;
use crate::VmId;
use crate::VmPlace;
use crate::VmRecord;
use crate::VolumeId;
use crate::VolumeKind;
use crate::WitnessPlace;

/// What a caller may do. Each role may do all that the one before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything but consoles and secrets.
    Viewer,
    /// Use what there is: power, consoles, disks and adapters of VMs.
    Operator,
    /// Everything, tokens and networks among it.
    Administrator,
}

/// Who proposes a command, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Actor(String);

/// A command with its time and its author: an entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// When it was proposed, by the proposer's clock.
    pub at: UnixMillis,
    /// By whom.
    pub actor: Actor,
    /// What.
    pub command: Command,
}

/// A change of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// A node takes part. Proposed at each start of a daemon.
    NodeStarted {
        /// Which.
        node: NodeId,
        /// Its host name.
        name: Name,
        /// What it has to give.
        #[serde(default)]
        capacity: NodeCapacity,
    },
    /// What machines can be like on a node. Proposed by it whenever that changes.
    NodePlatform {
        /// Which.
        node: NodeId,
        /// What it can; none: that is not known for sure any more.
        platform: Option<Arc<Platform>>,
    },
    /// Begin an operation, if it is admitted.
    BeginOp {
        /// Its id.
        op: OpId,
        /// What it shall do.
        request: Box<OpRequest>,
        /// How long it may take.
        limit: Millis,
    },
    /// Ask an operation to stop.
    CancelOp {
        /// Which.
        op: OpId,
    },
    /// An operation has ended. Proposed by its executor only.
    FinishOp {
        /// Which.
        op: OpId,
        /// How.
        outcome: Box<OpOutcome>,
        /// Who carried it out; refused from a node that was fenced or that lost the VM meanwhile.
        by: Speaker,
    },
    /// A run of a VM has ended without an operation that asked for it.
    VmExited {
        /// Which.
        vm: VmId,
        /// Which run; a report on an earlier one changes nothing.
        generation: Generation,
        /// How.
        exit: Exit,
    },
    /// The quarantine of a node has lasted long enough.
    NodeQuarantineEnd {
        /// Which.
        node: NodeId,
    },
    /// The guest of a VM that others are started after has answered.
    VmAnswered {
        /// Which.
        vm: VmId,
        /// In which run; a report on an earlier one is refused.
        generation: Generation,
        /// Who has heard it; refused from a node that was fenced or that lost the VM meanwhile.
        by: Speaker,
    },
    /// Take a VM out of the recycle bin.
    VmUndelete {
        /// Which.
        vm: VmId,
        /// A new name, where the old one is in use.
        name: Option<Name>,
    },
    /// Give a VM that is off the newest machine type that all nodes know. There is no way back.
    VmUpgrade {
        /// Which.
        vm: VmId,
    },
    /// Take a VM in again that the state has lost, as its node has found it in its directory.
    VmRegister {
        /// What was found. Slot, power and operations are given anew; `saved` only if that memory
        /// may still be used; the generation is above all that the directory knows.
        record: Box<VmRecord>,
        /// Images that its disks are copies of and that the state has lost, too.
        images: Vec<ImageRecord>,
    },
    /// Make a network.
    NetworkCreate {
        /// Its id.
        network: NetworkId,
        /// Its name.
        name: Name,
        /// What it is made of.
        kind: NetworkKind,
    },
    /// Remove a network that no adapter uses.
    NetworkDelete {
        /// Which.
        network: NetworkId,
    },
    /// Make an API token. Only a digest of its secret enters the state.
    TokenCreate {
        /// Its id.
        token: TokenId,
        /// Its name.
        name: Name,
        /// What its bearer may do.
        role: Role,
        /// SHA-256 of the secret, in hexadecimal.
        digest: String,
        /// When it ends by itself.
        expires: Option<UnixMillis>,
        /// SHA-256 of the public key of the certificate that is shown instead of a secret, in
        /// hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certificate: Option<String>,
    },
    /// Make a token invalid.
    TokenRevoke {
        /// Which.
        token: TokenId,
    },
    /// Begin a session of a browser, or make a link that can become one.
    SessionCreate {
        /// It; the time of its making is the proposal's.
        record: Box<SessionRecord>,
    },
    /// Make a sign-in link a session; it is refused to everybody who comes later.
    SessionUseLink {
        /// SHA-256 of the link's secret, in hexadecimal.
        link: String,
        /// SHA-256 of the session's secret, in hexadecimal.
        digest: String,
        /// When the session ends by itself.
        expires: UnixMillis,
        /// SHA-256 of the word with which it goes on at another node, in hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        onward: Option<String>,
    },
    /// Go on with a session under a new secret, at another address: its cookie is for one only. The
    /// old secret is worth nothing then, and the word is refused to everybody who comes later.
    SessionGoOn {
        /// SHA-256 of its word, in hexadecimal.
        word: String,
        /// SHA-256 of its new secret, in hexadecimal.
        digest: String,
        /// SHA-256 of its new word, in hexadecimal.
        onward: String,
    },
    /// End a session, or make a link useless.
    SessionEnd {
        /// Which.
        session: SessionId,
    },
    /// Make a volume known.
    VolumeCreate {
        /// Its id.
        volume: VolumeId,
        /// Its name.
        name: Name,
        /// What it is made of.
        kind: VolumeKind,
    },
    /// What a node sees of LUNs. Proposed by it whenever that changes.
    NodeLunsSet {
        /// Which.
        node: NodeId,
        /// All that it sees.
        luns: BTreeMap<LunId, LunSeen>,
    },
    /// Make a volume on a LUN; the node that proposes it becomes its first coordinator and prepares it.
    VolumeCreateOnLun {
        /// Its id.
        volume: VolumeId,
        /// Its name.
        name: Name,
        /// The LUN.
        lun: LunId,
        /// Its file system.
        fs: FsKind,
        /// UUID of its file system.
        uuid: String,
        /// Whether the file system that is there is kept.
        adopt: bool,
        /// Who prepares it.
        by: Speaker,
    },
    /// The coordinator has prepared a volume and mounted it.
    VolumePrepared {
        /// Which.
        volume: VolumeId,
        /// In which epoch.
        epoch: u64,
        /// The coordinator.
        by: Speaker,
    },
    /// The coordinator has unmounted a volume: another node may have it.
    VolumeGiveBack {
        /// Which.
        volume: VolumeId,
        /// The epoch that ends.
        epoch: u64,
        /// The coordinator.
        by: Speaker,
    },
    /// Become the coordinator of a volume that nobody has, or whose coordinator is fenced.
    VolumeClaim {
        /// Which.
        volume: VolumeId,
        /// The epoch that was seen; the next one begins.
        epoch: u64,
        /// Who.
        by: Speaker,
    },
    /// Let another node coordinate a volume.
    VolumeMove {
        /// Which.
        volume: VolumeId,
        /// The node.
        to: NodeId,
    },
    /// Unmount a volume everywhere, or mount it again.
    VolumeMaintenance {
        /// Which.
        volume: VolumeId,
        /// Whether it begins.
        on: bool,
    },
    /// Take a volume off its LUN; its coordinator does it.
    VolumeLeave {
        /// Which.
        volume: VolumeId,
        /// Whether its file system is destroyed.
        wipe: bool,
    },
    /// The coordinator has taken the volume off its LUN.
    VolumeGone {
        /// Which.
        volume: VolumeId,
        /// In which epoch.
        epoch: u64,
        /// The coordinator.
        by: Speaker,
    },
    /// Forget a volume that nothing lies on. Its files stay.
    VolumeDelete {
        /// Which.
        volume: VolumeId,
    },
    /// Make a rule on where VMs may run.
    RuleCreate {
        /// The rule.
        rule: RuleRecord,
    },
    /// Remove a rule.
    RuleDelete {
        /// Which.
        rule: RuleId,
    },
    /// Nothing of a node can write any more. Proposed by the leader with proof in hand.
    NodeFenced {
        /// Which.
        node: NodeId,
        /// The node's epoch that the proof is about; refused if it has another one by now.
        epoch: u64,
        /// The leader's reign in which the proof was found; refused if another one has begun.
        reign: u64,
        /// How it is known.
        proof: FenceProof,
    },
    /// A fenced node has ended its old machines and takes part again.
    NodeBack {
        /// Which.
        node: NodeId,
        /// The epoch that it knows.
        epoch: u64,
    },
    /// What an administrator wants of a node.
    NodeSetMode {
        /// Which.
        node: NodeId,
        /// What.
        mode: NodeMode,
        /// For `drain`: VMs on its own disks leave, too, with their files.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        with_storage: bool,
    },
    /// Give a VM of a fenced node to another one.
    VmTakeOver {
        /// Which.
        vm: VmId,
        /// The node that lost it; refused if it is owned by another one.
        from: NodeId,
        /// The run that is over; refused if there has been another one.
        generation: Generation,
        /// Who gets it.
        to: NodeId,
        /// Whether it is started there if it ran; without, it is left off.
        start: bool,
    },
    /// Move a VM to another node, or stop doing so. One on its node's own disks goes only while that
    /// node is drained with its files, to the other node's own disks.
    VmMove {
        /// Which.
        vm: VmId,
        /// Where to; none ends a move under way.
        to: Option<NodeId>,
        /// By saving it, even if it could be migrated while it runs.
        #[serde(default)]
        quick: bool,
    },
    /// The handover of a live migration (DESIGN.md section 4, rule 6): the source's guest stands for
    /// good, the target has all of it, and from here on the target may run it. The one thing that
    /// decides between them.
    VmHandover {
        /// The migration.
        op: OpId,
        /// The run that ends; refused if there has been another one.
        generation: Generation,
        /// What was foretold, and what the source has measured.
        report: Box<MigrateReport>,
        /// The source; refused from a node that was fenced or that lost the VM meanwhile.
        by: Speaker,
    },
    /// The one decision of a move of storage: the copy in the new place is whole and durable, the
    /// guest stands, and from here on that place is the VM's. Said again, it changes nothing.
    VmStorageMoved {
        /// The operation.
        op: OpId,
        /// The run that stands; refused if there has been another one.
        generation: Generation,
        /// The owner; refused from a node that was fenced or that lost the VM meanwhile.
        by: Speaker,
    },
    /// Nothing of a VM is left in a place that is not its own (see [`crate::VmRecord::copies`]).
    VmCopyGone {
        /// Which.
        vm: VmId,
        /// Where it was looked.
        place: VmPlace,
    },
    /// A VM that has no process goes to the node it is being moved to.
    VmRehome {
        /// Which.
        vm: VmId,
        /// Where to.
        to: NodeId,
    },
    /// Give the set of nodes, which has one, a name and a CA, so that others can join.
    ClusterCreate {
        /// Its id.
        cluster: ClusterId,
        /// Its name.
        name: Name,
        /// Certificate of its CA, PEM.
        ca_certificate: String,
        /// Key of its CA, PEM.
        ca_key: SecretText,
        /// The node that is there.
        node: NodeId,
        /// SHA-256 of that node's public key, in hexadecimal.
        key: String,
    },
    /// Make a join token. Only a digest of its secret enters the state.
    JoinTokenCreate {
        /// Its id.
        token: JoinTokenId,
        /// SHA-256 of the secret, in hexadecimal.
        digest: String,
        /// When it ends by itself.
        expires: UnixMillis,
        /// How many hosts it takes in.
        uses: u32,
    },
    /// Make a join token invalid.
    JoinTokenRevoke {
        /// Which.
        token: JoinTokenId,
    },
    /// A host becomes a node.
    NodeJoin {
        /// Its new id.
        node: NodeId,
        /// Its name.
        name: Name,
        /// SHA-256 of its public key, in hexadecimal.
        key: String,
        /// What it says of itself.
        facts: Box<NodeFacts>,
        /// SHA-256 of the secret that it showed.
        digest: String,
    },
    /// A node says what it is now.
    NodeFactsSet {
        /// Which.
        node: NodeId,
        /// What it says.
        facts: Box<NodeFacts>,
    },
    /// A node says which addresses its devices have.
    NodeInterfacesSet {
        /// Which.
        node: NodeId,
        /// All of them.
        interfaces: Vec<NodeInterface>,
    },
    /// Say what a network of hosts is called and what it is for.
    ClusterNetworkSet {
        /// All that is said.
        record: Box<ClusterNetworkRecord>,
    },
    /// Forget what was said of a network of hosts.
    ClusterNetworkForget {
        /// Which.
        subnet: IpSubnet,
    },
    /// Whether machines move over networks with the migration role only.
    MigrationStrict {
        /// Whether so.
        strict: bool,
    },
    /// Whether machines that wait for each other are moved apart by themselves.
    BalanceSet {
        /// Whether so.
        automatic: bool,
    },
    /// A node wants to leave.
    NodeLeave {
        /// Which.
        node: NodeId,
    },
    /// A node that wanted to leave is out of the voters. Proposed by the leader only.
    NodeGone {
        /// Which.
        node: NodeId,
    },
    /// A member says that its log is lost.
    NodeDamaged {
        /// Which.
        node: NodeId,
        /// Names the loss.
        word: Uuid,
        /// What is damaged.
        problem: String,
    },
    /// No membership of the log that counts has the lost log of this node any more: it may begin a
    /// new one. Proposed by the leader only, once it has applied a membership without the node.
    NodeLogCleared {
        /// Which.
        node: NodeId,
        /// Of which loss.
        word: Uuid,
    },
    /// Take a node out, whether it answers or not.
    NodeEvict {
        /// Which.
        node: NodeId,
        /// Also if VMs lie on its own disks: their records go, their files stay where they are.
        #[serde(default)]
        forget_vms: bool,
    },
    /// The quorum was forced: these nodes are given up, by the word of an administrator who knows
    /// that they are off. Written into the log by the forcing itself, together with the new list of
    /// voters; never proposed.
    QuorumForced {
        /// Which.
        lost: BTreeSet<NodeId>,
        /// Random, see [`crate::ForcedRecord::word`].
        word: Uuid,
        /// The id that the witness goes on under, if there is one: what its record says is of the
        /// old quorum.
        witness: NodeId,
    },
    /// A leader begins to grant leases. What was measured under an earlier reign is refused from
    /// here on.
    LeaseReign {
        /// Its number, greater than all before.
        reign: u64,
        /// Who it is.
        leader: NodeId,
    },
    /// What a node's leases never exceed: written before one does.
    NodeTerms {
        /// Which.
        node: NodeId,
        /// The leader's reign.
        reign: u64,
        /// The most; nothing: its leases do not end by themselves.
        terms: Option<LeaseTerms>,
    },
    /// A node is to be fenced.
    FenceBegin {
        /// Which.
        node: NodeId,
        /// Why.
        reason: FenceReason,
    },
    /// A node is not to be fenced any more.
    FenceEnd {
        /// Which.
        node: NodeId,
        /// The leader's reign.
        reign: u64,
        /// Why it could not be done; nothing: there is no need any more.
        why: Option<String>,
    },
    /// Add a fence device.
    FenceDeviceAdd {
        /// What it is.
        device: Box<FenceDevice>,
    },
    /// Remove a fence device.
    FenceDeviceRemove {
        /// Which.
        device: FenceDeviceId,
    },
    /// Let the cluster have a witness.
    WitnessSet {
        /// Its id, new for each that is set.
        witness: NodeId,
        /// Where it is.
        place: Box<WitnessPlace>,
    },
    /// Take the witness out of the voters, and then away.
    WitnessRemove {
        /// Which.
        witness: NodeId,
    },
    /// The witness is out of the voters.
    WitnessGone {
        /// Which.
        witness: NodeId,
    },
}

impl Actor {
    /// The longest name of an actor that is kept.
    const CHARS_MAX: usize = 128;

    /// An actor by what identifies it: `uid 1000 (anna)`, `token ci`, `node h1`.
    pub fn new(name: &str) -> Self {
        Self(name.chars().take(Self::CHARS_MAX).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Role {
    /// The word in the API and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
