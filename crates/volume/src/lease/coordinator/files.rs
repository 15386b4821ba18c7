//! The queue of each file: one job at a time, in the order of arrival.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use model::NodeId;

use super::CoordinatorEffect;
use super::Deed;
use super::machine::Coordinator;
use super::machine::Recall;
use super::machine::Stage;
use crate::lease::Access;
use crate::lease::Answer;
use crate::lease::Ask;
use crate::lease::FileId;
use crate::lease::OpenId;
use crate::lease::Refusal;
use crate::lease::SessionId;
use crate::lease::Span;
use crate::lease::ToClient;
use crate::lease::table::Table;

/// The largest block number of a file: 4 EiB, half of what Linux can address.
const FILE_BLOCKS_MAX: u64 = 1 << 50;

/// The most blocks that one request reads or writes through the coordinator: 16 MiB.
const TRANSFER_BLOCKS_MAX: u64 = 4096;

#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pub(super) leases: Table,
    pub(super) recalls: BTreeMap<SessionId, Recall>,
    /// The first one is in work.
    pub(super) queue: VecDeque<Job>,
}

#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) node: NodeId,
    pub(super) session: SessionId,
    pub(super) number: u64,
    pub(super) ask: Ask,
    pub(super) phase: Phase,
    /// The id that is being noted in the file, and the file's length in blocks.
    pub(super) opening: Option<(OpenId, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    /// Leases are being recalled.
    Recalling,
    /// The file system is at it, under this number.
    Working(u64),
}

impl File {
    /// Whether the file system is doing something for that session.
    pub(super) fn works_for(&self, session: SessionId) -> bool {
        let first = self.queue.front();
        first.is_some_and(|job| job.session == session && matches!(job.phase, Phase::Working(_)))
    }
}

impl Coordinator {
    /// Admits a request to its file's queue.
    pub(super) fn queue(
        &mut self,
        now: Duration,
        node: NodeId,
        session: SessionId,
        number: u64,
        ask: Ask,
    ) -> Result<(), Refusal> {
        let id = self.admit(session, &ask)?;
        let queue_max = self.limits.queue_max;
        let file = self.files.entry(id).or_default();
        if file.queue.len() >= queue_max {
            return Err(Refusal::Limit);
        }
        let phase = Phase::Waiting;
        file.queue.push_back(Job { node, session, number, ask, phase, opening: None });
        self.advance(now, id);
        Ok(())
    }

    /// What can be said without the file system.
    fn admit(&self, session: SessionId, ask: &Ask) -> Result<FileId, Refusal> {
        let opened = |open, access| {
            let open = self.opened(open, session)?;
            if open.access < access { Err(Refusal::NotOpen) } else { Ok(open.file) }
        };
        let range = |span: &Span, count_max| {
            let fits = span.count > 0 && span.count <= count_max && span.end() <= FILE_BLOCKS_MAX;
            if fits { Ok(()) } else { Err(Refusal::Invalid) }
        };
        match ask {
            Ask::Open { file, .. } | Ask::Claim { file, .. } | Ask::Delete { file } => Ok(*file),
            Ask::Close { open } | Ask::Flush { open } => opened(*open, Access::Read),
            Ask::Acquire { open, span, access } => {
                range(span, FILE_BLOCKS_MAX)?;
                opened(*open, *access)
            }
            Ask::Read { open, span } => {
                range(span, TRANSFER_BLOCKS_MAX)?;
                opened(*open, Access::Read)
            }
            Ask::Write { open, span, data } => {
                range(span, TRANSFER_BLOCKS_MAX)?;
                if data.is_empty() || !(data.len() as u64).is_multiple_of(span.count) {
                    return Err(Refusal::Invalid);
                }
                opened(*open, Access::Write)
            }
            Ask::Punch { open, span } => {
                range(span, FILE_BLOCKS_MAX)?;
                opened(*open, Access::Write)
            }
            Ask::Truncate { open, blocks } => {
                range(&Span::new(0, *blocks + u64::from(*blocks == 0)), FILE_BLOCKS_MAX)?;
                opened(*open, Access::Write)
            }
            Ask::Clone { open, to } => {
                let from = opened(*open, Access::Read)?;
                if from == *to { Err(Refusal::Invalid) } else { Ok(from) }
            }
            Ask::Claimed => Err(Refusal::Invalid),
        }
    }

    /// Goes on with the first job of a file as far as it can.
    pub(super) fn advance(&mut self, now: Duration, id: FileId) {
        while let Some(file) = self.files.get_mut(&id) {
            // A recall is over when nothing that it asked for is left.
            let table = &file.leases;
            file.recalls.retain(|session, recall| {
                table.all().iter().any(|lease| {
                    lease.session == *session && lease.extent.span.overlaps(recall.span)
                })
            });
            let Some(job) = file.queue.front_mut() else {
                if file.leases.all().is_empty() {
                    self.files.remove(&id);
                }
                return;
            };
            if matches!(job.phase, Phase::Working(_)) {
                return;
            }
            if let Some(span) = moves(&job.ask) {
                let holders = file.leases.holders(span);
                if !holders.is_empty() {
                    let first = job.phase == Phase::Waiting;
                    job.phase = Phase::Recalling;
                    if first {
                        self.recall(now, id, span, &holders);
                    }
                    return;
                }
            }
            let job = job.clone();
            if let Err(refusal) = self.start(id, &job) {
                self.finish(now, id, Answer::Refused(refusal));
            }
        }
    }

    fn recall(&mut self, now: Duration, id: FileId, span: Span, holders: &[(NodeId, SessionId)]) {
        for (node, session) in holders {
            let live = self.sessions.get(node).filter(|live| live.id == *session);
            // A lease without a session would be one that nobody can give back.
            let Some(live) = live else { panic!("a lease of {node} has outlived its session") };
            let upto = live.next_lease - 1;
            let deadline = now + self.limits.recall;
            let recall = Recall { node: *node, upto, span, deadline };
            if let Some(file) = self.files.get_mut(&id) {
                file.recalls.insert(*session, recall);
            }
            self.send(*node, ToClient::Recall { session: *session, file: id, upto, span });
        }
    }

    /// Begins the work of a job whose recalls are over.
    fn start(&mut self, id: FileId, job: &Job) -> Result<(), Refusal> {
        let live = self.sessions.get(&job.node).filter(|live| live.id == job.session);
        let stage = live.map_or(Stage::Ending { fenced: true, successor: None }, |live| live.stage);
        assert!(!matches!(stage, Stage::Ending { .. }), "a job of an ended session begins");
        let deed = match &job.ask {
            Ask::Open { .. } | Ask::Claim { .. } => {
                let open = self.opens.values().filter(|open| open.session == job.session).count();
                if open >= self.limits.opens_max {
                    return Err(Refusal::Limit);
                }
                Deed::Inspect { file: id }
            }
            Ask::Close { open } => match self.opened(*open, job.session)?.access {
                Access::Write => Deed::SetWriter { file: id, writer: None },
                Access::Read => Deed::Inspect { file: id },
            },
            Ask::Acquire { span, access, .. } => {
                if stage != Stage::Ready {
                    return Err(Refusal::NotRegistered);
                }
                match access {
                    // A reader, too, takes a step at a time: one round trip for each, not for each read.
                    Access::Read => Deed::Map { file: id, span: self.grown(*span) },
                    Access::Write => {
                        let (span, ahead) = (*span, self.grown(*span));
                        Deed::Prepare { file: id, span, ahead }
                    }
                }
            }
            Ask::Read { span, .. } => Deed::Read { file: id, span: *span },
            Ask::Write { span, data, .. } => {
                Deed::Write { file: id, span: *span, data: data.clone() }
            }
            Ask::Flush { .. } => Deed::Flush,
            Ask::Truncate { blocks, .. } => Deed::Truncate { file: id, blocks: *blocks },
            Ask::Punch { span, .. } => Deed::Punch { file: id, span: *span },
            Ask::Clone { to, .. } => Deed::Clone { file: id, to: *to },
            Ask::Delete { .. } => {
                let others = self.opens.values().find(|open| {
                    open.file == id && open.access == Access::Write && open.session != job.session
                });
                match others {
                    Some(open) => return Err(Refusal::Busy { by: open.node }),
                    None => Deed::Delete { file: id },
                }
            }
            Ask::Claimed => return Err(Refusal::Invalid),
        };
        self.work(id, deed);
        Ok(())
    }

    /// The range of a write lease, in whole steps of growth.
    fn grown(&self, span: Span) -> Span {
        let step = self.limits.growth_blocks.max(1);
        let start = span.start / step * step;
        let end = span.end().div_ceil(step).saturating_mul(step).min(FILE_BLOCKS_MAX);
        Span::new(start, end - start)
    }

    /// Orders a deed for the first job.
    pub(super) fn work(&mut self, id: FileId, deed: Deed) {
        let number = self.next_deed;
        self.next_deed += 1;
        let job = self.files.get_mut(&id).and_then(|file| file.queue.front_mut());
        let Some(job) = job else { panic!("a deed without a job") };
        job.phase = Phase::Working(number);
        self.effects.push(CoordinatorEffect::Do { id: number, deed });
    }

    /// The first job is over.
    pub(super) fn finish(&mut self, now: Duration, id: FileId, answer: Answer) {
        let Some(job) = self.files.get_mut(&id).and_then(|file| file.queue.pop_front()) else {
            return;
        };
        self.answer(job.node, job.session, job.number, answer);
        self.bury(now, job.node);
    }

    /// Takes jobs of an ended session out that have not reached the file system.
    pub(super) fn forget_waiting(&mut self, session: SessionId) {
        for file in self.files.values_mut() {
            file.queue
                .retain(|job| job.session != session || matches!(job.phase, Phase::Working(_)));
        }
    }
}

/// Blocks of the file which this moves or frees.
fn moves(ask: &Ask) -> Option<Span> {
    match ask {
        Ask::Truncate { blocks, .. } => Some(Span::from(*blocks)),
        Ask::Punch { span, .. } => Some(*span),
        // What is shared will move at the next write.
        Ask::Clone { .. } | Ask::Delete { .. } => Some(Span::from(0)),
        _ => None,
    }
}
