//! A command inside a node, as one would have it on a console there.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;

/// Where programs are found in a node: the lab's own `muster` first.
const PATH: &str = "/muster/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that is ready to become this process.
#[derive(Debug)]
pub struct Inside(Command);

impl Inside {
    /// Becomes the command: input, output and exit code are its own.
    pub fn exec(mut self) -> LabError {
        let error = self.0.exec();
        LabError::failed(format!("sh cannot be started: {error}"), "install the package dash")
    }
}

impl Lab {
    /// A command in a node's namespaces and control group; a shell where none is named. It dies
    /// with the node's power.
    ///
    /// # Errors
    /// The node has no power, or hangs.
    pub fn shell(&self, node: NodeName, command: &[OsString]) -> Result<Inside, LabError> {
        let state = self.up_state()?;
        self.node_with_power(&state, node)?;
        if self.node_group(node)?.frozen() {
            return Err(LabError::conflict(
                format!("{node} hangs, and what is started in it would hang with it"),
                format!("let it go on first: muster lab thaw {node}"),
            ));
        }
        let args = self.inside(node, "shell")?;
        let mut inside = Command::new("sh");
        inside.args(&args).env("PATH", PATH).env("MUSTER_LAB_NODE", node.to_string());
        for name in ["MUSTER_SOCKET", "MUSTER_HOST", "MUSTER_TOKEN", "MUSTER_FINGERPRINT"] {
            inside.env_remove(name);
        }
        match command {
            [] => {
                inside.env("PS1", format!("[{node}] \\w# "));
                inside.args(["sh", "-c", "cd; exec bash --norc || exec sh"])
            }
            command => inside.args(command),
        };
        Ok(Inside(inside))
    }
}
