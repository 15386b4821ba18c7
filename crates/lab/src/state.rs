//! The state file: what the lab is to be, and which faults hold. Version 1, JSON.
//!
//! It is the intent, written before the deed and replaced in one step; what is really there is
//! read from the kernel. A lab that was half made or half removed is known by its phase.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::error::LabError;
use crate::layout::Lab;
use crate::layout::STATE_FILE;
use crate::names::LabNet;
use crate::names::NodeName;

/// Version of the format.
const VERSION: u32 = 1;

/// Longest state file that is read: 64 nodes with all cuts between them are well below it.
const SIZE_MAX: u64 = 4 << 20;

/// A lab's intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabState {
    pub(crate) version: u32,
    pub(crate) phase: Phase,
    /// The binary of all nodes.
    pub(crate) exe: PathBuf,
    pub(crate) net: LabNet,
    /// Whether there is a cable to the machine.
    pub(crate) host_link: bool,
    /// Whether machines only pretend.
    pub(crate) fake: bool,
    /// Whether the nodes are to be one cluster.
    pub(crate) cluster: bool,
    /// Further lines of each daemon's configuration.
    pub(crate) config: String,
    /// The LUNs that all nodes share, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) san: Option<SanPlan>,
    pub(crate) nodes: BTreeMap<NodeName, NodeState>,
    pub(crate) faults: Faults,
}

/// The lab's SAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SanPlan {
    /// Size of each LUN in bytes.
    pub sizes: Vec<u64>,
}

/// How far a lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// `up` is at work, or was killed at it.
    Building,
    /// It is up.
    Up,
    /// `down` is at work, or was killed at it.
    Ending,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeState {
    /// Whether it is to have power.
    pub(crate) on: bool,
    /// What its fence device does.
    pub(crate) fence: FenceMood,
    /// Seconds that its monotonic and boot clocks are ahead; from the next power-on.
    pub(crate) clock_offset: i64,
}

/// What a node's pretend fence device does when it is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceMood {
    /// What it is told.
    #[default]
    Works,
    /// It says that it failed, and did nothing.
    Fails,
    /// It never answers.
    Hangs,
    /// It says that the node is off, and did nothing.
    Lies,
    /// What it is told, after ten seconds.
    Slow,
}

/// Faults of the network that hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Faults {
    /// Frames from the first port to the second are dropped.
    pub(crate) cuts: BTreeSet<(String, String)>,
    /// Nothing goes to these nodes.
    pub(crate) deaf: BTreeSet<NodeName>,
    /// Nothing comes from these nodes.
    pub(crate) mute: BTreeSet<NodeName>,
    /// Bits per second on all cables of a node.
    pub(crate) slow: BTreeMap<NodeName, u64>,
}

impl LabState {
    /// A lab that is about to be built.
    pub(crate) fn new(exe: PathBuf, net: LabNet, nodes: u8) -> Self {
        let node = |number| (NodeName::of(number), NodeState { on: true, ..NodeState::default() });
        Self {
            version: VERSION,
            phase: Phase::Building,
            exe,
            net,
            host_link: false,
            fake: false,
            cluster: false,
            config: String::new(),
            san: None,
            nodes: (1..=nodes).map(node).collect(),
            faults: Faults::default(),
        }
    }

    /// A node that must exist.
    pub(crate) fn node(&self, name: NodeName) -> Result<&NodeState, LabError> {
        self.nodes.get(&name).ok_or_else(|| no_node(name))
    }

    /// As [`LabState::node`], to change it.
    pub(crate) fn node_mut(&mut self, name: NodeName) -> Result<&mut NodeState, LabError> {
        self.nodes.get_mut(&name).ok_or_else(|| no_node(name))
    }
}

fn no_node(name: NodeName) -> LabError {
    LabError::not_found(format!("the lab has no node {name}"), "see them: muster lab status")
}

impl Lab {
    /// What the lab is to be; nothing where there is none.
    pub(crate) fn try_state(&self) -> Result<Option<LabState>, LabError> {
        let path = self.path(STATE_FILE);
        let hint = "if nothing of it is needed: muster lab down --force";
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LabError::io("read", &path)(error)),
            Ok(data) if data.len() > SIZE_MAX => {
                return Err(LabError::failed(format!("{} is too long", path.display()), hint));
            }
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(LabError::io("read", &path))?;
        let state: LabState = serde_json::from_slice(&text).map_err(|error| {
            LabError::failed(format!("{} is damaged: {error}", path.display()), hint)
        })?;
        if state.version != VERSION {
            let message = format!(
                "the lab in {} is of version {}, and this program knows {VERSION}",
                self.dir().display(),
                state.version
            );
            return Err(LabError::conflict(message, "end it with the program that made it"));
        }
        Ok(Some(state))
    }

    /// What the lab is to be.
    pub(crate) fn state(&self) -> Result<LabState, LabError> {
        self.try_state()?.ok_or_else(|| {
            LabError::not_found(
                format!("there is no lab in {}", self.dir().display()),
                "make one: muster lab up; or name its directory with --dir",
            )
        })
    }

    /// The state of a lab that is up.
    pub(crate) fn up_state(&self) -> Result<LabState, LabError> {
        let state = self.state()?;
        if state.phase != Phase::Up || !self.holds(&self.world_net()) {
            return Err(LabError::conflict(
                format!("the lab in {} is not up", self.dir().display()),
                "repair it with 'muster lab up', or end it with 'muster lab down'",
            ));
        }
        Ok(state)
    }

    /// Replaces the state file in one step.
    pub(crate) fn save(&self, state: &LabState) -> Result<(), LabError> {
        let path = self.path(STATE_FILE);
        let part = self.path("lab.json.new");
        let text = serde_json::to_vec_pretty(state).expect("plain data can be JSON");
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&text)?;
            file.sync_data()?;
            fs::rename(&part, &path)
        };
        write().map_err(LabError::io("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::LabState;
    use crate::names::LabNet;
    use crate::names::NodeName;

    #[test]
    fn what_is_written_is_read_again() {
        let mut state = LabState::new(PathBuf::from("/bin/muster"), LabNet::default(), 3);
        state.faults.cuts.insert(("n1-mgmt".to_owned(), "n2-mgmt".to_owned()));
        state.faults.slow.insert(NodeName::of(2), 1_000_000);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<LabState>(&text).unwrap(), state);
        assert!(serde_json::from_str::<LabState>(&text.replace("n3", "n99")).is_err());
        assert!(state.node(NodeName::of(4)).is_err());
    }
}
