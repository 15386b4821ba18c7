//! Where what is on the device, and its forms. See the head comment of [`super`].
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::super::record::RECORD_BYTES_MAX;
use super::super::store::StoreError;
use super::medium::BLOCK_BYTES;
use super::medium::Medium;

/// Nodes that can use one device in the life of a witness: the largest cluster.
pub const SLOTS: u16 = 64;

/// Areas of a slot: for the value it has decided, the one it has accepted, and the next one.
pub(super) const AREAS: u64 = 3;

const BLOCK: u64 = BLOCK_BYTES as u64;

const MAGIC: &[u8; 8] = b"MUSTWBK1";
const HEAD_BYTES: usize = 16;

const TABLE_AT: u64 = 64 << 10;
const TRIAL_TABLE_AT: u64 = 1 << 20;
const TRIAL_VALUES_AT: u64 = 3 << 20;
const VALUES_AT: u64 = 8 << 20;

const TABLE_BYTES: u64 = SLOTS as u64 * 2 * BLOCK;

/// Trials of one node at the same time.
pub(super) const TRIALS: u8 = 4;

/// Smallest device: values may have 1.3 MiB then, more than what a pair of nodes needs for minutes.
const DEVICE_BYTES_MIN: u64 = 256 << 20;

/// What is looked at, at both ends, before a device is taken for empty: all known file systems,
/// partition tables and volume managers leave their marks there.
const LOOK_BYTES: usize = 1 << 20;

/// Which records: the witness's, or those of trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Region {
    Main,
    /// Below [`TRIALS`].
    Trial(u8),
}

/// The first block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Of the record.
    pub(super) name: String,
    /// Largest value.
    pub(super) area_bytes: u64,
}

/// A value on the device, in an area of the slot that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Value {
    /// Tells it from all others.
    pub(super) nonce: Uuid,
    pub(super) area: u64,
    pub(super) bytes: u64,
    pub(super) crc: u32,
    /// The record was removed: no value.
    pub(super) gone: bool,
}

/// What the node of a slot has said last. Always: `instance <= decided + 1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Of the record; one of another name is none.
    pub(super) name: String,
    /// Counts the writes of this slot.
    pub(super) seq: u64,
    /// The version that this node wants to make, or made last.
    pub(super) instance: u64,
    /// Its ballot there.
    pub(super) promised: u64,
    /// What it has accepted there, and under which ballot.
    pub(super) accepted: Option<(u64, Value)>,
    /// The newest version that it knows to be decided; 0 for none.
    pub(super) decided: u64,
    /// That version's value.
    pub(super) value: Option<Value>,
}

impl Slot {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            seq: 0,
            instance: 0,
            promised: 0,
            accepted: None,
            decided: 0,
            value: None,
        }
    }
}

fn seal(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let content = serde_json::to_vec(value).map_err(|error| bad(&error.to_string()))?;
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut block = MAGIC.to_vec();
    block.extend(crc32c::crc32c_append(crc32c::crc32c(&length), &content).to_le_bytes());
    block.extend(length);
    block.extend(content);
    // Names are short and numbers have a limit.
    assert!(block.len() <= BLOCK_BYTES, "a block of the witness has {} bytes", block.len());
    Ok(block)
}

fn unseal<T: DeserializeOwned>(block: &[u8]) -> Option<T> {
    let head = block.get(..HEAD_BYTES)?;
    let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(number(12)?).ok()?;
    let content = block.get(HEAD_BYTES..HEAD_BYTES.checked_add(length)?)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[12..16]), content);
    if !head.starts_with(MAGIC) || number(8)? != crc {
        return None;
    }
    serde_json::from_slice(content).ok()
}

fn bad(what: &str) -> StoreError {
    StoreError::Refused(what.to_owned())
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

impl Header {
    /// For a device of that size.
    pub(super) fn for_device(name: &str, bytes: u64) -> Result<Self, StoreError> {
        if bytes < DEVICE_BYTES_MIN {
            return Err(bad(&format!(
                "the device has {} MiB, a witness needs {} (better 1 GiB)",
                bytes >> 20,
                DEVICE_BYTES_MIN >> 20
            )));
        }
        if name.is_empty() || name.len() > 100 {
            return Err(bad("the name of a record has 1 to 100 characters"));
        }
        let area = (bytes - VALUES_AT) / (u64::from(SLOTS) * AREAS);
        let area_bytes = area.min(RECORD_BYTES_MAX as u64) / BLOCK * BLOCK;
        Ok(Self { name: name.to_owned(), area_bytes })
    }

    /// The header on a device, if there is one that holds.
    pub(super) fn find(medium: &dyn Medium) -> Result<Option<Self>, StoreError> {
        let both = medium.read(0, 2 * BLOCK_BYTES)?;
        Ok(both.chunks(BLOCK_BYTES).find_map(unseal))
    }

    pub(super) fn write(&self, medium: &dyn Medium) -> Result<(), StoreError> {
        let block = seal(self)?;
        medium.write(0, &block)?;
        medium.write(BLOCK, &block)
    }

    /// Where an area is, and its size.
    pub(super) fn area(&self, region: Region, slot: u16, area: u64) -> (u64, u64) {
        let number = u64::from(slot) * AREAS + area;
        match region {
            Region::Main => (VALUES_AT + number * self.area_bytes, self.area_bytes),
            Region::Trial(trial) => {
                let before = u64::from(trial) * u64::from(SLOTS) * AREAS;
                (TRIAL_VALUES_AT + (before + number) * BLOCK, BLOCK)
            }
        }
    }
}

fn table_at(region: Region) -> u64 {
    match region {
        Region::Main => TABLE_AT,
        Region::Trial(trial) => TRIAL_TABLE_AT + u64::from(trial) * TABLE_BYTES,
    }
}

/// Refuses a device on which anything is.
pub(super) fn check_blank(medium: &dyn Medium, bytes: u64) -> Result<(), StoreError> {
    for at in [0, (bytes - LOOK_BYTES as u64) / BLOCK * BLOCK] {
        let length = LOOK_BYTES.min(usize::try_from(bytes - at).unwrap_or(LOOK_BYTES));
        if !is_blank(&medium.read(at, length)?) {
            return Err(bad(
                "the device holds something (a file system, a partition table, or other data); if \
                 it is not needed, wipe the first and last MiB of the device, then set it again",
            ));
        }
    }
    Ok(())
}

/// Empties all slots.
pub(super) fn clear(medium: &dyn Medium) -> Result<(), StoreError> {
    let table = vec![0; usize::from(SLOTS) * 2 * BLOCK_BYTES];
    // The header first: without one nobody takes what is half empty for a record.
    medium.write(0, &vec![0; 2 * BLOCK_BYTES])?;
    medium.write(TABLE_AT, &table)?;
    (0..TRIALS).try_for_each(|trial| medium.write(table_at(Region::Trial(trial)), &table))
}

/// All slots; nothing for those that were never used under this name.
pub(super) fn read_slots(
    medium: &dyn Medium,
    region: Region,
    name: &str,
) -> Result<Vec<Option<Slot>>, StoreError> {
    let table = medium.read(table_at(region), usize::from(SLOTS) * 2 * BLOCK_BYTES)?;
    let pairs = table.chunks(2 * BLOCK_BYTES).enumerate();
    pairs
        .map(|(number, pair)| {
            let copies: Vec<Slot> = pair.chunks(BLOCK_BYTES).filter_map(unseal).collect();
            let newest = copies.into_iter().max_by_key(|slot| slot.seq);
            match newest {
                Some(slot) => Ok((slot.name == name).then_some(slot)),
                // The very first write of it may be torn: nothing was promised before.
                None if pair.chunks(BLOCK_BYTES).any(is_blank) => Ok(None),
                None => Err(bad(&format!(
                    "slot {number} is damaged; remove the witness and set it anew"
                ))),
            }
        })
        .collect()
}

/// Writes a slot, copy after copy.
pub(super) fn write_slot(
    medium: &dyn Medium,
    region: Region,
    number: u16,
    slot: &Slot,
) -> Result<(), StoreError> {
    let block = seal(slot)?;
    let at = table_at(region) + u64::from(number) * 2 * BLOCK;
    medium.write(at, &block)?;
    medium.write(at + BLOCK, &block)
}

/// The count of the last write to a slot, whatever its record was.
pub(super) fn last_seq(
    medium: &dyn Medium,
    region: Region,
    number: u16,
) -> Result<u64, StoreError> {
    let at = table_at(region) + u64::from(number) * 2 * BLOCK;
    let pair = medium.read(at, 2 * BLOCK_BYTES)?;
    let copies = pair.chunks(BLOCK_BYTES).filter_map(unseal::<Slot>);
    Ok(copies.map(|slot| slot.seq).max().unwrap_or(0))
}
