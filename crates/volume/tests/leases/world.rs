//! The whole: nodes, messages, commands on the way to the LUN, and the turn of events. One seed is
//! one schedule; nothing here looks at a clock or at anything random but its seed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use model::NodeId;
use volume::lease::Access;
use volume::lease::Client;
use volume::lease::ClientInput;
use volume::lease::CoordinatorInput;
use volume::lease::DeedOutcome;
use volume::lease::Epoch;
use volume::lease::FileId;
use volume::lease::Limits;
use volume::lease::LiveLease;
use volume::lease::ReservationKey;
use volume::lease::Span;
use volume::lease::ToClient;
use volume::lease::ToCoordinator;

use crate::fs::Fs;
use crate::fs::Inode;
use crate::fs::Tables;
use crate::host::Node;
use crate::lun::Command;
use crate::lun::Lun;
use crate::lun::Reply;
use crate::oracle::Oracle;
use crate::plant::Plant;
use crate::rng::Rng;

/// Milliseconds of a schedule in which faults happen.
pub(crate) const SAFETY_MS: u64 = 12_000;
/// Milliseconds after them in which all must be well again.
pub(crate) const HEALING_MS: u64 = 8_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Up(ToCoordinator),
    Down(ToClient),
}

/// For whom a command's answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum For {
    Part(u64),
    ClientKey(ReservationKey),
    ClientLook(ReservationKey),
    Takeover(Epoch),
    TakeoverPreempt(Epoch, ReservationKey),
    Fence(ReservationKey),
    Deed(Epoch, u64),
    Commit(Epoch),
    Nobody,
}

/// What a command on blocks must be allowed by.
#[derive(Debug, Clone)]
pub(crate) enum Audit {
    /// A client's, under its leases: blocks of the file and of the LUN.
    Direct {
        key: ReservationKey,
        file: FileId,
        pairs: Vec<(u64, u64)>,
        access: Access,
    },
    /// The coordinator's, of that epoch.
    Own {
        epoch: Epoch,
    },
    None,
}

#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) node: usize,
    pub(crate) boot: u32,
    pub(crate) whom: For,
    pub(crate) command: Command,
    pub(crate) audit: Audit,
    pub(crate) at_target: bool,
    /// The host has been told already that it failed.
    pub(crate) told: bool,
    /// Losses of the LUN's cache that whoever sent it knew of when it began.
    pub(crate) losses: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Deliver { from: usize, to: usize, message: Message },
    Arrive(u64),
    Land(u64),
    Reply { node: usize, boot: u32, whom: For, reply: Reply },
    Did { node: usize, boot: u32, epoch: Epoch, id: u64, outcome: DeedOutcome },
    Tick(usize),
    Guest(usize),
    View { node: usize, epoch: Epoch, coordinator: usize },
    Elected { node: usize, boot: u32, epoch: Epoch },
    Truth,
    Fault,
    Boot(usize),
    Mend(crate::faults::Fault),
}

/// Counts of what happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) faults: u64,
    pub(crate) mounts: u64,
    pub(crate) fences: u64,
    pub(crate) direct: u64,
    pub(crate) redirected: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) recalls: u64,
    pub(crate) refused: u64,
    pub(crate) taken: u64,
    pub(crate) full: u64,
    pub(crate) losses: u64,
}

pub(crate) struct World {
    pub(crate) now: u64,
    next: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub(crate) rng: Rng,
    pub(crate) lun: Lun,
    /// The highest epoch that has mounted the LUN, and where.
    pub(crate) epoch: Epoch,
    pub(crate) seat: usize,
    /// Leases of that epoch's coordinator; they outlive it until the next one has mounted.
    pub(crate) ledger: Vec<(FileId, LiveLease)>,
    pub(crate) flights: BTreeMap<u64, Flight>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) truth: (Epoch, usize),
    pub(crate) unhealthy_since: Option<u64>,
    pub(crate) oracle: Oracle,
    pub(crate) files: Vec<FileId>,
    pub(crate) doomed: Vec<FileId>,
    pub(crate) counter: u64,
    pub(crate) plant: Option<Plant>,
    pub(crate) limits: Limits,
    pub(crate) cuts: Vec<(usize, usize)>,
    pub(crate) loss_permille: u64,
    pub(crate) slow_lun: bool,
    pub(crate) healing: bool,
    pub(crate) problem: Option<String>,
    pub(crate) tally: Tally,
    pub(crate) trace: Option<String>,
}

pub(crate) fn id_of(node: usize) -> NodeId {
    NodeId::new(uuid::Uuid::from_u128(node as u128 + 1))
}

impl World {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let count = usize::try_from(rng.between(2, 4)).unwrap_or(2);
        let limits = Limits {
            recall: Duration::from_millis(300),
            silence: Duration::from_millis(500),
            resend: Duration::from_millis(60),
            grace: Duration::from_millis(400),
            growth_blocks: 4,
            asks_max: 8,
            queue_max: 16,
            leases_max: 64,
            opens_max: 8,
            ios_max: 16,
            unflushed_blocks_max: 24,
        };
        let files: Vec<FileId> = (1..=3).map(FileId).collect();
        let mut fs = Fs::mount(&Tables::default(), crate::lun::SIZE);
        for file in &files {
            fs.tables.files.insert(*file, Inode { blocks: 12, ..Inode::default() });
            fs.preallocate(*file, Span::new(0, 6));
        }
        let mut lun = Lun::new(fs.tables);
        lun.lies = plant == Some(Plant::LyingFlush);
        lun.silent = plant == Some(Plant::SilentLoss);
        let nodes = (0..count).map(|node| Node::new(node, &limits, 1)).collect();
        let mut world = Self {
            now: 0,
            next: 0,
            queue: BTreeMap::new(),
            rng,
            lun,
            epoch: Epoch(0),
            seat: 0,
            ledger: Vec::new(),
            flights: BTreeMap::new(),
            nodes,
            truth: (Epoch(0), 0),
            unhealthy_since: Some(0),
            oracle: Oracle::default(),
            files,
            doomed: Vec::new(),
            counter: 100,
            plant,
            limits,
            cuts: Vec::new(),
            loss_permille: 0,
            slow_lun: false,
            healing: false,
            problem: None,
            tally: Tally::default(),
            trace: trace.then(String::new),
        };
        for node in 0..count {
            world.at(1, Event::Tick(node));
            world.at(30, Event::Guest(node));
        }
        world.at(1, Event::Truth);
        world.at(600, Event::Fault);
        world
    }

    pub(crate) fn at(&mut self, delay: u64, event: Event) {
        self.next += 1;
        self.queue.insert((self.now + delay, self.next), event);
    }

    pub(crate) fn clock(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    pub(crate) fn say(&mut self, words: &dyn Fn() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{:>7}.{:03} {}", now / 1_000, now % 1_000, words());
        }
    }

    pub(crate) fn fail(&mut self, problem: String) {
        self.say(&|| format!("FAILED {problem}"));
        self.problem.get_or_insert(problem);
    }

    /// Runs the schedule; the problem, if one was found.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(((when, number), event)) = self.queue.pop_first() {
            if when > SAFETY_MS && !self.healing {
                self.heal();
            }
            if when > SAFETY_MS + HEALING_MS {
                break;
            }
            self.now = when;
            if let Some(until) = self.paused(&event) {
                self.queue.insert((until, number), event);
                continue;
            }
            self.handle(event);
            if let Some(problem) = self.problem.take() {
                return Err(problem);
            }
        }
        self.check_end();
        self.problem.take().map_or(Ok(()), Err)
    }

    /// What a node does that stands still waits; what its kernel and the LUN do goes on.
    fn paused(&self, event: &Event) -> Option<u64> {
        let node = match event {
            Event::Deliver { to: node, .. }
            | Event::Reply { node, .. }
            | Event::Did { node, .. }
            | Event::Tick(node)
            | Event::Guest(node)
            | Event::View { node, .. }
            | Event::Elected { node, .. } => *node,
            _ => return None,
        };
        let until = self.nodes[node].paused_until;
        (until > self.now).then_some(until)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Arrive(id) => self.arrive(id),
            Event::Land(id) => self.land(id),
            Event::Reply { node, boot, whom, reply } => {
                let host = &mut self.nodes[node];
                host.outstanding = host.outstanding.saturating_sub(1);
                if host.up && host.boot == boot {
                    self.reply(node, whom, reply);
                }
                self.drained(node);
            }
            Event::Did { node, boot, epoch, id, outcome } => {
                let host = &self.nodes[node];
                if host.boot == boot
                    && host.coordinator.as_ref().is_some_and(|it| it.epoch == epoch)
                {
                    self.coordinate(node, CoordinatorInput::Did { id, outcome });
                }
            }
            Event::Tick(node) => {
                if self.nodes[node].up {
                    self.serve(node, ClientInput::Tick);
                    self.coordinate(node, CoordinatorInput::Tick);
                    self.drained(node);
                }
                self.at(20, Event::Tick(node));
            }
            Event::Guest(node) => self.guest(node),
            Event::View { node, epoch, coordinator } => self.view(node, epoch, coordinator),
            Event::Elected { node, boot, epoch } => {
                if self.nodes[node].up && self.nodes[node].boot == boot {
                    self.elected(node, epoch);
                }
            }
            Event::Truth => self.watch_over(),
            Event::Fault => self.fault(),
            Event::Boot(node) => self.boot(node),
            Event::Mend(fault) => self.mend(fault),
        }
    }

    // ---- messages

    pub(crate) fn post(&mut self, from: usize, to: usize, message: Message) {
        if from == to {
            return self.at(1, Event::Deliver { from, to, message });
        }
        if self.cuts.contains(&(from, to)) || self.rng.permille(self.loss_permille) {
            return;
        }
        let far = if !self.healing && self.rng.permille(40) { 900 } else { 12 };
        let copies = if self.rng.permille(50) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.rng.between(1, far);
            self.at(delay, Event::Deliver { from, to, message: message.clone() });
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        if !self.nodes[to].up {
            return;
        }
        self.say(&|| format!("n{to} <- n{from} {message:?}"));
        match message {
            Message::Up(message) => {
                let from = id_of(from);
                self.coordinate(to, CoordinatorInput::Message { from, message });
            }
            Message::Down(message) => {
                if let (Some(Plant::ReleaseEarly), ToClient::Recall { session, file, upto, span }) =
                    (self.plant, &message)
                {
                    let (session, file, upto, span) = (*session, *file, *upto, *span);
                    let early = ToCoordinator::Released { session, file, upto, span };
                    self.post(to, from, Message::Up(early));
                }
                self.serve(to, ClientInput::Message { from: id_of(from), message });
            }
        }
    }

    // ---- commands

    pub(crate) fn command(&mut self, node: usize, whom: For, command: Command, audit: Audit) {
        self.next += 1;
        let id = self.next;
        let boot = self.nodes[node].boot;
        self.nodes[node].outstanding += 1;
        let losses = self.known_losses(node, &whom);
        let flight =
            Flight { node, boot, whom, command, audit, at_target: false, told: false, losses };
        self.flights.insert(id, flight);
        let long = if self.slow_lun { 500 } else { 4 };
        let delay = self.rng.between(0, long);
        self.at(delay, Event::Arrive(id));
    }

    fn arrive(&mut self, id: u64) {
        let Some(flight) = self.flights.get(&id).cloned() else { return };
        let node = flight.node;
        let late_write = matches!(flight.command, Command::Write(_));
        if !self.nodes[node].path {
            if self.rng.permille(500) {
                return self.at(40, Event::Arrive(id));
            }
            // The host gives up. The command may be in the fabric all the same.
            self.answer(id, Reply::Failed);
            if !late_write || self.rng.permille(600) || !self.lun.admits(node, &flight.command) {
                self.flights.remove(&id);
                return;
            }
        } else if !self.lun.admits(node, &flight.command) {
            self.tally.refused += 1;
            self.say(&|| format!("n{node} refused {:?}", flight.command));
            self.answer(id, Reply::Failed);
            self.flights.remove(&id);
            return;
        }
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.at_target = true;
        }
        let slow = flight.told || self.slow_lun || (!self.healing && self.rng.permille(30));
        let long = if slow { 600 } else { 4 };
        let delay = self.rng.between(1, long);
        self.at(delay, Event::Land(id));
    }

    fn answer(&mut self, id: u64, reply: Reply) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if flight.told {
            return;
        }
        flight.told = true;
        let (node, boot, whom) = (flight.node, flight.boot, flight.whom.clone());
        let delay = self.rng.between(0, 2);
        self.at(delay, Event::Reply { node, boot, whom, reply });
    }

    /// What the sender of a command took for known when its session or reign began.
    fn known_losses(&self, node: usize, whom: &For) -> u64 {
        let host = &self.nodes[node];
        match whom {
            For::Part(_) => host.client_losses,
            For::Deed(..) | For::Commit(_) | For::Takeover(_) => host.reign_losses,
            _ => self.lun.losses(node),
        }
    }

    fn land(&mut self, id: u64) {
        let Some(flight) = self.flights.get(&id).cloned() else { return };
        if flight.command.is_of_blocks() && flight.losses != self.lun.losses(flight.node) {
            // "The power was off": told once to each that has not heard it, and nothing is done.
            self.tally.refused += 1;
            self.answer(id, Reply::Failed);
            self.flights.remove(&id);
            return;
        }
        self.audit(&flight);
        if !matches!(flight.command, Command::Commit(_) | Command::Load) {
            self.say(&|| format!("n{} lands {:?} {:?}", flight.node, flight.command, flight.audit));
        }
        let (reply, victim) = self.lun.perform(flight.node, &flight.command);
        if let Command::Preempt(key) = flight.command {
            self.tally.fences += 1;
            self.say(&|| format!("n{} preempts {key:?} of {victim:?}", flight.node));
        }
        if let Some(victim) = victim {
            // Aborted: what was let in and has not had its effect.
            let mut ids = self.flights.iter().filter(|(_, it)| it.node == victim && it.at_target);
            let ids: Vec<u64> = ids.by_ref().map(|(id, _)| *id).collect();
            for other in ids.into_iter().filter(|other| *other != id) {
                self.answer(other, Reply::Failed);
                self.flights.remove(&other);
            }
        }
        self.answer(id, reply);
        self.flights.remove(&id);
    }

    fn audit(&mut self, flight: &Flight) {
        let node = flight.node;
        match &flight.audit {
            Audit::None => {}
            Audit::Own { epoch } => {
                if matches!(flight.command, Command::Load) {
                    return self.audit_mount(node, *epoch);
                }
                if *epoch != self.epoch || self.seat != node {
                    self.fail(format!(
                        "invariant 14: n{node} works as coordinator of {epoch:?}, but n{} has \
                         mounted for {:?}: {:?}",
                        self.seat, self.epoch, flight.command
                    ));
                }
            }
            Audit::Direct { key, file, pairs, access } => {
                if key.epoch() < self.epoch {
                    self.fail(format!("invariant 15: n{node} lands {key:?} in {:?}", self.epoch));
                }
                for (block, device) in pairs {
                    self.audit_block(node, *key, *file, (*block, *device), *access);
                }
            }
        }
    }

    fn audit_mount(&mut self, node: usize, epoch: Epoch) {
        if epoch <= self.epoch {
            self.fail(format!("invariant 14: n{node} mounts for {epoch:?} after {:?}", self.epoch));
        }
        let older = self.lun.keys.values().find(|key| key.epoch() < epoch).copied();
        if let Some(key) = older.filter(|_| self.plant != Some(Plant::NoLook)) {
            // Such a key may only be of one that has registered late and will take it back; that it
            // does no harm is what the audit of each command shows.
            self.say(&|| format!("{key:?} is there while {epoch:?} mounts"));
        }
        self.epoch = epoch;
        self.seat = node;
        self.ledger.clear();
        self.tally.mounts += 1;
    }

    fn audit_block(
        &mut self,
        node: usize,
        key: ReservationKey,
        file: FileId,
        (block, device): (u64, u64),
        access: Access,
    ) {
        let covered = self.ledger.iter().any(|(of, lease)| {
            *of == file
                && lease.session.key() == key
                && lease.access >= access
                && lease.extent.span.contains(block)
                && lease.extent.device + (block - lease.extent.span.start) == device
        });
        if !covered {
            self.fail(format!(
                "invariant 16: n{node} with {key:?} lands on block {device}, for block {block} of \
                 {file:?}, without a lease ({access:?})"
            ));
        }
        let tables = self.tables();
        let inode = tables.files.get(&file);
        let place = inode.and_then(|inode| inode.map.get(&block)).copied();
        if place.is_none_or(|place| place.device != device || !place.written) {
            self.fail(format!(
                "invariants 17, 21: n{node} lands on block {device} for block {block} of {file:?}, \
                 which is at {place:?}"
            ));
        }
        let writer = inode.and_then(|inode| inode.writer).map(|(node, _)| node);
        if access == Access::Write && writer != Some(id_of(node)) {
            self.fail(format!(
                "single writer: n{node} writes {file:?}, whose writer is {writer:?}"
            ));
        }
    }

    /// The tables as the coordinator has them, or as they are on the LUN.
    pub(crate) fn tables(&self) -> Rc<Tables> {
        let coordinator = self.nodes[self.seat].coordinator.as_ref();
        match coordinator.filter(|it| it.epoch == self.epoch) {
            Some(coordinator) => Rc::new(coordinator.fs.tables.clone()),
            None => self.lun.tables.clone(),
        }
    }

    /// Blocks lose their owner: none of them may be leased.
    pub(crate) fn audit_free(&mut self, node: usize, blocks: &[u64]) {
        let epoch = self.nodes[node].coordinator.as_ref().map(|it| it.epoch);
        if epoch != Some(self.epoch) || node != self.seat {
            // One that is fenced works in its memory only.
            return;
        }
        for block in blocks {
            let leased = self.ledger.iter().find(|(_, it)| it.extent.on_device().contains(*block));
            if let Some((file, lease)) = leased {
                let words = format!(
                    "invariant 17: block {block} is freed under a lease on {file:?}: {lease:?}"
                );
                return self.fail(words);
            }
        }
    }

    /// All must be well, and each block of each file what it must be.
    fn check_end(&mut self) {
        let tables = self.tables();
        for file in self.files.clone() {
            if self.doomed.contains(&file) {
                continue;
            }
            let Some(inode) = tables.files.get(&file) else {
                self.fail(format!("{file:?} is gone"));
                return;
            };
            let mut wrong = None;
            for (at, allowed) in self.oracle.file(file) {
                let place = inode.map.get(&at).filter(|place| place.written);
                let value = place.map_or(0, |place| self.lun.value(place.device));
                if !allowed.contains(&value) {
                    wrong = Some(format!(
                        "at the end: block {at} of {file:?} is {value:x}, and may be {allowed:x?}"
                    ));
                }
            }
            if let Some(wrong) = wrong {
                self.fail(wrong);
            }
        }
        for node in 0..self.nodes.len() {
            let host = &self.nodes[node];
            let stuck = host.ios.values().map(|io| io.begun).min();
            if let Some(begun) = stuck.filter(|begun| self.now - begun > 3_000) {
                self.fail(format!("liveness: a request of n{node} waits since {begun} ms"));
            }
            let seat = self.nodes[node].coordinator.is_some();
            if !seat && !self.nodes[node].client.is_direct() {
                self.fail(format!("invariant 31: n{node} has not gone direct again"));
            }
        }
    }

    pub(crate) fn client_of(&self, node: usize, boot: u32) -> Client {
        Client::new(id_of(node), self.limits.clone(), u64::from(boot) << 32)
    }
}
