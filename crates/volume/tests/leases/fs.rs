//! A file system in memory: maps of blocks, a journal that commits all of it at once, and the most
//! harmful allocator: what was freed last is used first.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use model::NodeId;
use volume::lease::Extent;
use volume::lease::FileId;
use volume::lease::OpenId;
use volume::lease::Span;

use crate::plant::Plant;

/// Where a block of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) device: u64,
    /// Allocated only: the LUN holds what was there before.
    pub(crate) written: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Inode {
    pub(crate) blocks: u64,
    pub(crate) map: BTreeMap<u64, Place>,
    pub(crate) writer: Option<(NodeId, OpenId)>,
}

/// What a commit makes durable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) files: BTreeMap<FileId, Inode>,
}

/// As mounted.
#[derive(Debug, Clone)]
pub(crate) struct Fs {
    pub(crate) tables: Tables,
    /// The last one is used first.
    free: Vec<u64>,
}

/// Blocks that a file is to get: where in the file, where on the LUN, and what of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    pub(crate) block: u64,
    pub(crate) device: u64,
    /// A shared block whose content goes with it.
    pub(crate) from: Option<u64>,
}

impl Fs {
    /// Mounts: what no file has is free.
    pub(crate) fn mount(tables: &Tables, size: u64) -> Self {
        let used: BTreeSet<u64> = tables.used().collect();
        let free = (0..size).filter(|block| !used.contains(block)).collect();
        Self { tables: tables.clone(), free }
    }

    /// Takes what a range lacks; `None` if the LUN is full.
    pub(crate) fn prepare(&mut self, file: FileId, span: Span) -> Option<Vec<Fresh>> {
        let inode = self.tables.files.get(&file)?.clone();
        let mut fresh = Vec::new();
        for block in span.start..span.end() {
            let from = match inode.map.get(&block) {
                Some(place) if !place.written => {
                    fresh.push(Fresh { block, device: place.device, from: None });
                    continue;
                }
                Some(place) if self.tables.is_shared(place.device) => Some(place.device),
                Some(_) => continue,
                None => None,
            };
            let Some(device) = self.free.pop() else {
                let taken = fresh.iter().filter(|it: &&Fresh| !inode.map.contains_key(&it.block));
                self.free.extend(taken.map(|it| it.device));
                return None;
            };
            fresh.push(Fresh { block, device, from });
        }
        Some(fresh)
    }

    /// The content of these is on the LUN: they are the file's. Says what that leaves without owner.
    pub(crate) fn settle(&mut self, file: FileId, span: Span, fresh: &[Fresh]) -> Vec<u64> {
        let Some(inode) = self.tables.files.get_mut(&file) else { return Vec::new() };
        inode.blocks = inode.blocks.max(span.end());
        let mut old = Vec::new();
        for it in fresh {
            inode.map.insert(it.block, Place { device: it.device, written: true });
            old.extend(it.from);
        }
        old.retain(|device| !self.tables.used().any(|used| used == *device));
        old
    }

    pub(crate) fn release(&mut self, blocks: Vec<u64>) {
        self.free.extend(blocks);
    }

    /// Takes blocks out of a file; says which have no owner then.
    pub(crate) fn cut(&mut self, file: FileId, span: Span) -> Vec<u64> {
        let Some(inode) = self.tables.files.get_mut(&file) else { return Vec::new() };
        let gone: Vec<u64> = inode
            .map
            .iter()
            .filter(|(at, _)| span.contains(**at))
            .map(|(_, it)| it.device)
            .collect();
        inode.map.retain(|at, _| !span.contains(*at));
        let used: BTreeSet<u64> = self.tables.used().collect();
        gone.into_iter().filter(|device| !used.contains(device)).collect()
    }

    /// Allocates without writing, as fallocate does.
    pub(crate) fn preallocate(&mut self, file: FileId, span: Span) {
        let Some(inode) = self.tables.files.get_mut(&file) else { return };
        for block in span.start..span.end() {
            if !inode.map.contains_key(&block)
                && let Some(device) = self.free.pop()
            {
                inode.map.insert(block, Place { device, written: false });
            }
        }
    }
}

impl Tables {
    pub(crate) fn used(&self) -> impl Iterator<Item = u64> {
        self.files.values().flat_map(|inode| inode.map.values().map(|place| place.device))
    }

    fn is_shared(&self, device: u64) -> bool {
        self.used().filter(|used| *used == device).count() > 1
    }

    /// What may be leased.
    pub(crate) fn leasable(&self, file: FileId, span: Span, plant: Option<Plant>) -> Vec<Extent> {
        let Some(inode) = self.files.get(&file) else { return Vec::new() };
        let mut extents: Vec<Extent> = Vec::new();
        for (at, place) in inode.map.range(span.start..span.end()) {
            let unwritten = !place.written && plant != Some(Plant::LeaseUnwritten);
            let shared = plant != Some(Plant::LeaseShared) && self.is_shared(place.device);
            if unwritten || shared {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.span.end() == *at && last.on_device().end() == place.device => {
                    last.span.count += 1;
                }
                _ => extents.push(Extent { span: Span::new(*at, 1), device: place.device }),
            }
        }
        extents
    }
}
