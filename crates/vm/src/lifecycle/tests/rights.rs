//! The right to write one machine's images, as a volume gives it to one node at a time; every breach of
//! invariant 39 is noted.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use model::NodeId;
use model::VmRecord;

use super::Truth;
use super::VM;
use super::lock;
use super::probe::Gate;
use crate::lifecycle::Images;
use crate::lifecycle::WriteRights;

/// The volume, which outlives daemons.
pub(super) struct Desk {
    truth: Arc<Truth>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    writer: Option<NodeId>,
    held: BTreeSet<NodeId>,
    /// Nodes that cannot give it up now.
    broken: BTreeSet<NodeId>,
    breaches: Vec<String>,
    handed: usize,
}

impl Desk {
    pub(super) fn new(truth: Arc<Truth>) -> Arc<Self> {
        Arc::new(Self { truth, known: Mutex::default() })
    }

    /// A guest goes on, and so writes.
    pub(super) fn goes_on(&self, node: NodeId) {
        let mut known = lock(&self.known);
        if known.held.contains(&node) {
            known.breaches.push(format!("{node} writes what it holds back"));
        }
        if known.writer.is_some_and(|writer| writer != node) {
            let text = format!("{node} writes beside {:?}", known.writer);
            known.breaches.push(text);
        }
        if known.writer != Some(node) {
            known.handed += 1;
        }
        known.writer = Some(node);
    }

    /// No process of the machine is left there: its files are closed.
    pub(super) fn ended(&self, node: NodeId) {
        let mut known = lock(&self.known);
        known.held.remove(&node);
        known.writer = known.writer.filter(|writer| *writer != node);
    }

    pub(super) fn set_broken(&self, node: NodeId, broken: bool) {
        let mut known = lock(&self.known);
        match broken {
            true => known.broken.insert(node),
            false => known.broken.remove(&node),
        };
    }

    pub(super) fn breaches(&self) -> Vec<String> {
        lock(&self.known).breaches.clone()
    }

    /// How often another node than before has written.
    pub(super) fn handed(&self) -> usize {
        lock(&self.known).handed
    }
}

/// One node's way to it.
pub(super) struct DeskOf {
    pub(super) node: NodeId,
    pub(super) desk: Arc<Desk>,
    pub(super) gate: Arc<Gate>,
}

#[async_trait]
impl WriteRights for DeskOf {
    async fn find(&self, vm: &VmRecord, files: Vec<PathBuf>) -> std::io::Result<Images> {
        Ok(Images { volume: vm.volume, files: (1..).take(files.len()).collect() })
    }

    async fn hold(&self, images: &Images) -> Result<(), String> {
        assert!(!images.is_empty());
        self.gate.pass("hold").await;
        let broken = {
            let mut known = lock(&self.desk.known);
            let broken = known.broken.contains(&self.node);
            if !broken {
                known.held.insert(self.node);
                known.writer = known.writer.filter(|writer| *writer != self.node);
            }
            broken
        };
        self.gate.pass("hold").await;
        if broken { Err("the disk does not answer".to_owned()) } else { Ok(()) }
    }

    async fn free(&self, images: &Images) -> Result<(), String> {
        assert!(!images.is_empty());
        self.gate.pass("free").await;
        {
            let owner = self.desk.truth.get().vms.get(&VM).map(|vm| vm.owner);
            let mut known = lock(&self.desk.known);
            if owner != Some(self.node) {
                known.breaches.push(format!("{} frees what is {owner:?}'s", self.node));
            }
            known.held.remove(&self.node);
        }
        self.gate.pass("free").await;
        Ok(())
    }
}
