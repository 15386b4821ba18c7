//! `muster lab`: a whole cluster on one machine, from the same binary, and the faults that it is
//! tried with.
//!
//! ```text
//!   the machine
//!     |  (with --host-link only: a cable, so that a browser reaches the nodes)
//!   +-+--- the world: a network namespace of the lab ----------------------------------------+
//!   |  switches:  mgmt 10.90.0.0/24   cluster .1.0   migration .2.0   vm .3.0                 |
//!   |             pretend BMC on 10.90.0.1                                                    |
//!   +-----|------------|----------------|--------------|--------------------------------------+
//!       mgmt0        clus0            migr0           vm0 in bridge lan0      four cables each
//!   +-- n1: own network, mount and UTS namespace, own /run, /var/lib/muster, control group --+
//!   |   muster daemon, muster guard, QEMU ...           /muster/share is the same everywhere  |
//!   +-----------------------------------------------------------------------------------------+
//! ```
//!
//! A lab is its directory. All names are made from it and from the state file in it, which is
//! written *before* anything is made; so whatever step `up` is killed at, `down` knows everything
//! that there may be. Namespaces are held by files (bind mounts on one small file system in the
//! directory) and not by processes. Everything that runs, runs below one control group; ending a
//! lab is ending that group, taking that one mount away, and removing the directory.
//!
//! Faults are made from outside: a node dies by its control group being killed, hangs by it being
//! frozen, is cut off by rules on the switches. No code of a node is asked. Each fault is tried
//! after it was made: a cut is one only when packets do not pass.
//!
//! With `--san` the nodes share a LUN, too, each by a path of its own: see `san`.
//!
//! `ip`, `nft`, `tc`, `nsenter` and `unshare` are called as programs: what the lab does can be
//! done and looked at by hand with the same words, and crate `switch`, which knows netlink, is an
//! engine that the lab must not know (decision 0010). Of crate `volume` it uses the pretend SAN alone,
//! `volume::san` (decision 0021).
//!
//! Trust boundaries: the state file (root's own), and requests to the pretend BMC, which come from
//! the nodes: short lines, few at a time, with a deadline.

mod build;
mod cgroup;
mod clock;
mod daemon;
mod down;
mod error;
mod fault;
pub mod fence;
mod form;
mod layout;
mod lock;
mod names;
mod network;
mod power;
mod probe;
mod programs;
mod root;
pub mod san;
mod shell;
mod state;
mod status;
mod up;

pub use error::LabError;
pub use error::LabErrorKind;
pub use fault::Checked;
pub use fault::Direction;
pub use fault::FaultReport;
pub use layout::Lab;
pub use names::LabNet;
pub use names::NodeName;
pub use names::Wire;
pub use power::Ended;
pub use probe::Probe;
pub use root::enter_node_root;
pub use shell::Inside;
pub use state::FenceMood;
pub use state::SanPlan;
pub use status::LabStatus;
pub use status::NodePower;
pub use status::NodeStatus;
pub use up::Cancel;
pub use up::UpOptions;
pub use up::UpReport;

/// Told what is being done; one line each.
pub type Say<'a> = &'a (dyn Fn(&str) + Sync);
