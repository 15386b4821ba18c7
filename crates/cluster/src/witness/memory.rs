//! A store in memory with every fault, for tests.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;

use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

/// What happens to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not done, and the asker knows.
    Refuse,
    /// It is not done, and the asker does not know.
    LoseRequest,
    /// It is done, and the asker does not know.
    LoseAnswer,
    /// It is done that much later, and the asker does not know.
    DoLater(Duration),
    /// It takes that long.
    Slow(Duration),
}

/// How a store can be wrong for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It does not look at the condition.
    IgnoresCondition,
    /// It takes a condition on a record that is not there for fulfilled.
    MatchesAbsent,
    /// "Only if there is none" replaces.
    CreateReplaces,
    /// A read shows the record before.
    StaleReads,
    /// It says yes and stores nothing.
    LosesWrites,
    /// It looks, and writes a moment later.
    LooksThenWrites,
    /// All versions have the same tag.
    OneTag,
    /// It cuts what it stores.
    Cuts,
}

#[derive(Debug, Default)]
struct Shared {
    records: BTreeMap<String, Vec<(Vec<u8>, Tag)>>,
    next: u64,
    faults: VecDeque<Fault>,
    down: bool,
    wrong: Option<Wrong>,
    reads: u64,
    writes: u64,
}

/// A store in memory.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
    name: String,
    /// Cut off from the others alone.
    cut: Arc<Mutex<bool>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { shared: Arc::default(), name: "witness".to_owned(), cut: Arc::default() }
    }
}

impl MemoryStore {
    /// A store that does as it should.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that does not.
    pub fn wrong(wrong: Wrong) -> Self {
        let store = Self::default();
        store.shared().wrong = Some(wrong);
        store
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same store by a way of its own, which can be cut.
    pub fn way(&self) -> Self {
        Self { cut: Arc::default(), ..self.clone() }
    }

    /// Cuts or mends this way.
    pub fn cut(&self, cut: bool) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
    }

    /// Takes the whole store away, or brings it back.
    pub fn down(&self, down: bool) {
        self.shared().down = down;
    }

    /// What happens to the next operations, one each.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared().faults.extend(faults);
    }

    /// All versions there were, oldest first.
    pub fn history(&self) -> Vec<Vec<u8>> {
        let shared = self.shared();
        let versions = shared.records.get(&self.name).into_iter().flatten();
        versions.map(|(bytes, _)| bytes.clone()).collect()
    }

    /// The versions after the first `count`, oldest first.
    pub fn history_after(&self, count: usize) -> Vec<Vec<u8>> {
        let shared = self.shared();
        let versions = shared.records.get(&self.name).into_iter().flatten();
        versions.skip(count).map(|(bytes, _)| bytes.clone()).collect()
    }

    /// Puts bytes there, as nobody of ours would.
    pub fn put(&self, bytes: Vec<u8>) {
        self.shared().store(&self.name, bytes);
    }

    /// Reads and writes so far.
    pub fn used(&self) -> (u64, u64) {
        let shared = self.shared();
        (shared.reads, shared.writes)
    }

    /// Whether anything goes through, and how.
    async fn pass(&self) -> Result<Option<Fault>, StoreError> {
        let fault = {
            let mut shared = self.shared();
            if shared.down || *self.cut.lock().unwrap_or_else(PoisonError::into_inner) {
                return Err(StoreError::Unavailable("it is down".to_owned()));
            }
            shared.faults.pop_front()
        };
        match fault {
            Some(Fault::Refuse) => Err(StoreError::Unavailable("refused".to_owned())),
            Some(Fault::LoseRequest) => Err(StoreError::Unknown("time ran out".to_owned())),
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

impl Shared {
    fn current(&self, name: &str) -> Option<&(Vec<u8>, Tag)> {
        self.records.get(name)?.last()
    }

    fn store(&mut self, name: &str, mut bytes: Vec<u8>) -> Tag {
        self.next += 1;
        let tag = match self.wrong {
            Some(Wrong::OneTag) => Tag("same".to_owned()),
            _ => Tag(format!("t{}", self.next)),
        };
        match self.wrong {
            Some(Wrong::LosesWrites) => return tag,
            Some(Wrong::Cuts) => bytes.truncate(bytes.len() / 2),
            _ => {}
        }
        self.records.entry(name.to_owned()).or_default().push((bytes, tag.clone()));
        tag
    }

    fn holds(&self, name: &str, expected: Option<&Tag>) -> bool {
        let current = self.current(name).map(|(_, tag)| tag);
        match self.wrong {
            Some(Wrong::IgnoresCondition) => true,
            Some(Wrong::MatchesAbsent) if current.is_none() => true,
            Some(Wrong::CreateReplaces) if expected.is_none() => true,
            _ => current == expected,
        }
    }

    fn write_if(&mut self, name: &str, expected: Option<&Tag>, bytes: Vec<u8>) -> Written {
        self.writes += 1;
        if self.holds(name, expected) { Written::Yes(self.store(name, bytes)) } else { Written::No }
    }
}

#[async_trait]
impl WitnessStore for MemoryStore {
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        let fault = self.pass().await?;
        if fault == Some(Fault::LoseAnswer) {
            return Err(StoreError::Unknown("time ran out".to_owned()));
        }
        let mut shared = self.shared();
        shared.reads += 1;
        if shared.wrong == Some(Wrong::StaleReads)
            && let Some([.., before, _]) = shared.records.get(&self.name).map(Vec::as_slice)
        {
            return Ok(Some(before.clone()));
        }
        Ok(shared.current(&self.name).cloned())
    }

    async fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: Vec<u8>,
    ) -> Result<Written, StoreError> {
        let lost = || Err(StoreError::Unknown("time ran out".to_owned()));
        let fault = self.pass().await?;
        if let Some(Fault::DoLater(time)) = fault {
            let (own, expected) = (self.clone(), expected.cloned());
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                own.shared().write_if(&own.name, expected.as_ref(), bytes);
            });
            return lost();
        }
        let (held, racy) = {
            let shared = self.shared();
            let racy = shared.wrong == Some(Wrong::LooksThenWrites);
            (shared.holds(&self.name, expected), racy)
        };
        if racy {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mut shared = self.shared();
            shared.writes += 1;
            return Ok(match held {
                true => Written::Yes(shared.store(&self.name, bytes)),
                false => Written::No,
            });
        }
        let written = self.shared().write_if(&self.name, expected, bytes);
        if fault == Some(Fault::LoseAnswer) { lost() } else { Ok(written) }
    }

    async fn remove(&self) -> Result<(), StoreError> {
        self.pass().await?;
        self.shared().records.remove(&self.name);
        Ok(())
    }

    fn beside(&self, name: &str) -> Arc<dyn WitnessStore> {
        Arc::new(Self { name: name.to_owned(), ..self.clone() })
    }

    fn reads_are_fresh(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }
}
