//! The state on disk: a log of commands, a snapshot now and then, and the events that followed.
//!
//! ```text
//!   state.redb
//!     meta      "format" -> u32     version of this layout
//!               "snapshot_index" -> u64    the entry that the snapshot in force includes
//!               "snapshot_parts" -> u32    how many parts it has
//!     snapshots (index, part) -> a part of a record: the state after entry `index`
//!     log       index -> record: a proposal         entries after the snapshot
//!     events    seq -> record: an event             the last EVENTS_KEPT
//!
//!   record = version (1 byte) | CRC-32C of the rest (4 bytes, little endian) | JSON
//! ```
//!
//! | format | change |
//! | --- | --- |
//! | 1 | first; the snapshot is one record in meta, "snapshot" |
//! | 2 | the snapshot stands in parts, and is in force once "snapshot_index" names it |
//!
//! A snapshot of thousands of VMs is megabytes. It is written part by part, each a small commit of
//! its own, so that appends go on in between; what it makes superfluous is dropped afterwards in
//! the same way. What a snapshot that was cut off has left is dropped with the next one.
//!
//! JSON, because a field can come or go between versions without breaking what is stored
//! (docs/decisions/0003). Each append is one transaction: entries and events together, durable when
//! it returns (redb calls fsync). A record whose checksum does not hold is never used: opening
//! fails and names it. A failed write or fsync ends the process (DESIGN.md section 4, rule 5): what
//! the disk holds then is unknown, and only a fresh start reads it honestly.

use std::path::Path;
use std::path::PathBuf;

use model::ClusterState;
use model::Event;
use model::Proposal;
use redb::Database;
use redb::ReadableDatabase;
use redb::ReadableTable;
use redb::TableDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
pub(super) const SNAPSHOTS: TableDefinition<'_, (u64, u32), &[u8]> =
    TableDefinition::new("snapshots");

/// Version of the layout drawn above.
const FORMAT: u32 = 2;

/// Bytes of a snapshot in one commit: some milliseconds of a slow disk.
const PART_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// Rows dropped in one commit.
const DROP_AT_ONCE: usize = if cfg!(test) { 32 } else { 256 };

/// Version of a record's encoding.
const RECORD_VERSION: u8 = 1;

/// How many events are kept: some days of a busy node.
const EVENTS_KEPT: u64 = 100_000;

/// The largest answer to a question for events.
pub const EVENTS_AT_ONCE_MAX: usize = 1_000;

/// What is wrong with the stored state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database itself cannot be opened or read.
    #[error(
        "the state in {path} cannot be read: {source}; end another daemon that may use it, or \
         restore the file from a backup"
    )]
    Database {
        /// The file.
        path: PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
    /// A record is not what was written.
    #[error(
        "the state in {path} is damaged at {place}: {problem}; restore the file from a backup, or \
         move it away to begin with an empty state (the VMs' own files are not touched)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Table and key.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A newer Muster wrote it.
    #[error("the state in {path} has format {found}; this version reads up to {FORMAT}: upgrade")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// An event with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number.
    pub seq: u64,
    /// What happened.
    pub event: Event,
}

/// The open file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
}

/// What a store held when it was opened.
#[derive(Debug)]
pub struct Loaded {
    /// The state after all entries.
    pub state: ClusterState,
    /// Index of the last entry.
    pub index: u64,
    /// How many entries follow the snapshot.
    pub entries: u64,
    /// Number of the last event.
    pub event_seq: u64,
}

impl Store {
    /// Opens or makes the file and reads the state: the snapshot, then the entries after it.
    ///
    /// # Errors
    /// [`StoreError`]; the file is as it was.
    pub fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        if !path.try_exists().unwrap_or(true) {
            make(path).map_err(|source| StoreError::Database {
                path: path.to_owned(),
                source: Box::new(source),
            })?;
        }
        // redb takes a file's word for much, and panics where that does not fit together.
        match std::panic::catch_unwind(|| Self::open_made(path)) {
            Ok(result) => result,
            Err(_) => Err(StoreError::Damaged {
                path: path.to_owned(),
                place: "the database's own pages".to_owned(),
                problem: "they contradict each other".to_owned(),
            }),
        }
    }

    fn open_made(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let failed = |source: redb::Error| StoreError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let mut database = Database::open(path).map_err(|error| failed(error.into()))?;
        let whole = database.check_integrity().map_err(|error| failed(error.into()))?;
        let store = Self { path: path.to_owned(), database };
        if !whole {
            return Err(store.damaged("the database's own pages", "their checksums do not hold"));
        }
        store.check_format()?;
        let loaded = store.load()?;
        Ok((store, loaded))
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let bytes = self.meta("format")?.unwrap_or_default();
        let found = match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(bytes) => u32::from_le_bytes(bytes),
            Err(_) => return Err(self.damaged("meta/format", "not four bytes")),
        };
        if found > FORMAT {
            return Err(StoreError::TooNew { path: self.path.clone(), found });
        }
        Ok(())
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        let mut index = match self.meta("snapshot_index")? {
            None => 0,
            Some(bytes) => match <[u8; 8]>::try_from(bytes.as_slice()) {
                Ok(bytes) => u64::from_le_bytes(bytes),
                Err(_) => return Err(self.damaged("meta/snapshot_index", "not eight bytes")),
            },
        };
        let mut state = match self.meta("snapshot_parts")? {
            Some(parts) => self.load_snapshot(index, &parts)?,
            // Format 1, or no snapshot yet.
            None => match self.meta("snapshot")? {
                None => ClusterState::default(),
                Some(bytes) => self.decode("meta/snapshot", &bytes)?,
            },
        };
        let mut entries = 0;
        let read = self.database.begin_read().map_err(|error| self.failed(error))?;
        let log = read.open_table(LOG).map_err(|error| self.failed(error))?;
        for entry in log.range(index + 1..).map_err(|error| self.failed(error))? {
            let (key, value) = entry.map_err(|error| self.failed(error))?;
            let place = format!("log/{}", key.value());
            if key.value() != index + 1 {
                return Err(self.damaged(&place, "an entry before it is missing"));
            }
            let proposal: Proposal = self.decode(&place, value.value())?;
            // Only accepted commands are logged, and the state machine is deterministic.
            if let Err(refused) = state.apply(&proposal) {
                return Err(self.damaged(&place, &format!("it is refused: {refused}")));
            }
            index = key.value();
            entries += 1;
        }
        state
            .check_invariants()
            .map_err(|problem| self.damaged("the state as a whole", &problem))?;
        let events = read.open_table(EVENTS).map_err(|error| self.failed(error))?;
        let last = events.last().map_err(|error| self.failed(error))?;
        let event_seq = last.map_or(0, |(key, _)| key.value());
        Ok(Loaded { state, index, entries, event_seq })
    }

    fn load_snapshot(&self, index: u64, parts: &[u8]) -> Result<ClusterState, StoreError> {
        let parts = match <[u8; 4]>::try_from(parts) {
            Ok(bytes) => u32::from_le_bytes(bytes),
            Err(_) => return Err(self.damaged("meta/snapshot_parts", "not four bytes")),
        };
        let place = format!("snapshots/{index}");
        let read = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = read.open_table(SNAPSHOTS).map_err(|error| self.failed(error))?;
        let mut record = Vec::new();
        for part in 0..parts {
            match table.get((index, part)).map_err(|error| self.failed(error))? {
                Some(bytes) => record.extend_from_slice(bytes.value()),
                None => return Err(self.damaged(&place, &format!("part {part} is missing"))),
            }
        }
        self.decode(&place, &record)
    }

    /// Appends entries and events in one durable step.
    ///
    /// # Errors
    /// What redb said. What the disk holds is unknown then: the caller must end the process.
    pub fn append(
        &self,
        first_index: u64,
        proposals: &[Proposal],
        events: &[StoredEvent],
    ) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut log = write.open_table(LOG)?;
            for (index, proposal) in (first_index..).zip(proposals) {
                log.insert(index, encode(proposal).as_slice())?;
            }
            let mut table = write.open_table(EVENTS)?;
            for event in events {
                table.insert(event.seq, encode(&event.event).as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Stores the state after entry `index`, and drops the entries up to it and the oldest events.
    /// Takes its time, in which others may append.
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn snapshot(&self, state: &ClusterState, index: u64) -> Result<(), redb::Error> {
        let record = encode(state);
        let mut parts = 0_u32;
        for part in record.chunks(PART_BYTES) {
            self.in_turn(|write| {
                write.open_table(SNAPSHOTS)?.insert((index, parts), part)?;
                Ok(())
            })?;
            parts += 1;
        }
        self.in_turn(|write| {
            let mut meta = write.open_table(META)?;
            meta.insert("snapshot_index", index.to_le_bytes().as_slice())?;
            meta.insert("snapshot_parts", parts.to_le_bytes().as_slice())?;
            meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
            // Of format 1.
            meta.remove("snapshot")?;
            Ok(())
        })?;
        self.drop_rows(SNAPSHOTS, |(of, _)| of < index)?;
        self.drop_rows(LOG, |entry| entry <= index)?;
        let read = self.database.begin_read()?;
        let last = read.open_table(EVENTS)?.last()?.map_or(0, |(key, _)| key.value());
        drop(read);
        self.drop_rows(EVENTS, |seq| seq < last.saturating_sub(EVENTS_KEPT))
    }

    /// Drops the first rows of a table, up to the first that is not `over`.
    fn drop_rows<K: redb::Key + 'static>(
        &self,
        table: TableDefinition<'_, K, &'static [u8]>,
        over: impl Fn(K::SelfType<'_>) -> bool,
    ) -> Result<(), redb::Error> {
        loop {
            let mut dropped = 0;
            self.in_turn(|write| {
                let mut table = write.open_table(table)?;
                while dropped < DROP_AT_ONCE
                    && table.first()?.is_some_and(|(key, _)| over(key.value()))
                {
                    table.pop_first()?;
                    dropped += 1;
                }
                Ok(())
            })?;
            if dropped < DROP_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// One small commit among others. Afterwards it leaves the disk alone for as long as it took,
    /// so that appends, which somebody waits for, come in between.
    fn in_turn(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        let begun = std::time::Instant::now();
        change(&write)?;
        write.commit()?;
        std::thread::sleep(begun.elapsed());
        Ok(())
    }

    /// Up to `limit` events with a number above `after`, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events_after(&self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let read = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = read.open_table(EVENTS).map_err(|error| self.failed(error))?;
        let rows = table.range(after.saturating_add(1)..).map_err(|error| self.failed(error))?;
        rows.take(limit.min(EVENTS_AT_ONCE_MAX)).map(|row| self.event(row)).collect()
    }

    /// The last `limit` events, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_events(&self, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let read = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = read.open_table(EVENTS).map_err(|error| self.failed(error))?;
        let rows = table.iter().map_err(|error| self.failed(error))?.rev();
        let mut events: Vec<_> = rows
            .take(limit.min(EVENTS_AT_ONCE_MAX))
            .map(|row| self.event(row))
            .collect::<Result<_, _>>()?;
        events.reverse();
        Ok(events)
    }

    fn event(
        &self,
        row: Result<EventRow<'_>, redb::StorageError>,
    ) -> Result<StoredEvent, StoreError> {
        let (key, value) = row.map_err(|error| self.failed(error))?;
        let seq = key.value();
        let event = self.decode(&format!("events/{seq}"), value.value())?;
        Ok(StoredEvent { seq, event })
    }

    #[cfg(test)]
    pub(crate) fn database_for_tests(&self) -> &Database {
        &self.database
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.database.begin_read().map_err(|error| self.failed(error))?;
        let table = read.open_table(META).map_err(|error| self.failed(error))?;
        let value = table.get(key).map_err(|error| self.failed(error))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn decode<T: DeserializeOwned>(&self, place: &str, bytes: &[u8]) -> Result<T, StoreError> {
        let (head, json) =
            bytes.split_at_checked(5).ok_or_else(|| self.damaged(place, "it is cut short"))?;
        if head[0] != RECORD_VERSION {
            return Err(self.damaged(place, &format!("record version {} is unknown", head[0])));
        }
        if head[1..] != crc32c::crc32c(json).to_le_bytes() {
            return Err(self.damaged(place, "its checksum does not hold"));
        }
        serde_json::from_slice(json).map_err(|error| self.damaged(place, &error.to_string()))
    }

    fn damaged(&self, place: &str, problem: &str) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            place: place.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }
}

/// Makes an empty store. It appears under its name only when it is whole: an empty file of that
/// name is then damage, never a first start that was cut off.
fn make(path: &Path) -> Result<(), redb::Error> {
    let part = path.with_extension("new");
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let database = Database::create(&part)?;
    let write = database.begin_write()?;
    {
        write.open_table(LOG)?;
        write.open_table(EVENTS)?;
        write.open_table(SNAPSHOTS)?;
        let mut meta = write.open_table(META)?;
        meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
    }
    write.commit()?;
    drop(database);
    std::fs::rename(&part, path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()?;
    Ok(())
}

type EventRow<'a> = (redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>);

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // Our own types, whose maps have text keys: they always have a JSON form.
    let json = serde_json::to_vec(value).expect("a state type has a JSON form");
    let mut record = Vec::with_capacity(json.len() + 5);
    record.push(RECORD_VERSION);
    record.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
    record.extend_from_slice(&json);
    record
}
