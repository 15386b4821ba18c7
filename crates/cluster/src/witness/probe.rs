//! Does a store keep its word? Tried out before it becomes a witness, and at each start.
//!
//! Some stores take a condition and do not look at it, or only at times: old versions of MinIO took
//! a condition on a record that was not there for fulfilled, and there are gateways that drop the
//! header. With such a witness both halves of a cluster would win. The probe works on a record of
//! its own beside the witness's, and removes it.
//!
//! A store that passes may still lie later, or under load: this finds what is wrong by nature.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

/// Writers that race for one version.
const RACERS: usize = 32;

/// Races: one that is not decided by a lock might be won by one writer by luck.
const RACES: usize = 2;

/// Times that a record is read again after a write.
const READS: usize = 4;

/// How long one operation may take, and all of them together.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(40);

/// Why a store cannot be a witness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It could not be tried out.
    #[error("the {place} could not be tried out: {error}")]
    Failed {
        /// Which.
        place: String,
        /// Why.
        error: StoreError,
    },
    /// It does not keep its word.
    #[error("the {place} cannot be a witness: {what}; choose another store")]
    BreaksItsWord {
        /// Which.
        place: String,
        /// How.
        what: &'static str,
    },
}

enum Found {
    Error(StoreError),
    Wrong(&'static str),
}

impl From<StoreError> for Found {
    fn from(error: StoreError) -> Self {
        Self::Error(error)
    }
}

/// Tries a store out.
///
/// # Errors
/// [`Unfit`].
pub async fn probe(store: &dyn WitnessStore) -> Result<(), Unfit> {
    let trial = store.beside(&format!("probe-{}", Uuid::new_v4()));
    let tried = tokio::time::timeout(TIMEOUT, try_out(&trial)).await;
    // Best effort: what is left is one small file of a name that never comes again.
    let _ = tokio::time::timeout(STEP_TIMEOUT, trial.remove()).await;
    let place = store.place();
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Found::Wrong(what))) => Err(Unfit::BreaksItsWord { place, what }),
        Ok(Err(Found::Error(error))) => Err(Unfit::Failed { place, error }),
        Err(_) => {
            let error = StoreError::Unavailable(format!("it took longer than {TIMEOUT:?}"));
            Err(Unfit::Failed { place, error })
        }
    }
}

/// Content that is unlike any other.
fn fresh() -> Vec<u8> {
    Uuid::new_v4().to_string().into_bytes()
}

async fn write(
    store: &Arc<dyn WitnessStore>,
    expected: Option<&Tag>,
    bytes: &[u8],
) -> Result<Written, StoreError> {
    let late = StoreError::Unavailable(format!("no answer within {STEP_TIMEOUT:?}"));
    let write = store.write_if(expected, bytes.to_vec());
    tokio::time::timeout(STEP_TIMEOUT, write).await.unwrap_or(Err(late))
}

/// Whether the store has exactly this.
async fn has(store: &Arc<dyn WitnessStore>, bytes: &[u8], tag: &Tag) -> Result<bool, StoreError> {
    for _ in 0..READS {
        match store.read().await? {
            Some((there, its)) if there == bytes && its == *tag => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

async fn try_out(store: &Arc<dyn WitnessStore>) -> Result<(), Found> {
    if store.read().await?.is_some() {
        return Err(Found::Wrong("it shows a record that was never written"));
    }
    let nothing = Tag("\"0123456789abcdef0123456789abcdef\"".to_owned());
    if write(store, Some(&nothing), &fresh()).await? != Written::No {
        return Err(Found::Wrong("it replaces a record that is not there"));
    }
    let first = fresh();
    let Written::Yes(one) = write(store, None, &first).await? else {
        return Err(Found::Wrong("it refuses the first record"));
    };
    if write(store, None, &fresh()).await? != Written::No {
        return Err(Found::Wrong("it makes a record that is there already"));
    }
    if !has(store, &first, &one).await? {
        return Err(Found::Wrong("it does not show the record that it took"));
    }
    let second = fresh();
    let Written::Yes(two) = write(store, Some(&one), &second).await? else {
        return Err(Found::Wrong("it does not replace the record that was expected"));
    };
    if two == one {
        return Err(Found::Wrong("it cannot tell one version from the next"));
    }
    if !has(store, &second, &two).await? {
        return Err(Found::Wrong("it shows an older record than the one that it took"));
    }
    if write(store, Some(&one), &fresh()).await? != Written::No {
        return Err(Found::Wrong("it replaces a record that has changed since"));
    }
    if !has(store, &second, &two).await? {
        return Err(Found::Wrong("it stores what it refuses"));
    }
    let mut tag = two;
    for _ in 0..RACES {
        tag = race(store, tag).await?;
    }
    Ok(())
}

/// All expect the same version: one wins.
async fn race(store: &Arc<dyn WitnessStore>, from: Tag) -> Result<Tag, Found> {
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..RACERS {
        let (store, from, bytes) = (store.clone(), from.clone(), fresh());
        racers.spawn(async move { (write(&store, Some(&from), &bytes).await, bytes) });
    }
    let mut won = Vec::new();
    let mut uncertain = Vec::new();
    while let Some(ended) = racers.join_next().await {
        match ended {
            Ok((Ok(Written::Yes(tag)), bytes)) => won.push((bytes, tag)),
            Ok((Err(_), bytes)) => uncertain.push(bytes),
            Ok((Ok(Written::No), _)) | Err(_) => {}
        }
    }
    match won.as_slice() {
        [(bytes, tag)] if has(store, bytes, tag).await? => Ok(tag.clone()),
        [_] => Err(Found::Wrong("it does not show the record of the writer that won")),
        [] => match store.read().await? {
            // It sheds load, which is its right; one of those who know nothing has won.
            Some((there, tag)) if tag != from && uncertain.contains(&there) => Ok(tag),
            _ => Err(Found::Wrong("of several writers nobody wins")),
        },
        _ => Err(Found::Wrong("several writers win at once")),
    }
}
