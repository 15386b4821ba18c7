//! Events and observations on their way to subscribers.
//!
//! Events come out of the state machine and are kept; observations are made up here and are not:
//! they have the number 0. A subscriber that is too slow loses its place among the live ones and
//! reads on from the file.

use model::Event;
use tokio::sync::broadcast;

use crate::truth::Store;
use crate::truth::StoreError;
use crate::truth::StoredEvent;

/// Live events that a slow subscriber may be behind before it has to read from the file.
const LIVE_MAX: usize = 1_024;

/// The events of this node.
#[derive(Clone)]
pub(crate) struct Events {
    live: broadcast::Sender<StoredEvent>,
    store: Option<Store>,
}

/// A place in the list of events.
pub(crate) struct Subscription {
    events: Events,
    live: broadcast::Receiver<StoredEvent>,
    last: u64,
    backlog: std::vec::IntoIter<StoredEvent>,
    behind: bool,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { live: broadcast::channel(LIVE_MAX).0, store: None }
    }

    pub(crate) fn sender(&self) -> broadcast::Sender<StoredEvent> {
        self.live.clone()
    }

    pub(crate) fn with_store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Tells of something that was seen. It is not kept.
    pub(crate) fn observe(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.live.send(StoredEvent { seq: 0, event });
    }

    pub(crate) fn after(&self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.store.as_ref().map_or_else(|| Ok(Vec::new()), |store| store.events_after(after, limit))
    }

    pub(crate) fn last(&self, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.store.as_ref().map_or_else(|| Ok(Vec::new()), |store| store.last_events(limit))
    }

    /// Follows events with a number above `after`, or only new ones.
    pub(crate) fn subscribe(&self, after: Option<u64>) -> Result<Subscription, StoreError> {
        let live = self.live.subscribe();
        let last = match after {
            Some(after) => after,
            None => self.last(1)?.last().map_or(0, |event| event.seq),
        };
        Ok(Subscription {
            events: self.clone(),
            live,
            last,
            backlog: Vec::new().into_iter(),
            behind: after.is_some(),
        })
    }
}

impl Subscription {
    /// The next event; `None` when the daemon ends.
    pub(crate) async fn next(&mut self) -> Option<Result<StoredEvent, StoreError>> {
        loop {
            if let Some(event) = self.backlog.next() {
                self.last = event.seq;
                return Some(Ok(event));
            }
            if self.behind {
                match self.events.after(self.last, crate::truth::EVENTS_AT_ONCE_MAX) {
                    Ok(events) => {
                        self.behind = !events.is_empty();
                        self.backlog = events.into_iter();
                        continue;
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            match self.live.recv().await {
                Ok(event) if event.seq == 0 => return Some(Ok(event)),
                // Read from the file already.
                Ok(event) if event.seq <= self.last => {}
                Ok(event) => {
                    self.last = event.seq;
                    return Some(Ok(event));
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
