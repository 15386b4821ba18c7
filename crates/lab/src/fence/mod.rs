//! The pretend power hardware: a BMC for all nodes, and the fence agent that talks to it.
//!
//! ```text
//!   daemon of n1 --> /muster/bin/fence_muster_lab (stdin: action=off, plug=n2)
//!                        | TCP, one line each way, over n1's management cable
//!                        v
//!                    BMC in the world, 10.90.0.1:6230 --> power switch of n2
//! ```
//!
//! The BMC does to each node what its *mood* says: works, fails, hangs, lies, slow. The agent knows
//! nothing of moods; it is as honest as the agents of the package `fence-agents`, whose conventions
//! it keeps (options on standard input, exit codes, metadata).

mod agent;
mod bmc;
mod words;

use std::net::SocketAddrV4;

pub use agent::agent_main;
pub use bmc::serve;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::names::Wire;
use crate::programs::program;
use crate::state::FenceMood;
use crate::state::LabState;

/// Port of the BMC.
const PORT: u16 = 6230;

/// Where the BMC of all nodes is, seen from a node.
pub(crate) fn bmc_address(state: &LabState) -> SocketAddrV4 {
    SocketAddrV4::new(state.net.world(Wire::Mgmt), PORT)
}

impl Lab {
    /// Starts the BMC in the world.
    pub(crate) fn start_bmc(&self, state: &LabState) -> Result<(), LabError> {
        let group = self.group()?.child("bmc");
        group.make()?;
        let join = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;
        let mut args = vec!["-c".to_owned(), join.to_owned()];
        args.push(group.dir().display().to_string());
        args.push("nsenter".to_owned());
        args.push(format!("--net={}", self.world_net().display()));
        args.extend(["--", "setsid", "--fork"].map(str::to_owned));
        args.push(state.exe.display().to_string());
        args.extend(["lab", "--dir"].map(str::to_owned));
        args.push(self.dir().display().to_string());
        args.push("bmc".to_owned());
        self.detached(&mut program("sh", &args), &self.path("bmc.log"))
    }

    /// Says what a node's fence device does from now on.
    ///
    /// # Errors
    /// No such node.
    pub fn set_fence(&self, node: NodeName, mood: FenceMood) -> Result<(), LabError> {
        let _lock = self.lock()?;
        let mut state = self.up_state()?;
        state.node_mut(node)?.fence = mood;
        self.save(&state)
    }
}
