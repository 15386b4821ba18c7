//! openraft's requests, carried by a [`RaftTransport`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use model::NodeId;
use openraft::EmptyNode;
use openraft::OptionalSend;
use openraft::RaftNetworkFactory;
use openraft::RaftNetworkV2;
use openraft::errors::NetworkError;
use openraft::errors::RPCError;
use openraft::errors::ReplicationClosed;
use openraft::errors::StreamingError;
use openraft::errors::Unreachable;
use openraft::network::RPCOption;
use openraft::raft::AppendEntriesRequest;
use openraft::raft::AppendEntriesResponse;
use openraft::raft::SnapshotResponse;
use openraft::raft::TransferLeaderError;
use openraft::raft::TransferLeaderRequest;
use openraft::raft::TransferLeaderResponse;
use openraft::raft::VoteRequest;
use openraft::raft::VoteResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::format::Ballot;
use super::format::LogEntry;
use super::format::MembersAt;
use super::format::Position;
use super::format::SnapshotHead;
use super::transport::PEER_BODY_BYTES_MAX;
use super::transport::PeerMethod;
use super::transport::PeerRequest;
use super::transport::RaftTransport;
use super::transport::TransportError;
use super::types::RaftId;
use super::types::Snapshot;
use super::types::SnapshotBytes;
use super::types::Types;
use super::types::Vote;
use super::wire;
use super::wire::Answer;
use super::wire::AppendReply;
use super::wire::AppendRequest;
use super::wire::SnapshotPiece;
use super::wire::SnapshotReply;
use super::wire::TransferReply;
use super::wire::TransferRequest;
use super::wire::VoteReply;
use super::wire::WIRE_VERSION;

/// How long a follower may take to store entries. openraft would give it one heartbeat, which a
/// busy disk can exceed although all is well.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a piece of a snapshot may take; the last one is installed in that time, too.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest sum of entries in one request, with room for the rest of it.
const ENTRIES_BYTES_MAX: usize = PEER_BODY_BYTES_MAX / 2;

/// Ways to the peers.
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn RaftTransport>,
    /// Set when a peer says that this node was removed.
    pub(crate) removed: watch::Sender<Option<Position>>,
}

/// The way to one peer.
pub(crate) struct Way {
    to: NodeId,
    transport: Arc<dyn RaftTransport>,
    removed: watch::Sender<Option<Position>>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: RaftId, _node: &EmptyNode) -> Way {
        Way { to: target.0, transport: self.transport.clone(), removed: self.removed.clone() }
    }
}

/// Notes that this node is no member since `at`.
pub(crate) fn note_removed(removed: &watch::Sender<Option<Position>>, at: Position) {
    removed.send_if_modified(|known| {
        let later = known.is_none_or(|known| known.index < at.index);
        if later {
            *known = Some(at);
        }
        later
    });
}

/// Since when a node is no member by `now`, if it was ever one by `then`.
pub(crate) fn removal(node: NodeId, now: &MembersAt) -> Option<Position> {
    now.at.filter(|_| !now.members.nodes.contains(&node))
}

fn rpc_error(error: TransportError) -> RPCError<Types> {
    match error {
        // Retried after a pause.
        TransportError::NotSent(_) | TransportError::Refused(_) => {
            RPCError::Unreachable(Unreachable::from_string(error))
        }
        TransportError::Unknown(_) => RPCError::Network(NetworkError::from_string(error)),
    }
}

impl Way {
    async fn ask<T: DeserializeOwned>(
        &self,
        method: PeerMethod,
        timeout: Duration,
        body: Vec<u8>,
    ) -> Result<T, RPCError<Types>> {
        let request = PeerRequest { method, version: WIRE_VERSION, timeout, body };
        let reply = self.transport.send(self.to, request).await.map_err(rpc_error)?;
        let answer = wire::read(reply.version, &reply.body).map_err(|problem| {
            RPCError::Unreachable(Unreachable::from_string(format!(
                "the answer of {} cannot be read: {problem}",
                self.to
            )))
        })?;
        match answer {
            Answer::Here(answer) => Ok(answer),
            Answer::Removed(at) => {
                note_removed(&self.removed, at);
                Err(RPCError::Unreachable(Unreachable::from_string("this node was removed")))
            }
        }
    }

    async fn ask_json<T: DeserializeOwned>(
        &self,
        method: PeerMethod,
        timeout: Duration,
        body: &impl Serialize,
    ) -> Result<T, RPCError<Types>> {
        self.ask(method, timeout, wire::write(body)).await
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<Types>,
        timeout: Duration,
        pre_vote: bool,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = wire::VoteRequest {
            ballot: Ballot::of(rpc.vote),
            last: rpc.last_log_id.map(Position::of),
            transfer: rpc.leadership_transfer,
            pre_vote,
        };
        let VoteReply { ballot, granted, last } =
            self.ask_json(PeerMethod::Vote, timeout, &request).await?;
        Ok(VoteResponse::new(ballot.vote(), last.map(Position::log_id), granted))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let content = snapshot.snapshot;
        let head = SnapshotHead {
            last: snapshot.meta.last_log_id.map(Position::of),
            members: MembersAt::of(&snapshot.meta.last_membership),
            bytes: content.len() as u64,
            crc: crc32c::crc32c(&content),
        };
        let mut piece = SnapshotPiece { ballot: Ballot::of(vote), head, offset: 0 };
        loop {
            let from = usize::try_from(piece.offset).unwrap_or(usize::MAX).min(content.len());
            let to = content.len().min(from + wire::SNAPSHOT_PIECE_BYTES);
            let body = wire::write_piece(&piece, &content[from..to]);
            match self.ask(PeerMethod::Snapshot, PIECE_TIMEOUT, body).await? {
                SnapshotReply::Done(ballot) => {
                    return Ok(SnapshotResponse { vote: ballot.vote() });
                }
                // Forward only, or back to the begin: otherwise two could go round for ever.
                SnapshotReply::Continue(offset) if offset > piece.offset => piece.offset = offset,
                SnapshotReply::Continue(_) => {
                    let problem = format!("{} lost the pieces it had", self.to);
                    return Err(NetworkError::from_string(problem).into());
                }
            }
        }
    }
}

/// The first entries of a request that fit into one message, at least one, and whether that is all.
fn fitting(entries: &[openraft::type_config::alias::EntryOf<Types>]) -> (Vec<LogEntry>, bool) {
    let mut bytes = 0;
    let mut fit = Vec::with_capacity(entries.len());
    for entry in entries {
        let entry = LogEntry::of(entry);
        if let super::format::LogEntryKind::Proposal(envelope) = &entry.what {
            bytes += envelope.bytes();
        }
        if bytes > ENTRIES_BYTES_MAX && !fit.is_empty() {
            return (fit, false);
        }
        fit.push(entry);
    }
    (fit, true)
}

impl RaftNetworkV2<Types> for Way {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let timeout = if rpc.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.hard_ttl().max(APPEND_TIMEOUT)
        };
        let (entries, all) = fitting(&rpc.entries);
        let last = entries.last().map(|entry| entry.at);
        let request = AppendRequest {
            ballot: Ballot::of(rpc.vote),
            previous: rpc.prev_log_id.map(Position::of),
            entries,
            committed: rpc.leader_commit.map(Position::of),
        };
        Ok(match self.ask_json(PeerMethod::Append, timeout, &request).await? {
            AppendReply::Success if all => AppendEntriesResponse::Success,
            AppendReply::Success => {
                AppendEntriesResponse::PartialSuccess(last.map(Position::log_id))
            }
            AppendReply::Partial(at) => {
                AppendEntriesResponse::PartialSuccess(at.map(Position::log_id))
            }
            AppendReply::Conflict => AppendEntriesResponse::Conflict,
            AppendReply::HigherVote(ballot) => AppendEntriesResponse::HigherVote(ballot.vote()),
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(rpc, option.hard_ttl(), false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(rpc, option.hard_ttl(), true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = TransferRequest {
            from: Ballot::of(*rpc.from_leader()),
            to: rpc.to_node_id().0,
            last: rpc.last_log_id().copied().map(Position::of),
        };
        let reply = self.ask_json(PeerMethod::Transfer, option.hard_ttl(), &request).await?;
        Ok(match reply {
            TransferReply::Accepted => Ok(()),
            TransferReply::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged {
                    expected: expected.vote(),
                    actual: actual.vote(),
                })
            }
            TransferReply::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(Position::log_id),
                    actual: actual.map(Position::log_id),
                })
            }
        })
    }
}
