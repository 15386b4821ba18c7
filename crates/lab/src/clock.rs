//! A node's clock: a time namespace that is ahead of the machine's.
//!
//! The kernel lets the monotonic and the boot clock be moved, and only for processes that are
//! started afterwards: so the offset is chosen while the node is off. Its date is the machine's:
//! there is no namespace for that.

use std::fs;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::programs::run;

/// Most seconds a clock may be ahead or behind: a year says it all, and the kernel takes it.
const OFFSET_MAX: i64 = 366 * 86_400;

impl Lab {
    /// Sets how many seconds a node's monotonic and boot clocks are ahead, from its next power-on.
    ///
    /// # Errors
    /// The node has power; an offset that no clock can have.
    pub fn set_clock(&self, node: NodeName, offset: i64) -> Result<(), LabError> {
        let hint = "give seconds, such as --offset 3600 or --offset=-60";
        if offset.abs() > OFFSET_MAX {
            let message = format!("a clock cannot be {offset} seconds ahead here");
            return Err(LabError::usage(message, hint));
        }
        if uptime() + offset < 0 {
            let message = format!("{offset} seconds is before this machine's own start");
            return Err(LabError::usage(message, "a boot clock cannot be negative; give less"));
        }
        let _lock = self.lock()?;
        let mut state = self.up_state()?;
        if state.node(node)?.on {
            return Err(LabError::conflict(
                format!(
                    "the clock of {node} cannot be moved while it runs: the kernel lets only \
                         new processes see another clock"
                ),
                format!("take its power first: muster lab power-off {node}"),
            ));
        }
        state.node_mut(node)?.clock_offset = offset;
        self.save(&state)
    }

    /// Makes the node's time namespace, if its clock is not the machine's.
    pub(crate) fn make_clock(&self, node: NodeName, offset: i64) -> Result<(), LabError> {
        if offset == 0 {
            return Ok(());
        }
        let file = self.node_ns(node, "time");
        fs::write(&file, "").map_err(LabError::io("make", &file))?;
        let offset = offset.to_string();
        let hold = format!("--time={}", file.display());
        run("unshare", [&hold, "--boottime", &offset, "--monotonic", &offset, "true"]).map(drop)
    }
}

/// Seconds since this machine started.
fn uptime() -> i64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}
