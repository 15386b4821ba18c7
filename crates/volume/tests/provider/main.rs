//! The data plane as it runs: mount points of several nodes over one LUN, with real ext4 and XFS. Needs
//! root.

mod cluster;
mod faults;
mod fence;
mod files;
mod flush;
mod model;
mod peers;
#[path = "../san/rig.rs"]
mod rig;
mod wire;
