//! The power switch and the pause button of a node.

use std::time::Duration;
use std::time::Instant;

use crate::daemon::DAEMON;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::up::Cancel;

/// What a loss of power has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Processes that were killed.
    pub processes: usize,
    /// How long it took until none was left.
    pub took: Duration,
}

impl Lab {
    /// Takes a node's power: everything in its control group is killed at once, its namespaces,
    /// network devices and `/run` are gone. Its disks stay.
    ///
    /// # Errors
    /// It has none; something does not die.
    pub fn power_off(&self, node: NodeName) -> Result<Ended, LabError> {
        let _lock = self.lock()?;
        let mut state = self.up_state()?;
        if !state.node(node)?.on {
            return Err(LabError::conflict(
                format!("{node} has no power already"),
                format!("give it some: muster lab power-on {node}"),
            ));
        }
        state.node_mut(node)?.on = false;
        self.save(&state)?;
        let started = Instant::now();
        self.unplug_san(node)?;
        let group = self.node_group(node)?;
        let processes = if group.exists() { group.kill()? } else { 0 };
        let took = started.elapsed();
        self.unmake_node(node)?;
        if group.exists() {
            return Err(LabError::failed(
                format!("{node} still has processes"),
                format!("try again: muster lab power-off {node}"),
            ));
        }
        Ok(Ended { processes, took })
    }

    /// Gives a node power: it starts as after a boot. Returns when its daemon answers, or at once
    /// with `wait` off.
    ///
    /// # Errors
    /// It has power and runs; it does not start.
    pub fn power_on(&self, node: NodeName, wait: bool, cancel: &Cancel) -> Result<(), LabError> {
        let lock = self.lock()?;
        let mut state = self.up_state()?;
        let runs = self.node_group(node)?.child(DAEMON).populated();
        if state.node(node)?.on && runs {
            return Err(LabError::conflict(
                format!("{node} has power already"),
                format!("take it first: muster lab power-off {node}"),
            ));
        }
        // Half a node, of a command that was killed, is none.
        self.unmake_node(node)?;
        state.node_mut(node)?.on = true;
        self.save(&state)?;
        self.make_node(&state, node)?;
        self.start_daemon(&state, node)?;
        drop(lock);
        if wait { self.wait_ready(node, cancel) } else { Ok(()) }
    }

    /// Kills a node's daemon at once, as a fault of its own would, and starts it again; its guard and
    /// its machines go on. Returns when the new one answers.
    ///
    /// # Errors
    /// The node has no power; the daemon does not die, or does not start.
    pub fn restart(&self, node: NodeName, cancel: &Cancel) -> Result<(), LabError> {
        let lock = self.lock()?;
        let state = self.up_state()?;
        self.node_with_power(&state, node)?;
        // Also the group: one that was killed once ends each process that is made in it for another
        // group (clone3 with CLONE_INTO_CGROUP; seen on Linux 6.18), and no machine would start.
        self.node_group(node)?.child(DAEMON).remove()?;
        self.start_role(&state, node, DAEMON)?;
        drop(lock);
        self.wait_ready(node, cancel)
    }

    /// Freezes everything in a node, or lets it go on: it hangs, and does not know it.
    ///
    /// # Errors
    /// It has no power; it does not freeze or thaw in time.
    pub fn set_frozen(&self, node: NodeName, frozen: bool) -> Result<(), LabError> {
        let _lock = self.lock()?;
        let state = self.up_state()?;
        self.node_with_power(&state, node)?;
        self.node_group(node)?.freeze(frozen)
    }
}
