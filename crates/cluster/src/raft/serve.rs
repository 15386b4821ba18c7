//! The other end of the wire: a replica answers its peers.

use std::sync::Arc;

use async_trait::async_trait;
use model::NodeId;
use openraft::raft::AppendEntriesRequest;
use openraft::raft::AppendEntriesResponse;
use openraft::raft::TransferLeaderError;
use openraft::raft::TransferLeaderRequest;
use openraft::raft::VoteRequest;
use serde::Serialize;

use super::applier::read_image;
use super::format::Ballot;
use super::format::Position;
use super::format::SnapshotHead;
use super::network::note_removed;
use super::network::removal;
use super::replica::Inner;
use super::replica::Replica;
use super::store::SNAPSHOT_BYTES_MAX;
use super::transport::PeerMethod;
use super::transport::PeerReply;
use super::transport::PeerRequest;
use super::transport::PeerService;
use super::types::RaftId;
use super::types::Snapshot;
use super::types::SnapshotMeta;
use super::wire;
use super::wire::Answer;
use super::wire::AppendReply;
use super::wire::AppendRequest;
use super::wire::LeaderReply;
use super::wire::ProposeRequest;
use super::wire::RemovedNotice;
use super::wire::SnapshotReply;
use super::wire::TransferReply;
use super::wire::TransferRequest;
use super::wire::VoteReply;
use super::wire::WIRE_VERSION;

/// A snapshot that is coming in. One at a time: there is one leader.
pub(crate) struct Incoming {
    ballot: Ballot,
    head: SnapshotHead,
    content: Vec<u8>,
}

fn reply(body: &impl Serialize) -> PeerReply {
    PeerReply { version: WIRE_VERSION, body: wire::write(body) }
}

/// A node may act by its own vote only.
fn speaks_for_itself(from: NodeId, ballot: &Ballot) -> Result<(), String> {
    if ballot.node == from {
        return Ok(());
    }
    Err(format!("{from} may not act by the vote of {}", ballot.node))
}

#[async_trait]
impl PeerService for Replica {
    async fn serve(&self, from: NodeId, request: PeerRequest) -> Result<PeerReply, String> {
        let PeerRequest { method, version, timeout, body } = request;
        let served = self.inner.serve(from, method, version, &body);
        match tokio::time::timeout(timeout, served).await {
            Ok(reply) => reply,
            // Nobody waits for it any more; what was begun goes on.
            Err(_) => Ok(reply(&LeaderReply::Unknown)),
        }
    }
}

impl Inner {
    async fn serve(
        &self,
        from: NodeId,
        method: PeerMethod,
        version: u16,
        body: &[u8],
    ) -> Result<PeerReply, String> {
        match method {
            PeerMethod::Append => self.serve_append(from, wire::read(version, body)?).await,
            PeerMethod::Vote => self.serve_vote(from, wire::read(version, body)?).await,
            PeerMethod::Snapshot => self.serve_piece(from, version, body).await,
            PeerMethod::Transfer => self.serve_transfer(from, wire::read(version, body)?).await,
            PeerMethod::Propose => self.serve_proposal(from, wire::read(version, body)?).await,
            PeerMethod::Barrier => Ok(reply(&match self.removal_of(from) {
                Some(at) => LeaderReply::Removed(at),
                None => self.read_point().await,
            })),
            PeerMethod::Members => {
                let RemovedNotice { at } = wire::read(version, body)?;
                note_removed(&self.removed, at);
                Ok(reply(&LeaderReply::At(at.index)))
            }
            PeerMethod::Lease | PeerMethod::Observations => {
                Err("the log does not serve this".to_owned())
            }
        }
    }

    /// Since when a node is no member, by what is committed here.
    fn removal_of(&self, node: NodeId) -> Option<Position> {
        removal(node, &self.outlet.members.borrow())
    }

    async fn serve_append(
        &self,
        from: NodeId,
        request: AppendRequest,
    ) -> Result<PeerReply, String> {
        speaks_for_itself(from, &request.ballot)?;
        let mut entries = Vec::with_capacity(request.entries.len());
        let mut next = request.previous.map(|at| at.index + 1);
        for entry in request.entries {
            if next.is_some_and(|next| next != entry.at.index) {
                return Err("the entries do not follow each other".to_owned());
            }
            next = Some(entry.at.index + 1);
            entries.push(entry.into_raft().map_err(|error| error.to_string())?);
        }
        let request = AppendEntriesRequest {
            vote: request.ballot.vote(),
            prev_log_id: request.previous.map(Position::log_id),
            entries,
            leader_commit: request.committed.map(Position::log_id),
        };
        let answer = self.raft.append_entries(request).await.map_err(|error| error.to_string())?;
        Ok(reply(&Answer::Here(match answer {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::PartialSuccess(at) => AppendReply::Partial(at.map(Position::of)),
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(Ballot::of(vote)),
        })))
    }

    async fn serve_vote(
        &self,
        from: NodeId,
        request: wire::VoteRequest,
    ) -> Result<PeerReply, String> {
        // A node that was removed while it was away asks for votes that it cannot win: the entry
        // that removed it is not in its log, and a vote goes to a log that is as long as ours only.
        if let Some(at) = self.removal_of(from)
            && request.last.is_none_or(|last| last < at)
        {
            return Ok(reply(&Answer::<VoteReply>::Removed(at)));
        }
        speaks_for_itself(from, &request.ballot)?;
        let rpc = VoteRequest {
            vote: request.ballot.vote(),
            last_log_id: request.last.map(Position::log_id),
            leadership_transfer: request.transfer,
        };
        let answer = if request.pre_vote {
            self.raft.pre_vote(rpc).await
        } else {
            self.raft.vote(rpc).await
        };
        let answer = answer.map_err(|error| error.to_string())?;
        Ok(reply(&Answer::Here(VoteReply {
            ballot: Ballot::of(answer.vote),
            granted: answer.vote_granted,
            last: answer.last_log_id.map(Position::of),
        })))
    }

    async fn serve_piece(
        &self,
        from: NodeId,
        version: u16,
        body: &[u8],
    ) -> Result<PeerReply, String> {
        let (piece, content) = wire::read_piece(version, body)?;
        let wire::SnapshotPiece { ballot, head, offset } = piece;
        speaks_for_itself(from, &ballot)?;
        if head.bytes > SNAPSHOT_BYTES_MAX {
            return Err(format!("a snapshot of {} bytes is too large", head.bytes));
        }
        let mut incoming = self.incoming.lock().await;
        let same = incoming
            .as_ref()
            .is_some_and(|incoming| incoming.head == head && incoming.ballot == ballot);
        if !same {
            if offset != 0 {
                return Ok(reply(&Answer::Here(SnapshotReply::Continue(0))));
            }
            *incoming = Some(Incoming { ballot, head: head.clone(), content: Vec::new() });
        }
        let Some(have) = incoming.as_mut() else { return Err("it was forgotten".to_owned()) };
        let length = have.content.len() as u64;
        if offset != length {
            return Ok(reply(&Answer::Here(SnapshotReply::Continue(length))));
        }
        if length + content.len() as u64 > head.bytes || (content.is_empty() && length < head.bytes)
        {
            return Err("the snapshot's pieces do not fit its length".to_owned());
        }
        have.content.extend_from_slice(content);
        let length = have.content.len() as u64;
        if length < head.bytes {
            return Ok(reply(&Answer::Here(SnapshotReply::Continue(length))));
        }
        let Some(Incoming { content, .. }) = incoming.take() else {
            return Err("it was forgotten".to_owned());
        };
        let vote = self.install(ballot, &head, Arc::new(content)).await?;
        Ok(reply(&Answer::Here(SnapshotReply::Done(vote))))
    }

    async fn install(
        &self,
        ballot: Ballot,
        head: &SnapshotHead,
        content: Arc<Vec<u8>>,
    ) -> Result<Ballot, String> {
        if crc32c::crc32c(&content) != head.crc {
            return Err("the snapshot's checksum does not hold".to_owned());
        }
        // openraft takes a snapshot that cannot be installed for a broken disk and ends.
        read_image(content.clone()).await.map_err(|error| error.to_string())?;
        let meta = SnapshotMeta {
            last_log_id: head.last.map(Position::log_id),
            last_membership: head.members.to_raft().map_err(|error| error.to_string())?,
        };
        let snapshot = Snapshot { meta, snapshot: content };
        let installed = self.raft.install_full_snapshot(ballot.vote(), snapshot).await;
        installed.map(|answer| Ballot::of(answer.vote)).map_err(|error| error.to_string())
    }

    async fn serve_transfer(
        &self,
        from: NodeId,
        request: TransferRequest,
    ) -> Result<PeerReply, String> {
        speaks_for_itself(from, &request.from)?;
        let request = TransferLeaderRequest::new(
            request.from.vote(),
            RaftId(request.to),
            request.last.map(Position::log_id),
        );
        let answer =
            self.raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
        Ok(reply(&Answer::Here(match answer {
            Ok(()) => TransferReply::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferReply::VoteChanged {
                    expected: Ballot::of(expected),
                    actual: Ballot::of(actual),
                }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                TransferReply::LogNotFlushed {
                    expected: expected.map(Position::of),
                    actual: actual.map(Position::of),
                }
            }
        })))
    }

    async fn serve_proposal(
        &self,
        from: NodeId,
        request: ProposeRequest,
    ) -> Result<PeerReply, String> {
        let ProposeRequest { envelope } = request;
        if envelope.ticket.node != from {
            return Err("a node may forward its own proposals only".to_owned());
        }
        Ok(reply(&match self.removal_of(from) {
            Some(at) => LeaderReply::Removed(at),
            None => self.append(Arc::new(envelope)).await,
        }))
    }
}
