//! The state machine as openraft wants it: `model`'s state, the sessions, and the numbers of events.
//!
//! It lives in memory. What is on disk is a snapshot now and then and the log after it, from which
//! a start makes the same state and the same events again. A batch of entries becomes visible in
//! one step, before anybody is told of it: first the state, then the events, then the answers.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures::Stream;
use futures::TryStreamExt;
use model::Applied;
use model::ClusterState;
use model::NodeId;
use model::Refused;
use openraft::EntryPayload;
use openraft::OptionalSend;
use openraft::RaftSnapshotBuilder;
use openraft::entry::RaftEntry;
use openraft::storage::EntryResponder;
use openraft::storage::RaftStateMachine;
use tokio::sync::broadcast;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::format::MachineImage;
use super::format::MembersAt;
use super::format::Position;
use super::format::SnapshotHead;
use super::format::StoredEvent;
use super::format::json;
use super::session::Admit;
use super::session::Sessions;
use super::store::LoadedSnapshot;
use super::store::PIECE_BYTES;
use super::store::SnapshotPlace;
use super::store::Store;
use super::store::StoreError;
use super::store::lock;
use super::types::Entry;
use super::types::Envelope;
use super::types::LogId;
use super::types::Snapshot;
use super::types::SnapshotBytes;
use super::types::SnapshotMeta;
use super::types::StoredMembership;
use super::types::Types;
use super::writer::Job;
use crate::simulation::blocking;

/// Events in a snapshot: what a node that begins with one can show of the past.
const EVENTS_IN_SNAPSHOT: usize = 1_000;

/// How a proposal of this node ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was carried out or refused.
    Settled(Result<Applied, Refused>),
    /// It was not carried out and never will be: this node is no member.
    Void,
    /// It was carried out or refused, and which is not known: a snapshot came instead of the log.
    Unseen,
}

/// What the state machine tells the rest of the node.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
    pub(crate) state: watch::Sender<Arc<ClusterState>>,
    pub(crate) events: broadcast::Sender<StoredEvent>,
    /// The number after the last entry that is visible in the state.
    pub(crate) applied: watch::Sender<u64>,
    /// The members by the log as far as it is applied.
    pub(crate) members: watch::Sender<MembersAt>,
    /// Whether this node has ever been one of them. Only then can it have been removed: a node that
    /// joins reads of many members before itself.
    pub(crate) was_member: AtomicBool,
    pub(crate) waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Machine {
    store: Store,
    outlet: Arc<Outlet>,
    state: Arc<ClusterState>,
    sessions: Sessions,
    event_seq: u64,
    last: Option<LogId>,
    members: StoredMembership,
    member_ids: BTreeSet<NodeId>,
    /// Events up to this number are in the file already; a start makes them again.
    events_on_disk: u64,
}

/// What a batch of entries leads to, once it is visible.
#[derive(Default)]
struct Consequences {
    events: Vec<StoredEvent>,
    outcomes: Vec<(u64, Outcome)>,
    state_changed: bool,
    members_changed: bool,
}

impl Machine {
    /// The state machine as a store has it.
    pub(crate) fn new(
        store: Store,
        outlet: Arc<Outlet>,
        snapshot: Option<LoadedSnapshot>,
        events_on_disk: u64,
    ) -> io::Result<Self> {
        let mut machine = Self {
            store,
            outlet,
            state: Arc::default(),
            sessions: Sessions::default(),
            event_seq: 0,
            last: None,
            members: StoredMembership::default(),
            member_ids: BTreeSet::new(),
            events_on_disk,
        };
        if let Some(LoadedSnapshot { head, image, .. }) = snapshot {
            let members = head.members.to_raft().map_err(io::Error::other)?;
            machine.become_image(image, head.last.map(Position::log_id), members);
        }
        machine.show();
        Ok(machine)
    }

    fn become_image(
        &mut self,
        image: MachineImage,
        last: Option<LogId>,
        members: StoredMembership,
    ) {
        self.state = image.state;
        self.sessions = image.sessions;
        self.event_seq = image.event_seq;
        self.last = last;
        self.set_members(members);
    }

    fn set_members(&mut self, members: StoredMembership) {
        self.member_ids = members.membership().nodes().map(|(id, _)| id.0).collect();
        self.members = members;
    }

    /// Notes on disk that this node has become a member, the first time.
    async fn note_membership(&self) -> io::Result<()> {
        if self.member_ids.contains(&self.outlet.node)
            && !self.outlet.was_member.swap(true, Ordering::Relaxed)
        {
            self.store.write(Job::Joined).await?;
        }
        Ok(())
    }

    /// Makes the present state visible.
    fn show(&self) {
        let outlet = &self.outlet;
        outlet.state.send_replace(self.state.clone());
        outlet.members.send_replace(MembersAt::of(&self.members));
        outlet.applied.send_replace(self.last.map_or(0, |id| id.index + 1));
    }

    fn apply_entry(&mut self, entry: &Entry, then: &mut Consequences) {
        self.last = Some(entry.log_id());
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(members) => {
                self.set_members(StoredMembership::new(self.last, members.clone()));
                self.sessions.keep_only(&self.member_ids);
                then.members_changed = true;
            }
            EntryPayload::Normal(envelope) => self.apply_proposal(envelope, then),
        }
    }

    fn apply_proposal(&mut self, envelope: &Envelope, then: &mut Consequences) {
        let Envelope { ticket, proposal } = envelope;
        let ours = ticket.node == self.outlet.node && ticket.boot == self.outlet.boot;
        if !self.member_ids.contains(&ticket.node) {
            // It has no session, so nobody could tell whether this is the first time.
            if ours {
                then.outcomes.push((ticket.number, Outcome::Void));
            }
            return;
        }
        if self.sessions.admit(ticket) == Admit::Repeated {
            return;
        }
        let result = Arc::make_mut(&mut self.state).apply(proposal);
        if let Ok(applied) = &result {
            then.state_changed = true;
            for event in &applied.events {
                self.event_seq += 1;
                then.events.push(StoredEvent { seq: self.event_seq, event: event.clone() });
            }
        }
        if ours {
            then.outcomes.push((ticket.number, Outcome::Settled(result)));
        }
    }

    /// Shows a batch, tells of its events, and answers those who wait.
    fn conclude(&mut self, then: Consequences) {
        let outlet = &self.outlet;
        lock(&self.store.files.tail)
            .events
            .extend(then.events.iter().filter(|event| event.seq > self.events_on_disk).cloned());
        if then.state_changed {
            outlet.state.send_replace(self.state.clone());
        }
        if then.members_changed {
            outlet.members.send_replace(MembersAt::of(&self.members));
        }
        outlet.applied.send_replace(self.last.map_or(0, |id| id.index + 1));
        for event in then.events {
            // Nobody listening is fine: events are read from the file, too.
            let _ = outlet.events.send(event);
        }
        let mut waiting = lock(&outlet.waiting);
        for (number, outcome) in then.outcomes {
            if let Some(reply) = waiting.remove(&number) {
                // A caller that has gone does not need its answer; the change stands.
                let _ = reply.send(outcome);
            }
        }
    }

    fn view(&self) -> Builder {
        Builder {
            store: self.store.clone(),
            state: self.state.clone(),
            sessions: self.sessions.clone(),
            event_seq: self.event_seq,
            meta: SnapshotMeta { last_log_id: self.last, last_membership: self.members.clone() },
        }
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.members.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut then = Consequences::default();
        let mut responders = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            self.apply_entry(&entry, &mut then);
            responders.extend(responder);
        }
        if then.members_changed {
            self.note_membership().await?;
        }
        self.conclude(then);
        for responder in responders {
            responder.send(());
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.view())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.view()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotBytes,
    ) -> io::Result<()> {
        let image = read_image(snapshot.clone()).await?;
        self.store.save_snapshot(meta, snapshot, &image.events).await?;
        self.events_on_disk = image.event_seq;
        lock(&self.store.files.tail).events.clear();
        self.become_image(image, meta.last_log_id, meta.last_membership.clone());
        self.note_membership().await?;
        self.show();
        let Outlet { node, boot, .. } = *self.outlet;
        let mut waiting = lock(&self.outlet.waiting);
        for (_, reply) in
            waiting.extract_if(|number, _| self.sessions.has_done(node, boot, *number))
        {
            let _ = reply.send(Outcome::Unseen);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let store = self.store.clone();
        let read = move || -> Result<_, StoreError> { store.read_snapshot() };
        let found = blocking(read).await?.map_err(io::Error::other)?;
        found
            .map(|(head, content)| {
                let meta = SnapshotMeta {
                    last_log_id: head.last.map(Position::log_id),
                    last_membership: head.members.to_raft().map_err(io::Error::other)?,
                };
                Ok(Snapshot { meta, snapshot: content })
            })
            .transpose()
    }
}

/// Reads a snapshot's content and checks it.
pub(crate) async fn read_image(content: SnapshotBytes) -> io::Result<MachineImage> {
    let read = move || {
        let image: MachineImage = serde_json::from_slice(&content)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        image
            .state
            .check_invariants()
            .map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))?;
        Ok(image)
    };
    blocking(read).await?
}

/// Writes one view of the state machine, while that goes on.
pub(crate) struct Builder {
    store: Store,
    state: Arc<ClusterState>,
    sessions: Sessions,
    event_seq: u64,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (store, state, sessions) =
            (self.store.clone(), self.state.clone(), self.sessions.clone());
        let event_seq = self.event_seq;
        let write = move || -> Result<_, StoreError> {
            let mut events = store.last_events(EVENTS_IN_SNAPSHOT)?;
            events.retain(|event| event.seq <= event_seq);
            Ok(Arc::new(json(&MachineImage { state, event_seq, sessions, events })))
        };
        let content: SnapshotBytes = blocking(write).await?.map_err(io::Error::other)?;
        self.store.save_snapshot(&self.meta, content.clone(), &[]).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: content })
    }
}

impl Store {
    /// Stores a snapshot beside the one in use and lets it take that one's place. One that is older
    /// than what there is changes nothing.
    async fn save_snapshot(
        &self,
        meta: &SnapshotMeta,
        content: SnapshotBytes,
        events: &[StoredEvent],
    ) -> io::Result<()> {
        let mut present = self.snapshot_turn.lock().await;
        let head = SnapshotHead {
            last: meta.last_log_id.map(Position::of),
            members: MembersAt::of(&meta.last_membership),
            bytes: content.len() as u64,
            crc: crc32c::crc32c(&content),
        };
        if present.as_ref().is_some_and(|present| present.head.last > head.last) {
            return Ok(());
        }
        let slot = present.as_ref().map_or(0, |present| 1 - present.slot);
        for (number, piece) in (0..).zip(content.chunks(PIECE_BYTES)) {
            let content = piece.to_vec();
            self.write_through(|reply| Job::Piece { slot, number, content, reply }).await?;
        }
        let place = SnapshotPlace { slot, head };
        let (stored, events) = (place.clone(), events.to_vec());
        self.write_through(|reply| Job::Snapshot { place: stored, events, reply }).await?;
        *present = Some(place);
        Ok(())
    }
}
