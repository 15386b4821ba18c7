//! What follows when the file system has done something.

use std::time::Duration;

use super::Deed;
use super::DeedOutcome;
use super::files::Job;
use super::files::Phase;
use super::machine::Coordinator;
use super::machine::Open;
use super::machine::Stage;
use crate::lease::Access;
use crate::lease::Answer;
use crate::lease::Ask;
use crate::lease::Extent;
use crate::lease::FileId;
use crate::lease::LiveLease;
use crate::lease::OpenId;
use crate::lease::Refusal;

/// The most extents in one grant: a message stays below 64 KiB.
const EXTENTS_MAX: usize = 1024;

impl Coordinator {
    /// A deed has ended. An answer to one that nobody waits for changes nothing.
    pub(super) fn did(&mut self, now: Duration, deed: u64, outcome: DeedOutcome) {
        let mut files = self.files.iter();
        let found = files.find_map(|(id, file)| {
            let job = file.queue.front()?;
            (job.phase == Phase::Working(deed)).then(|| (*id, job.clone()))
        });
        let Some((id, job)) = found else { return };
        // For a session that is ending nothing further is begun, granted or answered.
        let ending = self.sessions.get(&job.node).is_none_or(|live| {
            live.id != job.session || matches!(live.stage, Stage::Ending { .. })
        });
        let next = if ending {
            Next::Answer(Answer::Refused(Refusal::NotOpen))
        } else {
            self.follow(now, id, &job, outcome)
        };
        match next {
            Next::Answer(answer) => self.finish(now, id, answer),
            Next::Work(deed) => self.work(id, deed),
        }
        self.advance(now, id);
    }

    fn follow(&mut self, now: Duration, id: FileId, job: &Job, outcome: DeedOutcome) -> Next {
        let refused = |refusal| Next::Answer(Answer::Refused(refusal));
        match (outcome, &job.ask) {
            (DeedOutcome::NoSuchFile, Ask::Close { open }) => self.close(*open),
            (DeedOutcome::NoSuchFile, _) => refused(Refusal::NoSuchFile),
            (DeedOutcome::Full, _) => refused(Refusal::Full),
            (DeedOutcome::Failed(why), _) => refused(Refusal::FileSystem(why)),
            (DeedOutcome::Done | DeedOutcome::File { .. }, Ask::Close { open }) => {
                self.close(*open)
            }
            (DeedOutcome::File { blocks, writer }, Ask::Open { access, .. }) => {
                self.open(now, id, job, *access, blocks, writer)
            }
            (DeedOutcome::File { blocks, writer }, Ask::Claim { open, access, .. }) => {
                let right = *access == Access::Read || writer == Some((job.node, *open));
                let free = self.opens.get(open).is_none_or(|it| it.session == job.session);
                if !right || !free {
                    return refused(Refusal::Taken);
                }
                self.opened_now(id, job, *open, *access, blocks)
            }
            // The second half of opening for writing.
            (DeedOutcome::Done, Ask::Open { access, .. }) => match job.opening {
                Some((open, blocks)) => self.opened_now(id, job, open, *access, blocks),
                None => panic!("a writer is noted that nobody has asked for"),
            },
            (DeedOutcome::Extents(extents), Ask::Acquire { access, .. }) => {
                self.grant(id, job, *access, extents)
            }
            (DeedOutcome::Data(data), Ask::Read { .. }) => Next::Answer(Answer::Data(data)),
            (DeedOutcome::Done, _) => Next::Answer(Answer::Done),
            (outcome, ask) => panic!("the file system answered {outcome:?} to {ask:?}"),
        }
    }

    fn open(
        &mut self,
        now: Duration,
        id: FileId,
        job: &Job,
        access: Access,
        blocks: u64,
        writer: Option<(model::NodeId, OpenId)>,
    ) -> Next {
        if access == Access::Write
            && let Some((node, open)) = writer
        {
            if self.opens.contains_key(&open) {
                return Next::Answer(Answer::Refused(Refusal::Busy { by: node }));
            }
            if node != job.node && self.may_claim(now, node) {
                return Next::Answer(Answer::Refused(Refusal::Grace));
            }
        }
        let open = OpenId { epoch: self.epoch, number: self.next_open };
        self.next_open += 1;
        match access {
            Access::Read => self.opened_now(id, job, open, access, blocks),
            Access::Write => {
                if let Some(first) = self.files.get_mut(&id).and_then(|it| it.queue.front_mut()) {
                    first.opening = Some((open, blocks));
                }
                Next::Work(Deed::SetWriter { file: id, writer: Some((job.node, open)) })
            }
        }
    }

    fn opened_now(
        &mut self,
        file: FileId,
        job: &Job,
        open: OpenId,
        access: Access,
        blocks: u64,
    ) -> Next {
        let (node, session) = (job.node, job.session);
        self.opens.insert(open, Open { file, node, session, access });
        Next::Answer(Answer::Opened { open, blocks })
    }

    /// Leases stay until they are released: the client may have the file open a second time, in a
    /// request that has not arrived yet.
    fn close(&mut self, open: OpenId) -> Next {
        self.opens.remove(&open);
        Next::Answer(Answer::Done)
    }

    fn grant(&mut self, id: FileId, job: &Job, access: Access, mut extents: Vec<Extent>) -> Next {
        extents.truncate(EXTENTS_MAX);
        let held: usize = self.files.values().map(|file| file.leases.count(job.session)).sum();
        let Some(live) = self.sessions.get_mut(&job.node) else {
            return Next::Answer(Answer::Refused(Refusal::NotRegistered));
        };
        if live.stage != Stage::Ready {
            return Next::Answer(Answer::Refused(Refusal::NotRegistered));
        }
        if held + extents.len() > self.limits.leases_max {
            return Next::Answer(Answer::Refused(Refusal::Limit));
        }
        let number = live.next_lease;
        live.next_lease += 1;
        if let Some(file) = self.files.get_mut(&id) {
            for extent in &extents {
                assert!(!extent.span.is_empty(), "an empty extent is leased");
                let (node, session) = (job.node, job.session);
                file.leases.grant(LiveLease { node, session, number, access, extent: *extent });
            }
        }
        Next::Answer(Answer::Granted { file: id, number, access, extents })
    }
}

enum Next {
    Answer(Answer),
    Work(Deed),
}
