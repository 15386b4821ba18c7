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
    /// What is on the medium, then what the cache took since.
    unflushed: Vec<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Lun {
    cells: Vec<Cell>,
    /// The key of each node's path.
    pub(crate) keys: BTreeMap<usize, ReservationKey>,
    pub(crate) tables: Rc<Tables>,
    pub(crate) lies: bool,
}

impl Lun {
    pub(crate) fn new(tables: Tables) -> Self {
        let cell = |block| Cell { now: secret(block), unflushed: vec![secret(block)] };
        let cells = (0..SIZE).map(cell).collect();
        Self { cells, keys: BTreeMap::new(), tables: Rc::new(tables), lies: false }
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
                        cell.unflushed.push(*value);
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
            cell.unflushed = vec![cell.now];
        }
    }

    /// Power goes: of what was not flushed, each block has something, by lot.
    pub(crate) fn power_loss(&mut self, rng: &mut Rng) {
        for cell in &mut self.cells {
            cell.now = rng.pick(&cell.unflushed).unwrap_or(cell.now);
            cell.unflushed = vec![cell.now];
        }
    }
}
