//! What is there: intent from the state file, facts from the kernel and the daemons.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Serialize;

use crate::daemon::DAEMON;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::names::Wire;
use crate::state::FenceMood;
use crate::state::LabState;
use crate::state::Phase;

/// Power and life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePower {
    /// It runs.
    On,
    /// It has no power.
    Off,
    /// It hangs.
    Frozen,
    /// It is to run, and is not there: `lab up` repairs that.
    Broken,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Power and life.
    pub power: NodePower,
    /// Whether its daemon's process runs.
    pub daemon: bool,
    /// Whether its daemon answers; a frozen one is not asked.
    pub answers: bool,
    /// Machines with a process.
    pub machines: usize,
    /// All its processes.
    pub processes: Vec<u32>,
    /// Its addresses.
    pub addresses: BTreeMap<Wire, Ipv4Addr>,
    /// What its fence device does.
    pub fence: FenceMood,
    /// Seconds that its clock is ahead.
    pub clock_offset: i64,
    /// Socket of its API, from this machine.
    pub socket: PathBuf,
    /// File that holds its network namespace.
    pub network_namespace: PathBuf,
    /// Its control group.
    pub control_group: PathBuf,
    /// What its daemon has said.
    pub log: PathBuf,
}

/// A lab.
#[derive(Debug, Clone, Serialize)]
pub struct LabStatus {
    /// Its directory.
    pub dir: PathBuf,
    /// What is in the names of its control group and cable.
    pub tag: String,
    /// Whether it is up as a whole: neither half built nor half ended.
    pub up: bool,
    /// Its range of addresses.
    pub net: String,
    /// The machine's device into the lab, where there is one.
    pub host_link: Option<String>,
    /// Directory of `/muster/share`.
    pub share: PathBuf,
    /// Address and port of the pretend BMC of all nodes.
    pub bmc: String,
    /// File that holds the network namespace of the switches.
    pub network_namespace: PathBuf,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Faults that hold, in words.
    pub faults: Vec<String>,
}

impl Lab {
    /// What there is.
    ///
    /// # Errors
    /// There is no lab; its state file is damaged.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        let state = self.state()?;
        let there = self.holds(&self.world_net());
        let nodes = state.nodes.keys().map(|node| self.node_status(&state, *node));
        Ok(LabStatus {
            dir: self.dir().to_owned(),
            tag: self.tag().to_string(),
            up: there && state.phase == Phase::Up,
            net: state.net.to_string(),
            host_link: state.host_link.then(|| self.tag().host_device()),
            share: self.share(),
            bmc: crate::fence::bmc_address(&state).to_string(),
            network_namespace: self.world_net(),
            nodes: nodes.collect::<Result<_, _>>()?,
            faults: words(&state),
        })
    }

    fn node_status(&self, state: &LabState, node: NodeName) -> Result<NodeStatus, LabError> {
        let intent = state.node(node)?;
        let group = self.node_group(node)?;
        let net = self.node_ns(node, "net");
        let frozen = group.frozen();
        let power = match (intent.on, self.holds(&net) && group.exists()) {
            (false, _) => NodePower::Off,
            (true, false) => NodePower::Broken,
            (true, true) if frozen => NodePower::Frozen,
            (true, true) => NodePower::On,
        };
        let instances = group.children();
        let machines = instances.iter().filter(|group| group.name().starts_with("muster-"));
        let machines = machines.flat_map(|group| group.children());
        let is_machine = |name: &str| name.starts_with("vm-");
        Ok(NodeStatus {
            name: node,
            power,
            daemon: group.child(DAEMON).populated(),
            answers: power == NodePower::On && self.answers(node),
            machines: machines.filter(|it| is_machine(&it.name()) && it.populated()).count(),
            processes: group.processes(),
            addresses: Wire::ALL.map(|wire| (wire, state.net.of(wire, node))).into(),
            fence: intent.fence,
            clock_offset: intent.clock_offset,
            socket: self.socket(node),
            network_namespace: net,
            control_group: group.dir().to_owned(),
            log: self.log(node),
        })
    }
}

fn words(state: &LabState) -> Vec<String> {
    let faults = &state.faults;
    let mut words = Vec::new();
    let nodes: Vec<_> = state.nodes.keys().copied().collect();
    for wire in Wire::ALL {
        let is_cut =
            |a: &NodeName, b: &NodeName| faults.cuts.contains(&(wire.port(a), wire.port(b)));
        for (at, a) in nodes.iter().enumerate() {
            for b in &nodes[at + 1..] {
                match (is_cut(a, b), is_cut(b, a)) {
                    (true, true) => words.push(format!("{a} and {b} are cut off on {wire}")),
                    (true, false) => {
                        words.push(format!("nothing passes from {a} to {b} on {wire}"))
                    }
                    (false, true) => {
                        words.push(format!("nothing passes from {b} to {a} on {wire}"))
                    }
                    (false, false) => {}
                }
            }
        }
    }
    for node in &nodes {
        match (faults.deaf.contains(node), faults.mute.contains(node)) {
            (true, true) => words.push(format!("{node} is isolated")),
            (true, false) => words.push(format!("nothing reaches {node}")),
            (false, true) => words.push(format!("nothing comes from {node}")),
            (false, false) => {}
        }
        if let Some(rate) = faults.slow.get(node) {
            words.push(format!("the cables of {node} carry {} kbit/s", rate / 1000));
        }
    }
    words
}
