//! The table of endpoints: the single place that says what the API can do and who may.
//!
//! Adding one: a row here, its types in `types`, a handler in `node/src/http`, a verb in `cli`;
//! then `cargo xtask fix` writes the OpenAPI document anew (docs/recipes/endpoint.md).

use model::Role;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use crate::cluster;
use crate::cluster_network;
use crate::fence;
use crate::ha;
use crate::history;
use crate::migrate;
use crate::platform;
use crate::session;
use crate::settings;
use crate::types;
use crate::validate;
use crate::volume;
use crate::witness;

/// Version of the API, the first part of every path.
pub const API_VERSION: &str = "v1";

/// HTTP methods that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Look.
    Get,
    /// Make or do.
    Post,
    /// Change.
    Patch,
    /// Remove.
    Delete,
}

/// Who may call an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody who can reach the socket; tells nothing of the cluster.
    Anyone,
    /// Callers with this role or a higher one.
    Needs(Role),
}

/// What an endpoint answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind {
    /// One JSON document.
    Json,
    /// Server-sent events, each with a JSON document.
    EventStream,
    /// A WebSocket of binary messages.
    WebSocket,
    /// A PNG picture.
    Png,
    /// Text in the OpenMetrics format.
    Metrics,
}

/// No query, body or reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
pub struct Nothing {}

/// One operation of the API, as a type.
pub trait Endpoint: Send + Sync + 'static {
    /// Everything but the types.
    const INFO: Info;
    /// Query parameters.
    type Query: Serialize + DeserializeOwned + Default + Send;
    /// JSON body.
    type Body: Serialize + DeserializeOwned + Send;
    /// JSON reply (for streams: each event).
    type Reply: Serialize + DeserializeOwned + Send;
}

/// What the table says of an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// Its name, unique.
    pub id: &'static str,
    /// Its method.
    pub method: Method,
    /// Its path with parameters in braces.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it answers with.
    pub reply: ReplyKind,
    /// One line for people.
    pub summary: &'static str,
    /// Schemas of query, body and reply, for the document.
    pub schemas: fn() -> Schemas,
}

/// A schema under its name, with the schemas that it refers to.
pub type Named = (String, RefOr<Schema>);

/// Schemas of one endpoint; a part that is [`Nothing`] is absent.
#[derive(Default)]
pub struct Schemas {
    /// Of the query.
    pub query: Option<RefOr<Schema>>,
    /// Name of the body's schema.
    pub body: Option<RefOr<Schema>>,
    /// Name of the reply's schema.
    pub reply: Option<RefOr<Schema>>,
    /// All schemas that these refer to, by name.
    pub refers: Vec<Named>,
}

/// Endpoints that tell of the node that is asked and of nothing that the cluster has agreed on.
const LOCAL: &[&str] = &[
    "WhoAmI",
    "ClusterShow",
    "ClusterLeave",
    "ClusterForce",
    "WitnessShow",
    "ClusterValidate",
    "ValidationShow",
    "VmMetrics",
    "NodeMetrics",
];

impl Info {
    /// Whether the answer follows from the cluster's state: then it is as new as any answer that
    /// was given before, or there is none without a majority.
    pub fn needs_majority(&self) -> bool {
        matches!(self.access, Access::Needs(_))
            && matches!(self.reply, ReplyKind::Json)
            && !LOCAL.contains(&self.id)
    }

    /// Whether `stale=true` in the query asks for the answer as this node knows it, which may be
    /// old and needs no majority.
    pub fn takes_stale(&self) -> bool {
        self.needs_majority() && matches!(self.method, Method::Get)
    }
}

impl Method {
    /// The word in HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl Info {
    /// Names of the path's parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// The path with its parameters filled in, percent-encoded.
    ///
    /// # Panics
    /// If the number of values is not that of the parameters: an error of the calling code.
    pub fn fill(&self, values: &[&str]) -> String {
        assert_eq!(self.parameters().count(), values.len(), "parameters of {}", self.path);
        let mut values = values.iter();
        let mut path = String::new();
        for part in self.path.split('/').skip(1) {
            path.push('/');
            if part.starts_with('{') {
                percent_encode(values.next().expect("counted above"), &mut path);
            } else {
                path.push_str(part);
            }
        }
        path
    }
}

/// Percent-encodes everything that RFC 3986 does not call unreserved.
pub(crate) fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn schema_of<T: ToSchema + 'static>(refers: &mut Vec<Named>) -> Option<RefOr<Schema>> {
    if std::any::TypeId::of::<T>() == std::any::TypeId::of::<Nothing>() {
        return None;
    }
    T::schemas(refers);
    let name = T::name().into_owned();
    // Lists and other nameless types stand in the document as they are.
    if let RefOr::T(schema) = T::schema()
        && matches!(schema, Schema::Array(_))
    {
        return Some(RefOr::T(schema));
    }
    refers.push((name.clone(), T::schema()));
    Some(RefOr::Ref(utoipa::openapi::Ref::from_schema_name(name)))
}

fn schemas_of<Q: ToSchema + 'static, B: ToSchema + 'static, R: ToSchema + 'static>() -> Schemas {
    let mut refers = Vec::new();
    Schemas {
        query: (std::any::TypeId::of::<Q>() != std::any::TypeId::of::<Nothing>())
            .then(|| Q::schema()),
        body: schema_of::<B>(&mut refers),
        reply: schema_of::<R>(&mut refers),
        refers,
    }
}

macro_rules! endpoints {
    ($(
        $(#[doc = $summary:literal])+
        $name:ident: $method:ident $path:literal $access:expr, $kind:ident,
        ($query:ty, $body:ty) -> $reply:ty;
    )*) => {
        $(
            $(#[doc = $summary])+
            #[derive(Debug, Clone, Copy)]
            pub struct $name;

            impl Endpoint for $name {
                const INFO: Info = Info {
                    id: stringify!($name),
                    method: Method::$method,
                    path: concat!("/v1", $path),
                    access: $access,
                    reply: ReplyKind::$kind,
                    summary: concat!($($summary),+),
                    schemas: schemas_of::<$query, $body, $reply>,
                };
                type Query = $query;
                type Body = $body;
                type Reply = $reply;
            }
        )*

        /// All endpoints.
        pub const TABLE: &[Info] = &[$($name::INFO),*];
    };
}

const VIEWER: Access = Access::Needs(Role::Viewer);
const OPERATOR: Access = Access::Needs(Role::Operator);
const ADMINISTRATOR: Access = Access::Needs(Role::Administrator);

endpoints! {
    /// Version of the program and of the API
    Version: Get "/version" Access::Anyone, Json, (Nothing, Nothing) -> types::VersionView;
    /// This document
    OpenApi: Get "/openapi.json" Access::Anyone, Json, (Nothing, Nothing) -> Nothing;
    /// Who is asking, and with which role
    WhoAmI: Get "/whoami" VIEWER, Json, (Nothing, Nothing) -> types::WhoAmIView;

    /// Figures of this node for monitoring programs (OpenMetrics); also at /metrics
    Metrics: Get "/metrics" VIEWER, Metrics, (Nothing, Nothing) -> Nothing;

    /// List virtual machines
    VmList: Get "/vms" VIEWER, Json, (types::VmListQuery, Nothing) -> Vec<types::VmSummary>;
    /// Create a virtual machine
    VmCreate: Post "/vms" ADMINISTRATOR, Json, (Nothing, types::VmCreateBody) -> types::OpView;
    /// Show what a virtual machine would be told at its first boot (cloud-init), and create nothing
    VmFirstBoot: Post "/first-boot" ADMINISTRATOR, Json,
        (Nothing, types::VmCreateBody) -> types::FirstBootView;
    /// Show a virtual machine
    VmShow: Get "/vms/{vm}" VIEWER, Json, (Nothing, Nothing) -> types::VmView;
    /// What a virtual machine used, now and in the last year
    VmMetrics: Get "/vms/{vm}/metrics" VIEWER, Json,
        (history::MetricsQuery, Nothing) -> history::MetricsView;
    /// What was changed in a virtual machine's settings, when and by whom, newest first
    VmHistory: Get "/vms/{vm}/history" VIEWER, Json,
        (Nothing, Nothing) -> Vec<settings::SettingsChangeView>;
    /// Change a virtual machine
    VmSet: Patch "/vms/{vm}" OPERATOR, Json,
        (types::RevisionQuery, model::VmChange) -> types::OpView;
    /// Put a virtual machine in the recycle bin, or remove one from there for good
    VmDelete: Delete "/vms/{vm}" ADMINISTRATOR, Json,
        (types::VmDeleteQuery, Nothing) -> types::OpView;
    /// Take a virtual machine out of the recycle bin
    VmUndelete: Post "/vms/{vm}/undelete" ADMINISTRATOR, Json,
        (Nothing, types::UndeleteBody) -> types::VmView;
    /// Give a virtual machine the newest machine type that all nodes know; there is no way back
    VmUpgrade: Post "/vms/{vm}/upgrade" ADMINISTRATOR, Json, (Nothing, Nothing) -> types::VmView;
    /// Take a virtual machine in again from its directory, after the state was lost
    VmRegister: Post "/registrations" ADMINISTRATOR, Json,
        (Nothing, types::VmRegisterBody) -> types::VmView;
    /// Start a virtual machine, or resume one that is saved
    VmStart: Post "/vms/{vm}/start" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;
    /// Ask the guest to shut down
    VmShutdown: Post "/vms/{vm}/shutdown" OPERATOR, Json,
        (Nothing, types::ShutdownBody) -> types::OpView;
    /// Cut the power; unwritten data in the guest is lost
    VmOff: Post "/vms/{vm}/off" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;
    /// Stop the guest's processors; its memory stays on the host
    VmPause: Post "/vms/{vm}/pause" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;
    /// Let a paused or saved guest go on
    VmResume: Post "/vms/{vm}/resume" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;
    /// Write memory and devices to disk and free the host's memory
    VmSave: Post "/vms/{vm}/save" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;
    /// Press the reset button; unwritten data in the guest is lost
    VmReset: Post "/vms/{vm}/reset" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;
    /// Move a running virtual machine to another node, while it runs
    VmMigrate: Post "/vms/{vm}/migrate" OPERATOR, Json,
        (Nothing, migrate::VmMigrateBody) -> migrate::VmMigrateView;
    /// Move a virtual machine with its disks to another volume, while it runs if it runs
    VmMoveStorage: Post "/vms/{vm}/move-storage" OPERATOR, Json,
        (Nothing, migrate::VmMoveStorageBody) -> migrate::VmMoveStorageView;
    /// Move a virtual machine on a volume to another node, or stop doing so
    VmMove: Post "/vms/{vm}/move" OPERATOR, Json, (Nothing, ha::VmMoveBody) -> ha::VmMoveView;
    /// Freeze the guest's file systems, for at most ten seconds
    VmFreeze: Post "/vms/{vm}/freeze" OPERATOR, Json, (Nothing, Nothing) -> types::FreezeView;
    /// Thaw the guest's file systems
    VmThaw: Post "/vms/{vm}/thaw" OPERATOR, Json, (Nothing, Nothing) -> types::FreezeView;
    /// Picture of the guest's screen
    VmScreenshot: Get "/vms/{vm}/screenshot" OPERATOR, Png, (Nothing, Nothing) -> Nothing;
    /// Serial console: bytes both ways
    VmSerial: Get "/vms/{vm}/serial" OPERATOR, WebSocket, (Nothing, Nothing) -> Nothing;
    /// Screen, keyboard and pointer: the RFB (VNC) protocol
    VmVnc: Get "/vms/{vm}/vnc" OPERATOR, WebSocket, (Nothing, Nothing) -> Nothing;

    /// Add a disk
    DiskAdd: Post "/vms/{vm}/disks" OPERATOR, Json,
        (Nothing, types::DiskAddBody) -> types::OpView;
    /// Remove a disk and its data
    DiskRemove: Delete "/vms/{vm}/disks/{disk}" OPERATOR, Json,
        (Nothing, Nothing) -> types::OpView;
    /// Grow a disk
    DiskResize: Post "/vms/{vm}/disks/{disk}/resize" OPERATOR, Json,
        (Nothing, types::DiskResizeBody) -> types::OpView;
    /// Add a network adapter
    NicAdd: Post "/vms/{vm}/nics" OPERATOR, Json, (Nothing, types::NicAddBody) -> types::OpView;
    /// Remove a network adapter
    NicRemove: Delete "/vms/{vm}/nics/{nic}" OPERATOR, Json,
        (Nothing, Nothing) -> types::OpView;
    /// Change a network adapter
    NicSet: Patch "/vms/{vm}/nics/{nic}" OPERATOR, Json,
        (Nothing, model::NicChange) -> types::OpView;

    /// List images
    ImageList: Get "/images" VIEWER, Json, (Nothing, Nothing) -> Vec<types::ImageView>;
    /// Import an image from a file on the node or from an address
    ImageImport: Post "/images" ADMINISTRATOR, Json,
        (Nothing, types::ImageImportBody) -> types::OpView;
    /// Show an image
    ImageShow: Get "/images/{image}" VIEWER, Json, (Nothing, Nothing) -> types::ImageView;
    /// Delete an image that no machine uses
    ImageDelete: Delete "/images/{image}" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> types::OpView;

    /// List operations
    OpList: Get "/ops" VIEWER, Json, (types::OpListQuery, Nothing) -> Vec<types::OpView>;
    /// Show an operation
    OpShow: Get "/ops/{op}" VIEWER, Json, (Nothing, Nothing) -> types::OpView;
    /// Wait until an operation ends, or for its next progress
    OpWait: Get "/ops/{op}/wait" VIEWER, Json, (types::OpWaitQuery, Nothing) -> types::OpView;
    /// Ask an operation to stop
    OpCancel: Post "/ops/{op}/cancel" OPERATOR, Json, (Nothing, Nothing) -> types::OpView;

    /// List past events, the newest last
    EventList: Get "/events" VIEWER, Json,
        (types::EventQuery, Nothing) -> Vec<types::EventView>;
    /// Follow events as they happen
    EventStream: Get "/events/stream" VIEWER, EventStream,
        (types::EventQuery, Nothing) -> types::EventView;

    /// List nodes
    NodeList: Get "/nodes" VIEWER, Json, (Nothing, Nothing) -> Vec<types::NodeView>;
    /// Show a node
    NodeShow: Get "/nodes/{node}" VIEWER, Json, (Nothing, Nothing) -> types::NodeView;
    /// What a node used, now and in the last year
    NodeMetrics: Get "/nodes/{node}/metrics" VIEWER, Json,
        (history::MetricsQuery, Nothing) -> history::MetricsView;
    /// Take a node out of the cluster, whether it answers or not
    NodeEvict: Delete "/nodes/{node}" ADMINISTRATOR, Json,
        (cluster::NodeEvictQuery, Nothing) -> Nothing;

    /// Show the cluster: who leads, who votes, what may still be lost
    ClusterShow: Get "/cluster" VIEWER, Json, (Nothing, Nothing) -> cluster::ClusterView;
    /// Make a cluster of this host, which others can join
    ClusterCreate: Post "/cluster" ADMINISTRATOR, Json,
        (Nothing, cluster::ClusterCreateBody) -> cluster::ClusterView;
    /// Make this host, which must be empty, a node of a cluster
    ClusterJoin: Post "/cluster/join" ADMINISTRATOR, Json,
        (Nothing, cluster::ClusterJoinBody) -> cluster::ClusterJoinView;
    /// Take this host out of its cluster; it begins anew as a single host
    ClusterLeave: Post "/cluster/leave" ADMINISTRATOR, Json,
        (Nothing, cluster::ClusterLeaveBody) -> Nothing;
    /// Let the nodes that are left go on without a majority, and give the others up for good
    ClusterForce: Post "/cluster/force-quorum" ADMINISTRATOR, Json,
        (Nothing, cluster::ClusterForceBody) -> cluster::ClusterForceView;
    /// Begin to validate the cluster, or this host alone; nothing is changed
    ClusterValidate: Post "/cluster/validate" OPERATOR, Json,
        (Nothing, validate::ValidateBody) -> validate::ValidationView;
    /// Show how far a validation of the node that is asked is, and its last report
    ValidationShow: Get "/cluster/validation" VIEWER, Json,
        (Nothing, Nothing) -> validate::ValidationView;
    /// List join tokens that are still valid
    JoinTokenList: Get "/cluster/tokens" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Vec<cluster::JoinTokenView>;
    /// Make a join token; it is shown this once
    JoinTokenCreate: Post "/cluster/tokens" ADMINISTRATOR, Json,
        (Nothing, cluster::JoinTokenCreateBody) -> cluster::JoinTokenSecretView;
    /// Make a join token invalid
    JoinTokenRevoke: Delete "/cluster/tokens/{token}" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Nothing;

    /// Show the witness and how it is
    WitnessShow: Get "/cluster/witness" VIEWER, Json,
        (Nothing, Nothing) -> witness::WitnessView;
    /// Let the cluster have a witness: a third vote for two nodes
    WitnessSet: Post "/cluster/witness" ADMINISTRATOR, Json,
        (Nothing, witness::WitnessSetBody) -> witness::WitnessView;
    /// Take the witness out of the voters, and then away
    WitnessRemove: Delete "/cluster/witness" ADMINISTRATOR, Json, (Nothing, Nothing) -> Nothing;

    /// Show what makes sure that a node's machines never run twice
    NodeFencing: Get "/nodes/{node}/fencing" VIEWER, Json,
        (Nothing, Nothing) -> fence::NodeFencingView;
    /// Fence a node: make sure that nothing of it runs
    NodeFence: Post "/nodes/{node}/fence" ADMINISTRATOR, Json,
        (Nothing, fence::TypedNameBody) -> fence::NodeFencingView;
    /// State that a node is off
    NodeConfirmOff: Post "/nodes/{node}/confirm-off" ADMINISTRATOR, Json,
        (Nothing, fence::TypedNameBody) -> fence::NodeFencingView;

    /// List fence devices
    FenceDeviceList: Get "/fence-devices" VIEWER, Json,
        (Nothing, Nothing) -> Vec<fence::FenceDeviceView>;
    /// Add a fence device
    FenceDeviceAdd: Post "/fence-devices" ADMINISTRATOR, Json,
        (Nothing, fence::FenceDeviceAddBody) -> fence::FenceDeviceView;
    /// Show a fence device; secrets are named only
    FenceDeviceShow: Get "/fence-devices/{device}" VIEWER, Json,
        (Nothing, Nothing) -> fence::FenceDeviceView;
    /// Ask a fence device for the power of its nodes; nothing is switched
    FenceDeviceTest: Post "/fence-devices/{device}/test" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Vec<fence::FenceTestView>;
    /// Remove a fence device
    FenceDeviceRemove: Delete "/fence-devices/{device}" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Nothing;
    /// Say whether a node takes virtual machines, keeps those it has, or is to be emptied
    NodeSetMode: Post "/nodes/{node}/mode" ADMINISTRATOR, Json,
        (Nothing, ha::NodeModeBody) -> ha::PlanView;
    /// Show where the virtual machines of a node would go
    NodePlan: Get "/nodes/{node}/plan" VIEWER, Json, (ha::PlanQuery, Nothing) -> ha::PlanView;
    /// Show where the virtual machines of several nodes would go that are emptied at once
    EvacuationPlan: Get "/cluster/evacuation" VIEWER, Json,
        (ha::EvacuationQuery, Nothing) -> ha::EvacuationView;
    /// Empty several nodes at once
    Evacuate: Post "/cluster/evacuation" ADMINISTRATOR, Json,
        (Nothing, ha::EvacuationBody) -> ha::EvacuationView;
    /// Show where machines wait, and what would be moved for it
    BalanceShow: Get "/cluster/balance" VIEWER, Json, (Nothing, Nothing) -> ha::BalanceView;
    /// Say whether machines that wait for each other are moved apart by themselves
    BalanceSet: Post "/cluster/balance" ADMINISTRATOR, Json,
        (Nothing, ha::BalanceBody) -> ha::BalanceView;
    /// Show for each node what would not run if it were lost now
    Capacity: Get "/capacity" VIEWER, Json, (Nothing, Nothing) -> Vec<ha::LossView>;

    /// List the networks that hosts have in common, and what they are for
    ClusterNetworkList: Get "/cluster/networks" VIEWER, Json,
        (Nothing, Nothing) -> cluster_network::ClusterNetworksView;
    /// Say what a network of hosts is called, and whether machines move over it
    ClusterNetworkSet: Post "/cluster/networks" ADMINISTRATOR, Json,
        (Nothing, cluster_network::ClusterNetworkSetBody) -> cluster_network::ClusterNetworksView;
    /// Forget what was said of a network of hosts
    ClusterNetworkForget: Delete "/cluster/networks/{network}" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> cluster_network::ClusterNetworksView;
    /// Say whether machines move over networks with the migration role only
    MigrationStrict: Post "/cluster/migration-strict" ADMINISTRATOR, Json,
        (Nothing, cluster_network::MigrationStrictBody) -> cluster_network::ClusterNetworksView;
    /// Show what machines can be like on the nodes, and which cannot go everywhere
    ClusterCpu: Get "/cluster/cpu" VIEWER, Json, (Nothing, Nothing) -> platform::ClusterCpuView;

    /// List placement rules
    RuleList: Get "/rules" VIEWER, Json, (Nothing, Nothing) -> Vec<ha::RuleView>;
    /// Make a rule on where virtual machines with a tag may run
    RuleCreate: Post "/rules" ADMINISTRATOR, Json, (Nothing, ha::RuleCreateBody) -> ha::RuleView;
    /// Remove a placement rule
    RuleDelete: Delete "/rules/{rule}" ADMINISTRATOR, Json, (Nothing, Nothing) -> Nothing;

    /// List networks
    NetworkList: Get "/networks" VIEWER, Json, (Nothing, Nothing) -> Vec<types::NetworkView>;
    /// Make a network
    NetworkCreate: Post "/networks" ADMINISTRATOR, Json,
        (Nothing, types::NetworkCreateBody) -> types::NetworkView;
    /// Show a network
    NetworkShow: Get "/networks/{network}" VIEWER, Json,
        (Nothing, Nothing) -> types::NetworkView;
    /// Remove a network that no adapter uses
    NetworkDelete: Delete "/networks/{network}" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Nothing;

    /// List volumes
    VolumeList: Get "/volumes" VIEWER, Json, (Nothing, Nothing) -> Vec<types::VolumeView>;
    /// Make a directory that every node mounts, or a LUN that every node has a path to, a volume
    VolumeCreate: Post "/volumes" ADMINISTRATOR, Json,
        (Nothing, types::VolumeCreateBody) -> types::VolumeView;
    /// Show a volume
    VolumeShow: Get "/volumes/{volume}" VIEWER, Json, (Nothing, Nothing) -> types::VolumeView;
    /// Forget a volume that nothing lies on; the files of a share stay, those on a LUN are destroyed
    VolumeDelete: Delete "/volumes/{volume}" ADMINISTRATOR, Json, (Nothing, Nothing) -> Nothing;
    /// Take a volume off its LUN, which is an ordinary disk then; its files stay
    VolumeRelease: Post "/volumes/{volume}/release" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Nothing;
    /// Let another node coordinate a volume on a LUN
    VolumeMove: Post "/volumes/{volume}/move" ADMINISTRATOR, Json,
        (Nothing, volume::VolumeMoveBody) -> types::VolumeView;
    /// Unmount a volume on a LUN everywhere, or mount it again
    VolumeMaintenance: Post "/volumes/{volume}/maintenance" ADMINISTRATOR, Json,
        (Nothing, volume::VolumeMaintenanceBody) -> types::VolumeView;
    /// Check the file system of a volume that is in maintenance; changes nothing
    VolumeCheck: Post "/volumes/{volume}/check" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> volume::VolumeCheckView;

    /// List LUNs, by node and path
    DiskList: Get "/disks" VIEWER, Json, (Nothing, Nothing) -> Vec<volume::LunView>;

    /// List API tokens
    TokenList: Get "/tokens" ADMINISTRATOR, Json, (Nothing, Nothing) -> Vec<types::TokenView>;
    /// Make an API token; its secret is shown this once
    TokenCreate: Post "/tokens" ADMINISTRATOR, Json,
        (Nothing, types::TokenCreateBody) -> types::TokenSecretView;
    /// Make an API token invalid
    TokenRevoke: Delete "/tokens/{token}" ADMINISTRATOR, Json, (Nothing, Nothing) -> Nothing;

    /// Sign a browser in with a token or a sign-in link; the answer sets the session's cookie
    SessionBegin: Post "/sessions" Access::Anyone, Json,
        (Nothing, session::SessionBeginBody) -> session::SessionBegunView;
    /// List the sessions of browsers, and the sign-in links that nobody has used
    SessionList: Get "/sessions" ADMINISTRATOR, Json,
        (Nothing, Nothing) -> Vec<session::SessionView>;
    /// End a session: anybody their own, administrators every one
    SessionEnd: Delete "/sessions/{session}" VIEWER, Json, (Nothing, Nothing) -> Nothing;
    /// Make a link that signs one browser in, once
    WebLinkCreate: Post "/web-links" VIEWER, Json,
        (Nothing, session::WebLinkCreateBody) -> session::WebLinkView;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Endpoint;
    use super::TABLE;
    use super::VmShow;

    #[test]
    fn ids_and_routes_are_unique() {
        let ids: BTreeSet<_> = TABLE.iter().map(|info| info.id).collect();
        let routes: BTreeSet<_> =
            TABLE.iter().map(|info| (info.method.as_str(), info.path)).collect();
        assert_eq!(ids.len(), TABLE.len());
        assert_eq!(routes.len(), TABLE.len());
    }

    #[test]
    fn parameters_are_encoded_into_the_path() {
        assert_eq!(VmShow::INFO.fill(&["a/../b c"]), "/v1/vms/a%2F..%2Fb%20c");
    }
}
