//! The cables, switches and rules of a lab as texts for `ip` and `nft`, and their loading.
//!
//! Neighbour tables are filled by hand: a one-way cut must not also stop the answers to address
//! requests, or it would soon be a cut both ways.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::LabNet;
use crate::names::NodeName;
use crate::names::Tag;
use crate::names::Wire;
use crate::programs::run;
use crate::state::Faults;
use crate::state::LabState;

/// Bits that may pass at once on a slowed cable: some frames of full size.
const SLOW_BURST: &str = "32kb";

/// How long a frame may wait on a slowed cable before it is dropped.
const SLOW_QUEUE: &str = "400ms";

/// Switches and addresses of the world.
fn world_text(tag: &Tag, state: &LabState) -> String {
    let mut text = "link set lo up\n".to_owned();
    for wire in Wire::ALL {
        let mac = tag.mac(wire, None);
        let address = state.net.world(wire);
        let _ = write!(
            text,
            "link add {wire} address {mac} type bridge stp_state 0 forward_delay 0\n\
             link set {wire} addrgenmode none up\n\
             addr add {address}/24 dev {wire}\n"
        );
        for node in state.nodes.keys() {
            text.push_str(&neighbour(tag, state.net, wire, Some(*node), wire.word()));
        }
    }
    text
}

/// A node's cables, seen from the world; the other ends appear in the node.
fn cables_text(tag: &Tag, node: NodeName, node_net: &str) -> String {
    let mut text = String::new();
    for wire in Wire::ALL {
        let (port, device) = (wire.port(&node), wire.device());
        // The bridge in the node has the address that the others know, so its port needs another.
        let mac = match wire {
            Wire::Vm => String::new(),
            _ => format!(" address {}", tag.mac(wire, Some(node))),
        };
        let _ = write!(
            text,
            "link add {port} type veth peer name {device}{mac} netns {node_net}\n\
             link set {port} addrgenmode none master {wire} up\n"
        );
    }
    text
}

/// A node's addresses, seen from the node.
fn node_text(tag: &Tag, state: &LabState, node: NodeName) -> String {
    let mut text = "link set lo up\n".to_owned();
    let mac = tag.mac(Wire::Vm, Some(node));
    let (lan, cable) = (Wire::Vm.address_device(), Wire::Vm.device());
    let _ = write!(
        text,
        "link add {lan} address {mac} type bridge stp_state 0 forward_delay 0\n\
         link set {cable} addrgenmode none master {lan} up\n"
    );
    for wire in Wire::ALL {
        let (device, address) = (wire.address_device(), state.net.of(wire, node));
        let _ = write!(
            text,
            "link set {device} addrgenmode none up\naddr add {address}/24 dev {device}\n"
        );
        text.push_str(&neighbour(tag, state.net, wire, None, device));
        for other in state.nodes.keys().filter(|other| **other != node) {
            text.push_str(&neighbour(tag, state.net, wire, Some(*other), device));
        }
    }
    let _ = writeln!(text, "route add default via {}", state.net.world(Wire::Mgmt));
    text
}

fn neighbour(tag: &Tag, net: LabNet, wire: Wire, of: Option<NodeName>, device: &str) -> String {
    let address = of.map_or_else(|| net.world(wire), |node| net.of(wire, node));
    let mac = tag.mac(wire, of);
    format!("neigh replace {address} lladdr {mac} dev {device} nud permanent\n")
}

/// The rules on the switches: all of them anew, in one step.
fn rules_text(faults: &Faults) -> String {
    let mut text = "table bridge lab\ndelete table bridge lab\ntable bridge lab {\n".to_owned();
    let chain = |text: &mut String, hook: &str| {
        let _ = write!(
            text,
            "  chain at_{hook} {{\n    type filter hook {hook} priority 0; policy accept;\n"
        );
    };
    let ports = |node: &NodeName| Wire::ALL.map(|wire| wire.port(node));
    chain(&mut text, "prerouting");
    for port in faults.mute.iter().flat_map(ports) {
        let _ = writeln!(text, "    iifname \"{port}\" drop");
    }
    text.push_str("  }\n");
    chain(&mut text, "forward");
    for (from, to) in &faults.cuts {
        let _ = writeln!(text, "    iifname \"{from}\" oifname \"{to}\" drop");
    }
    text.push_str("  }\n");
    chain(&mut text, "postrouting");
    for port in faults.deaf.iter().flat_map(ports) {
        let _ = writeln!(text, "    oifname \"{port}\" drop");
    }
    text.push_str("  }\n}\n");
    text
}

impl Lab {
    /// Makes switches and addresses in the new world.
    pub(crate) fn build_world(&self, state: &LabState) -> Result<(), LabError> {
        let world = self.world_net();
        self.ip_batch(&world, "world", &world_text(self.tag(), state))?;
        self.apply_rules(&state.faults)?;
        if state.host_link {
            self.link_to_host(state)?;
        }
        Ok(())
    }

    /// Plugs a node's four cables in.
    pub(crate) fn plug(&self, state: &LabState, node: NodeName) -> Result<(), LabError> {
        let net = self.node_ns(node, "net");
        let text = cables_text(self.tag(), node, &net.display().to_string());
        self.ip_batch(&self.world_net(), &format!("{node}-cables"), &text)?;
        self.ip_batch(&net, &node.to_string(), &node_text(self.tag(), state, node))?;
        self.apply_rate(node, state.faults.slow.get(&node).copied())
    }

    /// Pulls a node's cables out. The kernel takes the devices of a namespace away some time after
    /// the namespace; until then their other ends would be in the way of new ones.
    pub(crate) fn unplug(&self, node: NodeName) -> Result<(), LabError> {
        let world = self.world_net();
        if !self.holds(&world) {
            return Ok(());
        }
        let links = self.run_in(&world, "ip", &["-o", "link", "show", "type", "veth"])?;
        for port in Wire::ALL.map(|wire| wire.port(&node)) {
            // `7: n1-mgmt@if2: <...`
            let there = links.split_whitespace().any(|word| word.split('@').next() == Some(&port));
            if there && let Err(error) = self.run_in(&world, "ip", &["link", "del", &port]) {
                // It may have gone with its other end meanwhile.
                let left = self.run_in(&world, "ip", &["-o", "link", "show", "type", "veth"])?;
                if left.contains(&port) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Brings the switches' rules to what the state says.
    pub(crate) fn apply_rules(&self, faults: &Faults) -> Result<(), LabError> {
        self.nft(&self.world_net(), "faults", &rules_text(faults))
    }

    /// Limits both directions of all of a node's cables, or lifts the limit.
    pub(crate) fn apply_rate(&self, node: NodeName, rate: Option<u64>) -> Result<(), LabError> {
        let (world, inside) = (self.world_net(), self.node_ns(node, "net"));
        for wire in Wire::ALL {
            for (net, device) in [(&world, wire.port(&node)), (&inside, wire.device().to_owned())] {
                set_rate(self, net, &device, rate)?;
            }
        }
        Ok(())
    }

    /// A cable from the world to the machine itself, and the way to the nodes through it.
    fn link_to_host(&self, state: &LabState) -> Result<(), LabError> {
        let device = self.tag().host_device();
        let (world, host) = state.net.host_link();
        let range = state.net.to_string();
        let used = run("ip", ["-4", "route", "show", "root", &range])?;
        if !used.trim().is_empty() {
            return Err(LabError::conflict(
                format!("this machine has a way into {range} already: {}", used.trim()),
                "give the lab another range: muster lab up --host-link --net 10.91.0.0/16",
            ));
        }
        let net = self.world_net().display().to_string();
        let peer = ["type", "veth", "peer", "name", "host", "netns", &net];
        run("ip", ["link", "add", &device].into_iter().chain(peer))?;
        let text = format!("link set host addrgenmode none up\naddr add {world}/30 dev host\n");
        self.ip_batch(&self.world_net(), "host", &text)?;
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        self.run_in(&self.world_net(), "sh", &["-c", forward])?;
        run("ip", ["addr", "add", &format!("{host}/30"), "dev", &device])?;
        run("ip", ["link", "set", &device, "up"])?;
        run("ip", ["route", "add", &range, "via", &world.to_string(), "dev", &device]).map(drop)
    }

    /// Whether a file holds a namespace.
    pub(crate) fn holds(&self, file: &Path) -> bool {
        // Files of namespaces are on a file system of their own, which has this one device.
        let device = |path: &Path| {
            fs::metadata(path).map(|data| std::os::unix::fs::MetadataExt::dev(&data)).ok()
        };
        device(file).is_some() && device(file) == device(Path::new("/proc/self/ns/net"))
    }
}

fn set_rate(lab: &Lab, net: &Path, device: &str, rate: Option<u64>) -> Result<(), LabError> {
    let now = lab.run_in(net, "tc", &["qdisc", "show", "dev", device])?;
    let slowed = now.contains("qdisc tbf");
    match rate {
        Some(rate) => {
            let rate = format!("{rate}bit");
            let limit = ["root", "tbf", "rate", &rate, "burst", SLOW_BURST, "latency", SLOW_QUEUE];
            let args: Vec<&str> =
                ["qdisc", "replace", "dev", device].into_iter().chain(limit).collect();
            lab.run_in(net, "tc", &args).map(drop)
        }
        None if slowed => lab.run_in(net, "tc", &["qdisc", "del", "dev", device, "root"]).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::path::PathBuf;

    use super::cables_text;
    use super::node_text;
    use super::rules_text;
    use super::world_text;
    use crate::names::LabNet;
    use crate::names::NodeName;
    use crate::names::Tag;
    use crate::state::LabState;

    #[test]
    fn texts_for_two_nodes() {
        let tag = Tag::of(Path::new("/var/tmp/lab"));
        let state = LabState::new(PathBuf::from("/bin/muster"), LabNet::default(), 2);
        let node = NodeName::of(1);
        let text = format!(
            "# world\n{}# cables of n1\n{}# n1\n{}",
            world_text(&tag, &state),
            cables_text(&tag, node, "/var/tmp/lab/ns/n1.net"),
            node_text(&tag, &state, node),
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn rules_for_cuts_and_isolated_nodes() {
        let mut state = LabState::new(PathBuf::from("/bin/muster"), LabNet::default(), 3);
        let cut = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        state.faults.cuts.insert(cut("n1-clus", "n2-clus"));
        state.faults.deaf.insert(NodeName::of(3));
        state.faults.mute.insert(NodeName::of(3));
        insta::assert_snapshot!(rules_text(&state.faults));
    }
}
