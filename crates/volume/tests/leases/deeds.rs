//! The coordinator's file system at work: each deed is a row of commands at the LUN, and a commit.

use std::collections::BTreeMap;
use std::rc::Rc;

use volume::lease::Coordinator;
use volume::lease::Deed;
use volume::lease::DeedOutcome;
use volume::lease::Epoch;
use volume::lease::FileId;
use volume::lease::Payload;
use volume::lease::Span;

use crate::fs::Fresh;
use crate::fs::Fs;
use crate::fs::Tables;
use crate::host::pack;
use crate::host::unpack;
use crate::lun::Command;
use crate::lun::Reply;
use crate::lun::SIZE;
use crate::plant::Plant;
use crate::world::Audit;
use crate::world::Event;
use crate::world::For;
use crate::world::World;

/// A coordinator that serves.
pub(crate) struct Serving {
    pub(crate) epoch: Epoch,
    pub(crate) machine: Coordinator,
    pub(crate) fs: Fs,
    deeds: BTreeMap<u64, Work>,
    /// Wait for the next commit, with what becomes free by it.
    waiting: Vec<(u64, Vec<u64>)>,
    committing: Option<Vec<(u64, Vec<u64>)>>,
}

struct Work {
    deed: Deed,
    step: Step,
}

enum Step {
    /// Shared blocks are being read.
    Copying(Vec<Fresh>),
    /// Fresh blocks are being written.
    Filling(Vec<Fresh>),
    Committing,
    /// The data itself.
    Last,
}

impl Serving {
    pub(crate) fn new(epoch: Epoch, machine: Coordinator, tables: &Tables) -> Self {
        Self {
            epoch,
            machine,
            fs: Fs::mount(tables, SIZE),
            deeds: BTreeMap::new(),
            waiting: Vec::new(),
            committing: None,
        }
    }
}

const fn target(deed: &Deed) -> Option<(FileId, Span)> {
    match deed {
        Deed::Prepare { file, ahead: span, .. } | Deed::Write { file, span, .. } => {
            Some((*file, *span))
        }
        _ => None,
    }
}

impl World {
    fn serving(&mut self, node: usize) -> &mut Serving {
        self.nodes[node].coordinator.as_mut().expect("a deed of a coordinator")
    }

    fn did(&mut self, node: usize, id: u64, outcome: DeedOutcome) {
        let boot = self.nodes[node].boot;
        let serving = self.serving(node);
        serving.deeds.remove(&id);
        let epoch = serving.epoch;
        self.at(1, Event::Did { node, boot, epoch, id, outcome });
    }

    fn order(&mut self, node: usize, id: u64, command: Command) {
        let epoch = self.serving(node).epoch;
        self.command(node, For::Deed(epoch, id), command, Audit::Own { epoch });
    }

    pub(crate) fn deed(&mut self, node: usize, id: u64, deed: Deed) {
        let plant = self.plant;
        let serving = self.serving(node);
        serving.deeds.insert(id, Work { deed: deed.clone(), step: Step::Last });
        let file = match &deed {
            Deed::Flush => return self.order(node, id, Command::Flush),
            Deed::Inspect { file }
            | Deed::SetWriter { file, .. }
            | Deed::Prepare { file, .. }
            | Deed::Map { file, .. }
            | Deed::Read { file, .. }
            | Deed::Write { file, .. }
            | Deed::Truncate { file, .. }
            | Deed::Punch { file, .. }
            | Deed::Clone { file, .. }
            | Deed::Delete { file } => *file,
        };
        let Some(inode) = serving.fs.tables.files.get_mut(&file) else {
            return self.did(node, id, DeedOutcome::NoSuchFile);
        };
        match deed {
            Deed::Inspect { .. } => {
                let known = plant != Some(Plant::ForgetWriter);
                let writer = inode.writer.filter(|_| known);
                let outcome = DeedOutcome::File { blocks: inode.blocks, writer };
                self.did(node, id, outcome);
            }
            Deed::Map { span, .. } => {
                let extents = serving.fs.tables.leasable(file, span, plant);
                self.did(node, id, DeedOutcome::Extents(extents));
            }
            Deed::Read { span, .. } => {
                let places = inode.map.range(span.start..span.end());
                let blocks = places.filter(|(_, it)| it.written).map(|(_, it)| it.device);
                let blocks = blocks.collect();
                self.order(node, id, Command::Read(blocks));
            }
            Deed::Prepare { ahead: span, .. } | Deed::Write { span, .. } => {
                self.prepare(node, id, file, span);
            }
            Deed::SetWriter { writer, .. } => {
                inode.writer = writer;
                self.commit(node, id, Vec::new());
            }
            Deed::Truncate { blocks, .. } => {
                let before = inode.blocks;
                inode.blocks = blocks;
                let freed = serving.fs.cut(file, Span::from(blocks));
                // Half of what grows is allocated without being written, as by fallocate.
                serving.fs.preallocate(file, Span::new(before, blocks.saturating_sub(before) / 2));
                self.commit(node, id, freed);
            }
            Deed::Punch { span, .. } => {
                let freed = serving.fs.cut(file, span);
                self.commit(node, id, freed);
            }
            Deed::Clone { to, .. } => {
                let mut copy = inode.clone();
                copy.writer = None;
                // What is allocated only is not shared.
                copy.map.retain(|_, place| place.written);
                serving.fs.tables.files.entry(to).or_insert(copy);
                self.commit(node, id, Vec::new());
            }
            Deed::Delete { .. } => {
                let freed = serving.fs.cut(file, Span::from(0));
                serving.fs.tables.files.remove(&file);
                self.commit(node, id, freed);
            }
            Deed::Flush => {}
        }
    }

    fn prepare(&mut self, node: usize, id: u64, file: FileId, span: Span) {
        if self.plant == Some(Plant::LeaseUnwritten)
            && matches!(self.serving(node).deeds[&id].deed, Deed::Prepare { .. })
        {
            self.serving(node).fs.preallocate(file, span);
            return self.commit(node, id, Vec::new());
        }
        let Some(fresh) = self.serving(node).fs.prepare(file, span) else {
            return self.did(node, id, DeedOutcome::Full);
        };
        if fresh.is_empty() {
            // What is not shared any more in memory may be shared on the LUN yet: written in place, it
            // would be another file's after a crash.
            let serving = self.serving(node);
            if serving.committing.is_some() || !serving.waiting.is_empty() {
                return self.commit(node, id, Vec::new());
            }
            return self.prepared(node, id);
        }
        let taken: Vec<u64> = fresh.iter().map(|it| it.device).collect();
        self.audit_free(node, &taken);
        let sources: Vec<u64> = fresh.iter().filter_map(|it| it.from).collect();
        if sources.is_empty() {
            return self.fill(node, id, fresh, &[]);
        }
        if let Some(work) = self.serving(node).deeds.get_mut(&id) {
            work.step = Step::Copying(fresh);
        }
        self.order(node, id, Command::Read(sources));
    }

    fn fill(&mut self, node: usize, id: u64, fresh: Vec<Fresh>, copies: &[u64]) {
        let mut copies = copies.iter();
        let value = |it: &Fresh, copies: &mut std::slice::Iter<u64>| match it.from {
            Some(_) => copies.next().copied().unwrap_or(0),
            None => 0,
        };
        let blocks = fresh.iter().map(|it| (it.device, value(it, &mut copies))).collect();
        if let Some(work) = self.serving(node).deeds.get_mut(&id) {
            work.step = Step::Filling(fresh);
        }
        self.order(node, id, Command::Write(blocks));
    }

    /// The blocks are there: what the deed wanted them for.
    fn prepared(&mut self, node: usize, id: u64) {
        let plant = self.plant;
        let serving = self.serving(node);
        let Some(work) = serving.deeds.get_mut(&id) else { return };
        work.step = Step::Last;
        match work.deed.clone() {
            Deed::Write { file, span, data } => {
                let map = &serving.fs.tables.files[&file].map;
                let places = (span.start..span.end()).map(|block| map[&block].device);
                let blocks = places.zip(unpack(&data)).collect();
                self.order(node, id, Command::Write(blocks));
            }
            Deed::Prepare { file, ahead: span, .. } => {
                let extents = serving.fs.tables.leasable(file, span, plant);
                self.did(node, id, DeedOutcome::Extents(extents));
            }
            _ => self.did(node, id, DeedOutcome::Done),
        }
    }

    /// A command of a deed has worked.
    pub(crate) fn deed_went_on(&mut self, node: usize, id: u64, reply: &Reply) {
        let serving = self.serving(node);
        let Some(work) = serving.deeds.get_mut(&id) else { return };
        let step = std::mem::replace(&mut work.step, Step::Last);
        let deed = work.deed.clone();
        match (step, reply) {
            (Step::Copying(fresh), Reply::Data(copies)) => self.fill(node, id, fresh, copies),
            (Step::Filling(fresh), _) => {
                let Some((file, span)) = target(&deed) else { return };
                let freed = serving.fs.settle(file, span, &fresh);
                self.commit(node, id, freed);
            }
            (_, Reply::Data(values)) => {
                let outcome = DeedOutcome::Data(self.gather(node, &deed, values));
                self.did(node, id, outcome);
            }
            _ => self.did(node, id, DeedOutcome::Done),
        }
    }

    fn gather(&mut self, node: usize, deed: &Deed, values: &[u64]) -> Payload {
        let Deed::Read { file, span } = deed else { return [].into() };
        let map = &self.serving(node).fs.tables.files[file].map;
        let mut values = values.iter();
        let of = |block| match map.get(&block) {
            Some(place) if place.written => values.next().copied().unwrap_or(0),
            _ => 0,
        };
        let all: Vec<u64> = (span.start..span.end()).map(of).collect();
        pack(&all)
    }

    fn commit(&mut self, node: usize, id: u64, freed: Vec<u64>) {
        self.audit_free(node, &freed);
        let early = self.plant == Some(Plant::EarlyDone);
        let serving = self.serving(node);
        if let Some(work) = serving.deeds.get_mut(&id) {
            work.step = Step::Committing;
        }
        serving.waiting.push((id, freed));
        if early {
            self.prepared(node, id);
        }
        self.next_commit(node);
    }

    fn next_commit(&mut self, node: usize) {
        let serving = self.serving(node);
        if serving.committing.is_some() || serving.waiting.is_empty() {
            return;
        }
        serving.committing = Some(std::mem::take(&mut serving.waiting));
        let tables = Rc::new(serving.fs.tables.clone());
        let epoch = serving.epoch;
        let command = Command::Commit(tables);
        self.command(node, For::Commit(epoch), command, Audit::Own { epoch });
    }

    pub(crate) fn committed(&mut self, node: usize) {
        let done = self.serving(node).committing.take().unwrap_or_default();
        for (id, freed) in done {
            self.serving(node).fs.release(freed);
            let work = self.serving(node).deeds.get(&id);
            if work.is_some_and(|work| matches!(work.step, Step::Committing)) {
                self.prepared(node, id);
            }
        }
        self.next_commit(node);
    }
}
