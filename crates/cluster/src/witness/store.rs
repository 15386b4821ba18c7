//! Where a witness's record is kept: anything that can replace it only if it is still the same.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

/// Which version of the record this is, in the store's own words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(pub String);

/// The outcome of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is stored, durable, and the newest.
    Yes(Tag),
    /// It was not stored: the record is another one than expected.
    No,
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written, and nothing will be.
    #[error("the witness cannot be reached: {0}")]
    Unavailable(String),
    /// What was asked may have been done, or may be yet.
    #[error("the witness did not answer: {0}")]
    Unknown(String),
    /// It will never do what is asked, as things are.
    #[error("the witness refuses: {0}")]
    Refused(String),
}

/// A place for one record.
///
/// A write replaces the record that was expected, whole, or nothing. Of several writers that expect
/// the same record at most one is told [`Written::Yes`]. After that nobody is told it for a write
/// that expected an older record.
#[async_trait]
pub trait WitnessStore: fmt::Debug + Send + Sync + 'static {
    /// The record and its tag, or nothing if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError>;

    /// Replaces the record with that tag, or makes it if there shall be none yet.
    ///
    /// # Errors
    /// [`StoreError`]; after [`StoreError::Unknown`] the record must be read again.
    async fn write_if(&self, expected: Option<&Tag>, bytes: Vec<u8>)
    -> Result<Written, StoreError>;

    /// Removes the record, whatever it is.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn remove(&self) -> Result<(), StoreError>;

    /// Another record at the same place, for trials. The name is of letters, digits and dashes.
    fn beside(&self, name: &str) -> Arc<dyn WitnessStore>;

    /// Whether a read sees each write that was acknowledged before it began, whoever made it. Where
    /// it does not, a leader writes to be sure that it still leads.
    fn reads_are_fresh(&self) -> bool;

    /// Where it is, for people. Without secrets.
    fn place(&self) -> String;
}
