//! The LUN: blocks with a volatile cache, and persistent reservations. A command is checked when it
//! comes to the target, and has its effect later; preempt-and-abort takes back what is in between.

use std::collections::BTreeMap;
use std::rc::Rc;

use volume::lease::ReservationKey;

use crate::fs::Tables;
use crate::rng::Rng;

/// Blocks of the LUN.
pub(crate) const SIZE: u64 = 400;

/// What a block holds before anybody writes it: another tenant's secret.
pub(crate) const fn secret(block: u64) -> u64 {
    (1 << 63) | block
}

#[derive(Debug, Clone)]
pub(crate) enum Command {
    Read(Vec<u64>),
    Write(Vec<(u64, u64)>),
    Flush,
    Register(ReservationKey),
    Unregister,
    ReadKeys,
    /// Preempts this path's own key, if it has one.
    AbortOwn,
    Preempt(ReservationKey),
    /// Reads the tables of the file system, to mount it.
    Load,
    /// Flushes, then replaces the tables, durably.
    Commit(Rc<Tables>),
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Done,
    Data(Vec<u64>),
    Keys(Vec<ReservationKey>),
    Aborted,
    Tables(Rc<Tables>),
    /// The node has no key, or the path no life.
    Failed,
}

#[derive(Debug, Clone)]
struct Cell {
    now: u64,
    /// What is on the medium, then what the cache took since, each with the path that it came by.
    unflushed: Vec<(u64, Option<usize>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Lun {
    cells: Vec<Cell>,
    /// The key of each node's path.
    pub(crate) keys: BTreeMap<usize, ReservationKey>,
    pub(crate) tables: Rc<Tables>,
    pub(crate) lies: bool,
    /// How often each path was told that the cache may be gone.
    losses: BTreeMap<usize, u64>,
    /// It does not tell.
    pub(crate) silent: bool,
}

impl Command {
    /// Reads or writes blocks, or makes them durable.
    pub(crate) const fn is_of_blocks(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Write(_) | Self::Flush | Self::Commit(_) | Self::Load)
    }
}

impl Lun {
    pub(crate) fn new(tables: Tables) -> Self {
        let cell = |block| Cell { now: secret(block), unflushed: vec![(secret(block), None)] };
        let cells = (0..SIZE).map(cell).collect();
        Self {
            cells,
            keys: BTreeMap::new(),
            tables: Rc::new(tables),
            lies: false,
            losses: BTreeMap::new(),
            silent: false,
        }
    }

    fn cell(&mut self, block: u64) -> Option<&mut Cell> {
        usize::try_from(block).ok().and_then(|block| self.cells.get_mut(block))
    }

    pub(crate) fn value(&self, block: u64) -> u64 {
        usize::try_from(block).ok().and_then(|it| self.cells.get(it)).map_or(0, |cell| cell.now)
    }

    /// Whether a command of that node is let in.
    pub(crate) fn admits(&self, node: usize, command: &Command) -> bool {
        match command {
            Command::Register(_) | Command::Unregister | Command::ReadKeys | Command::AbortOwn => {
                true
            }
            _ => self.keys.contains_key(&node),
        }
    }

    /// The effect of a command that was let in. For a preempt: whose key went.
    pub(crate) fn perform(&mut self, node: usize, command: &Command) -> (Reply, Option<usize>) {
        let reply = match command {
            Command::Read(blocks) => {
                Reply::Data(blocks.iter().map(|block| self.value(*block)).collect())
            }
            Command::Write(blocks) => {
                for (block, value) in blocks {
                    if let Some(cell) = self.cell(*block) {
                        cell.now = *value;
                        cell.unflushed.push((*value, Some(node)));
                    }
                }
                Reply::Done
            }
            Command::Flush => {
                self.flush();
                Reply::Done
            }
            Command::Register(key) => {
                self.keys.insert(node, *key);
                Reply::Done
            }
            Command::Unregister => {
                self.keys.remove(&node);
                Reply::Done
            }
            Command::ReadKeys => Reply::Keys(self.keys.values().copied().collect()),
            Command::Preempt(key) => {
                let victim = self.keys.iter().find(|(_, it)| *it == key).map(|(node, _)| *node);
                victim.map(|node| self.keys.remove(&node));
                return (Reply::Done, victim);
            }
            Command::AbortOwn => {
                let had = self.keys.remove(&node).map(|_| node);
                return (Reply::Aborted, had);
            }
            Command::Load => Reply::Tables(self.tables.clone()),
            Command::Commit(tables) => {
                self.flush();
                self.tables = tables.clone();
                Reply::Done
            }
        };
        (reply, None)
    }

    fn flush(&mut self) {
        if self.lies {
            return;
        }
        for cell in &mut self.cells {
            cell.unflushed = vec![(cell.now, None)];
        }
    }

    /// Power goes: of what was not flushed, each block has something, by lot.
    pub(crate) fn power_loss(&mut self, rng: &mut Rng) {
        for cell in &mut self.cells {
            cell.now = rng.pick(&cell.unflushed).map_or(cell.now, |it| it.0);
            cell.unflushed = vec![(cell.now, None)];
        }
    }

    pub(crate) fn losses(&self, node: usize) -> u64 {
        self.losses.get(&node).copied().unwrap_or(0)
    }

    /// The cache goes, or what came to it by one path (with that path's controller), while the hosts
    /// live. The paths are told.
    pub(crate) fn cache_loss(&mut self, by: Option<usize>, nodes: usize, rng: &mut Rng) {
        for cell in &mut self.cells {
            match by {
                None => {
                    cell.now = rng.pick(&cell.unflushed).map_or(cell.now, |it| it.0);
                    cell.unflushed = vec![(cell.now, None)];
                }
                Some(_) => {
                    cell.unflushed.retain(|it| it.1.is_none() || it.1 != by || rng.permille(300));
                    cell.now = cell.unflushed.last().map_or(cell.now, |it| it.0);
                }
            }
        }
        if !self.silent {
            let told = (0..nodes).filter(|node| by.is_none_or(|it| it == *node));
            told.for_each(|node| *self.losses.entry(node).or_default() += 1);
        }
    }
}
