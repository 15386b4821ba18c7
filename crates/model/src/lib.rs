//! The nouns of Muster and its truth.
//!
//! Everything that must be the same on every node stands here: typed ids, the desired
//! configuration of virtual machines, images and networks, operations, and the replicated state
//! machine [`ClusterState`], which changes only through [`ClusterState::apply`].
//!
//! ```text
//!   API call -> Command -> log (durable) -> ClusterState::apply -> Applied { events } | Refused
//! ```
//!
//! This crate is floor 0: no async, no clock, no randomness, no I/O, no unsafe. Times and new ids
//! arrive inside the commands, so that the same log gives the same state on every node. What
//! changes by itself (CPU use, guest facts, process ids) is an *observation* and never stands here.
//!
//! Trust boundary: commands are built from API input. Every field of a command is checked in
//! `apply`; a bad one is [`Refused`], never a panic.

#![forbid(unsafe_code)]

mod apply;
mod cluster;
mod cluster_network;
mod command;
mod event;
mod fence;
mod ha;
mod history;
mod ids;
mod image;
mod lun;
mod map;
mod migrate;
mod name;
mod network;
mod op;
mod platform;
mod refused;
mod session;
mod spec;
mod state;
mod units;
mod vm;
mod volume;
mod witness;

pub use cluster::ClusterRecord;
pub use cluster::ForcedRecord;
pub use cluster::Gone;
pub use cluster::GoneNode;
pub use cluster::JoinTokenRecord;
pub use cluster::Membership;
pub use cluster::NodeFacts;
pub use cluster::Rebuild;
pub use cluster::Rebuilt;
pub use cluster::SecretText;
pub use cluster_network::ClusterNetworkRecord;
pub use cluster_network::IpSubnet;
pub use cluster_network::NodeInterface;
pub use cluster_network::SubnetError;
pub use cluster_network::Way;
pub use command::Actor;
pub use command::Command;
pub use command::Proposal;
pub use command::Role;
pub use event::Event;
pub use event::EventKind;
pub use event::Severity;
pub use event::Subject;
pub use fence::DeviceSaid;
pub use fence::FenceDevice;
pub use fence::FenceFailure;
pub use fence::FenceReason;
pub use fence::FenceWish;
pub use fence::LeaseReign;
pub use fence::LeaseTerms;
pub use fence::NodeFence;
pub use ha::FenceProof;
pub use ha::Fenced;
pub use ha::HaChange;
pub use ha::HaSpec;
pub use ha::Moving;
pub use ha::NodeCapacity;
pub use ha::NodeMode;
pub use ha::Priority;
pub use ha::RuleKind;
pub use ha::RuleRecord;
pub use ha::Speaker;
pub use history::CHANGES_MAX;
pub use history::FieldChange;
pub use history::SettingsChange;
pub use ids::ClusterId;
pub use ids::DiskId;
pub use ids::FenceDeviceId;
pub use ids::IdError;
pub use ids::ImageId;
pub use ids::JoinTokenId;
pub use ids::NetworkId;
pub use ids::NicId;
pub use ids::NodeId;
pub use ids::OpId;
pub use ids::RuleId;
pub use ids::SessionId;
pub use ids::TokenId;
pub use ids::VmId;
pub use ids::VolumeId;
pub use image::ImageFormat;
pub use image::ImageRecord;
pub use image::ImageSource;
pub use image::ImageState;
pub use lun::Coordination;
pub use lun::FsKind;
pub use lun::LunContents;
pub use lun::LunId;
pub use lun::LunIdError;
pub use lun::LunPhase;
pub use lun::LunSeen;
pub use lun::attached_elsewhere;
pub use lun::ends_mounts;
pub use map::Map;
pub use migrate::Arrival;
pub use migrate::AtLimit;
pub use migrate::MigrateChange;
pub use migrate::MigrateForecast;
pub use migrate::MigratePolicy;
pub use migrate::MigrateReport;
pub use migrate::MigrateResult;
pub use migrate::NO_CONVERGENCE;
pub use name::Name;
pub use name::NameError;
pub use network::Ipv4Subnet;
pub use network::MacAddr;
pub use network::NetworkKind;
pub use network::NetworkRecord;
pub use network::ParseNetworkError;
pub use op::OpFailure;
pub use op::OpOutcome;
pub use op::OpRecord;
pub use op::OpRequest;
pub use op::OpState;
pub use op::Verb;
pub use platform::Accelerator;
pub use platform::CpuCompat;
pub use platform::GuestCpu;
pub use platform::Platform;
pub use platform::machine_version;
pub use platform::some as some_features;
pub use refused::Refused;
pub use session::LINK_VALID_MAX;
pub use session::SESSION_VALID_MAX;
pub use session::SessionRecord;
pub use session::SessionStage;
pub use spec::CloudInit;
pub use spec::CpuSpec;
pub use spec::CrashPolicy;
pub use spec::DeviceProfile;
pub use spec::DiskFormat;
pub use spec::DiskSource;
pub use spec::DiskSpec;
pub use spec::Firmware;
pub use spec::MemorySpec;
pub use spec::NicChange;
pub use spec::NicSpec;
pub use spec::Pinned;
pub use spec::ServiceChange;
pub use spec::Services;
pub use spec::SpecError;
pub use spec::StaticAddress;
pub use spec::VmChange;
pub use spec::VmSpec;
pub use spec::limits;
pub use state::Applied;
pub use state::ClusterState;
pub use state::NodeRecord;
pub use state::STATE_FORMAT;
pub use state::TokenRecord;
pub use units::Bytes;
pub use units::Generation;
pub use units::Millis;
pub use units::ParseUnitError;
pub use units::Revision;
pub use units::UnixMillis;
pub use vm::Exit;
pub use vm::ExitKind;
pub use vm::Power;
pub use vm::SavedState;
pub use vm::VmRecord;
pub use volume::ImagePlace;
pub use volume::StorageTarget;
pub use volume::VmPlace;
pub use volume::VolumeKind;
pub use volume::VolumeRecord;
pub use witness::WITNESS_SLOTS_MAX;
pub use witness::WitnessPlace;
pub use witness::WitnessRecord;
pub use witness::witness_slots;
