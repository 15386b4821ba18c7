//! (8, 9) Of the witness's records each has the next number, and its vote never goes back. What was
//! answered is in them for ever: (3) and (T1) say so, since without it a committed entry changes.

use std::sync::Arc;

use cluster::witness::Record;

use super::Invariant;
use super::Seen;
use crate::vault::Vault;

pub(super) struct Witness {
    vault: Arc<Vault>,
    looked_at: usize,
    last: Option<Record>,
}

impl Witness {
    pub(super) fn new(vault: Arc<Vault>) -> Self {
        Self { vault, looked_at: 0, last: None }
    }
}

impl Invariant for Witness {
    fn check(&mut self, _seen: &Seen) -> Result<(), String> {
        for bytes in self.vault.since(self.looked_at) {
            self.looked_at += 1;
            let record = Record::read(&bytes).map_err(|error| format!("its record: {error}"))?;
            if let Some(last) = &self.last {
                if record.counter != last.counter + 1 {
                    let (was, is) = (last.counter, record.counter);
                    return Err(format!("its record went from number {was} to {is}"));
                }
                // As openraft orders votes.
                let order = |it: &Record| it.ballot.map(|it| (it.term, it.node, it.committed));
                if order(&record) < order(last) {
                    let (was, is) = (last.ballot, record.ballot);
                    return Err(format!("its vote went from {was:?} to {is:?}"));
                }
            }
            self.last = Some(record);
        }
        Ok(())
    }
}
