//! Faults of the network: cuts, isolated nodes, slow cables. Each is tried after it was made.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::names::Wire;
use crate::probe::Probe;
use crate::probe::Way;
use crate::state::Faults;
use crate::state::LabState;

/// Slowest rate, in bits per second: below it a frame of full size would not pass at all.
const RATE_MIN: u64 = 64_000;

/// Fastest rate: more is no limit on cables that are memory.
const RATE_MAX: u64 = 100_000_000_000;

/// Which packets of a node are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// All.
    Both,
    /// Those to it.
    In,
    /// Those from it.
    Out,
}

/// A way that was tried after a fault was made or mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The way, and what was seen.
    #[serde(flatten)]
    pub seen: Probe,
    /// Whether packets were to pass.
    pub wanted: bool,
}

/// What was seen after a fault was made or mended; all is as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// Ways that were tried.
    pub checked: Vec<Checked>,
    /// Nodes that have no power, so that nothing could be tried with them.
    pub without_power: Vec<NodeName>,
}

impl Faults {
    /// Whether packets pass.
    pub(crate) fn lets_pass(&self, from: NodeName, to: NodeName, wire: Wire) -> bool {
        let cut = self.cuts.contains(&(wire.port(&from), wire.port(&to)));
        !cut && !self.mute.contains(&from) && !self.deaf.contains(&to)
    }

    fn mend_node(&mut self, node: NodeName) {
        let ports: BTreeSet<_> = Wire::ALL.iter().map(|wire| wire.port(&node)).collect();
        self.cuts.retain(|(from, to)| !ports.contains(from) && !ports.contains(to));
        self.deaf.remove(&node);
        self.mute.remove(&node);
        self.slow.remove(&node);
    }
}

impl Lab {
    /// Drops all packets between two nodes on some networks, or those from the first to the second
    /// only.
    ///
    /// # Errors
    /// No such node; the same node twice; packets still pass.
    pub fn cut(
        &self,
        a: NodeName,
        b: NodeName,
        wires: &[Wire],
        one_way: bool,
    ) -> Result<FaultReport, LabError> {
        different(a, b)?;
        let ways = both_ways(a, b, wires);
        self.change(&ways, |faults| {
            for wire in wires {
                faults.cuts.insert((wire.port(&a), wire.port(&b)));
                if !one_way {
                    faults.cuts.insert((wire.port(&b), wire.port(&a)));
                }
            }
        })
    }

    /// Ends the cuts between two nodes on some networks.
    ///
    /// # Errors
    /// No such node; packets do not pass.
    pub fn mend(&self, a: NodeName, b: NodeName, wires: &[Wire]) -> Result<FaultReport, LabError> {
        different(a, b)?;
        let ways = both_ways(a, b, wires);
        self.change(&ways, |faults| {
            for wire in wires {
                faults.cuts.remove(&(wire.port(&a), wire.port(&b)));
                faults.cuts.remove(&(wire.port(&b), wire.port(&a)));
            }
        })
    }

    /// Ends all faults of the network of a node, or of all nodes.
    ///
    /// # Errors
    /// No such node; packets do not pass that should.
    pub fn mend_all(&self, node: Option<NodeName>) -> Result<FaultReport, LabError> {
        let state = self.up_state()?;
        let mut ways = Vec::new();
        let nodes: Vec<_> = state.nodes.keys().copied().collect();
        for (at, a) in nodes.iter().enumerate() {
            for b in &nodes[at + 1..] {
                if node.is_none_or(|node| node == *a || node == *b) {
                    ways.extend(both_ways(*a, *b, &Wire::ALL));
                }
            }
        }
        if let Some(node) = node {
            state.node(node)?;
        }
        let report = self.change(&ways, |faults| match node {
            Some(node) => faults.mend_node(node),
            None => *faults = Faults::default(),
        })?;
        for one in nodes.iter().filter(|one| node.is_none_or(|node| node == **one)) {
            if state.node(*one)?.on && state.faults.slow.contains_key(one) {
                self.apply_rate(*one, None)?;
            }
        }
        Ok(report)
    }

    /// Cuts a node off from everything on all networks, or in one direction only.
    ///
    /// # Errors
    /// No such node; packets still pass.
    pub fn isolate(&self, node: NodeName, which: Direction) -> Result<FaultReport, LabError> {
        let state = self.up_state()?;
        state.node(node)?;
        let others = state.nodes.keys().filter(|other| **other != node);
        let ways: Vec<_> = others.flat_map(|other| both_ways(node, *other, &Wire::ALL)).collect();
        self.change(&ways, |faults| {
            if which != Direction::Out {
                faults.deaf.insert(node);
            }
            if which != Direction::In {
                faults.mute.insert(node);
            }
        })
    }

    /// Limits both directions of a node's cables to so many bits per second.
    ///
    /// # Errors
    /// No such node, or without power; a rate outside 64 kbit/s to 100 Gbit/s; the limit does not
    /// show on a cable.
    pub fn slow(&self, node: NodeName, rate: u64) -> Result<(), LabError> {
        if !(RATE_MIN..=RATE_MAX).contains(&rate) {
            return Err(LabError::usage(
                format!("a cable cannot have {rate} bits per second here"),
                "give 64k to 100G: --rate 10M",
            ));
        }
        let _lock = self.lock()?;
        let mut state = self.up_state()?;
        self.node_with_power(&state, node)?;
        state.faults.slow.insert(node, rate);
        self.save(&state)?;
        self.apply_rate(node, Some(rate))?;
        for wire in Wire::ALL {
            let port = wire.port(&node);
            let shown = self.run_in(&self.world_net(), "tc", &["qdisc", "show", "dev", &port])?;
            if !shown.contains("qdisc tbf") {
                return Err(LabError::failed(
                    format!("the cable {port} has no limit: {}", shown.trim()),
                    "see whether this kernel has the token bucket filter (sch_tbf)",
                ));
            }
        }
        Ok(())
    }

    /// Changes the faults and tries the ways that are concerned.
    fn change(
        &self,
        ways: &[Way],
        change: impl FnOnce(&mut Faults),
    ) -> Result<FaultReport, LabError> {
        let _lock = self.lock()?;
        let mut state = self.up_state()?;
        for (from, to, _) in ways {
            state.node(*from)?;
            state.node(*to)?;
        }
        change(&mut state.faults);
        self.save(&state)?;
        self.apply_rules(&state.faults)?;
        let has_power = |node: &NodeName| state.nodes.get(node).is_some_and(|it| it.on);
        let can_try = |way: &&Way| has_power(&way.0) && has_power(&way.1);
        let ways_on: Vec<Way> = ways.iter().filter(can_try).copied().collect();
        let concerned: BTreeSet<_> = ways.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        let seen = self.try_ways(&state, &ways_on)?;
        let checked = seen.into_iter().map(|seen| Checked {
            seen,
            wanted: state.faults.lets_pass(seen.from, seen.to, seen.wire),
        });
        let report = FaultReport {
            checked: checked.collect(),
            without_power: concerned.into_iter().filter(|node| !has_power(node)).collect(),
        };
        as_wanted(&report)?;
        Ok(report)
    }

    /// A node that must have power.
    pub(crate) fn node_with_power(&self, state: &LabState, node: NodeName) -> Result<(), LabError> {
        if state.node(node)?.on {
            return Ok(());
        }
        Err(LabError::conflict(
            format!("{node} has no power"),
            format!("give it some: muster lab power-on {node}"),
        ))
    }
}

fn as_wanted(report: &FaultReport) -> Result<(), LabError> {
    let Some(wrong) = report.checked.iter().find(|one| one.seen.passes != one.wanted) else {
        return Ok(());
    };
    let Probe { from, to, wire, passes } = wrong.seen;
    let what = if passes { "still pass" } else { "do not pass" };
    Err(LabError::failed(
        format!("packets from {from} to {to} on {wire} {what}"),
        "see all ways with 'muster lab probe'; 'muster lab mend --all' ends all faults",
    ))
}

fn different(a: NodeName, b: NodeName) -> Result<(), LabError> {
    if a != b {
        return Ok(());
    }
    Err(LabError::usage(
        format!("{a} cannot be cut off from itself"),
        format!("name two nodes, or cut it off from all: muster lab isolate {a}"),
    ))
}

fn both_ways(a: NodeName, b: NodeName, wires: &[Wire]) -> Vec<Way> {
    wires.iter().flat_map(|wire| [(a, b, *wire), (b, a, *wire)]).collect()
}

#[cfg(test)]
mod tests {
    use super::Faults;
    use crate::names::NodeName;
    use crate::names::Wire;

    #[test]
    fn which_ways_are_open() {
        let [a, b, c] = [1, 2, 3].map(NodeName::of);
        let mut faults = Faults::default();
        faults.cuts.insert((Wire::Cluster.port(&a), Wire::Cluster.port(&b)));
        assert!(!faults.lets_pass(a, b, Wire::Cluster));
        assert!(faults.lets_pass(b, a, Wire::Cluster));
        assert!(faults.lets_pass(a, b, Wire::Mgmt));
        faults.deaf.insert(c);
        assert!(!faults.lets_pass(a, c, Wire::Vm));
        assert!(faults.lets_pass(c, a, Wire::Vm));
        faults.mend_node(b);
        assert!(faults.lets_pass(a, b, Wire::Cluster));
        faults.mend_node(c);
        assert_eq!(faults, Faults::default());
    }
}
