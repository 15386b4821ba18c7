//! The law of the lease against a whole small world: skewed clocks, pauses of every party, lost,
//! delayed, reordered and duplicated messages, changes of leader, of watchdog and of fence devices,
//! guards that are killed and start again, nodes that boot.
//!
//! The invariant, looked at in every step: **a machine that runs was started in the epoch that the
//! cluster has now**. A takeover raises the epoch, so a machine that still runs then breaks it.
//!
//! Each planted fault must be found, else this test is worth nothing.

use std::time::Duration;

use model::NodeId;

use super::BootTime;
use super::Decision;
use super::Desk;
use super::EndAll;
use super::Grant;
use super::Held;
use super::Holding;
use super::Known;
use super::LeaseAnswer;
use super::LeaseRequest;
use super::LeaseSettings;
use super::LeaseTerms;
use super::NodeLease;
use super::NotTaken;
use super::Stage;
use super::Takeover;

/// Real time between two looks at the world.
const STEP_MS: u64 = 50;
/// Steps of one world: five minutes.
const STEPS: u64 = 6_000;
/// Most messages under way.
const FLIGHT_MAX: usize = 64;

/// Worlds within which each planted fault must show.
const PLANT_SEEDS: u64 = 200;

/// A mistake that somebody could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// The lease is counted from the answer.
    CountFromAnswer,
    /// A new leader believes that no lease was given before it.
    NoWaitAfterElection,
    /// A guard takes grants in any order.
    AnyOrder,
    /// Time proves something for leases that do not end by themselves.
    TermsUnasked,
    /// A higher epoch is taken without ending machines.
    KeepMachines,
    /// A clock that is slower by two thirds: freezing at 2/3 makes good for a third.
    BadClock,
    /// A restarted guard begins open.
    ForgetfulGuard,
    /// Watchdog left out of the arithmetic, with a guard that hangs.
    NoWatchdogInTakeover,
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in one of `n` cases.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Mostly short, sometimes very long.
    fn delay_ms(&mut self) -> u64 {
        match self.below(10) {
            0..=6 => self.below(100),
            7 => self.below(4_000),
            8 => self.below(12_000),
            _ => self.below(40_000),
        }
    }
}

/// A clock: its rate in parts of ten thousand, and where it began.
#[derive(Clone, Copy)]
struct Clock {
    rate: u64,
    start: u64,
}

impl Clock {
    fn at(self, real_ms: u64) -> BootTime {
        BootTime::from_nanos((self.start + real_ms * self.rate / 10_000) * 1_000_000)
    }
}

/// Real time, and to whom what.
enum Message {
    Request { request: LeaseRequest, sent: BootTime, to: usize, boot: u64 },
    Answer { answer: LeaseAnswer, sent: BootTime, boot: u64 },
}

struct World {
    rng: Rng,
    plant: Plant,
    now: u64,
    settings: LeaseSettings,
    // The replicated state, as the newest leader has it.
    epoch: u64,
    fenced: bool,
    /// A reservation keeps the node from the disks.
    cut_off: bool,
    terms: Option<LeaseTerms>,
    provable: bool,
    // Leaders: each host has a desk from its last term.
    leader: usize,
    desks: Vec<(Desk, Clock)>,
    term: u64,
    // The node.
    clock: Clock,
    boot: u64,
    guard: NodeLease,
    stored: Held,
    /// The time of the device that the guard was started with; and the guard's own pauses.
    device_ms: u64,
    guard_back: u64,
    daemon_back: u64,
    /// What is sent before this is lost; what is under way arrives.
    cut_until: u64,
    cut_from: u64,
    next_request: u64,
    last_pet: BootTime,
    armed: Option<Duration>,
    frozen: bool,
    /// Epoch in which the running machine was started.
    machine: Option<u64>,
    flight: Vec<(u64, Message)>,
    /// How rare faults are, one in so many steps: each world has its own mix.
    rare: [u64; 6],
    takeovers: u64,
    starts: u64,
    kills: u64,
}

impl World {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut rng = Rng(seed);
        let watchdog = rng.one_in(2) || plant == Plant::NoWatchdogInTakeover;
        let settings = LeaseSettings {
            lease: Duration::from_secs(6 + rng.below(6)),
            guard_margin: Duration::from_secs(2 + rng.below(4)),
            takeover: None,
        };
        // Together at most 1 % apart.
        let node_rate = if plant == Plant::BadClock { 3_300 } else { 9_950 + rng.below(101) };
        let clock = Clock { rate: node_rate, start: rng.below(1_000_000) };
        let rare = [300, 1_200, 400, 1_200, 60, 3_000].map(|n| n << rng.below(4));
        let mut world = Self {
            plant,
            rare,
            now: 0,
            settings,
            epoch: 0,
            fenced: false,
            cut_off: false,
            terms: None,
            provable: rng.one_in(4),
            leader: 0,
            desks: Vec::new(),
            term: 0,
            clock,
            boot: 0,
            guard: NodeLease::default(),
            stored: Held::default(),
            device_ms: if watchdog { 4_000 } else { 0 },
            guard_back: 0,
            daemon_back: 0,
            cut_until: 0,
            cut_from: u64::MAX,
            next_request: 0,
            last_pet: clock.at(0),
            armed: None,
            frozen: true,
            machine: None,
            flight: Vec::new(),
            takeovers: 0,
            starts: 0,
            kills: 0,
            rng,
        };
        for _ in 0..3 {
            let rate = 9_950 + world.rng.below(101);
            let clock = Clock { rate, start: world.rng.below(1_000_000) };
            world.desks.push((Desk::new(settings, 0, clock.at(0)), clock));
        }
        world.elect(0);
        world
    }

    fn elect(&mut self, who: usize) {
        self.term += 1;
        self.leader = who;
        let (desk, clock) = &mut self.desks[who];
        let elected = match self.plant {
            Plant::NoWaitAfterElection => BootTime::default(),
            _ => clock.at(self.now),
        };
        *desk = Desk::new(self.settings, self.term, elected);
    }

    fn known(&self) -> Known {
        Known {
            epoch: self.epoch,
            fenced: self.fenced,
            terms: self.terms,
            alone: false,
            provable: self.provable,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.faults();
        self.deliver();
        self.node();
        self.take_over();
        self.now += STEP_MS;
        self.hardware();
        match self.machine {
            Some(epoch) if !self.frozen && !self.cut_off && epoch != self.epoch => Err(format!(
                "at {} ms a machine of epoch {epoch} runs, and the cluster is at {}",
                self.now, self.epoch
            )),
            _ => Ok(()),
        }
    }

    fn faults(&mut self) {
        let [elect, daemon, guard, cut, provable, boot] = self.rare;
        if self.rng.one_in(elect) {
            let who = usize::try_from(self.rng.below(3)).unwrap();
            self.elect(who);
        }
        if self.rng.one_in(daemon) {
            self.daemon_back = self.now + self.rng.below(60_000);
        }
        if self.rng.one_in(guard) && self.guard_back <= self.now {
            // Without a watchdog a guard must be back within the margin; with one, it need not.
            let margin = u64::try_from(self.settings.guard_margin.as_millis()).unwrap();
            let most = if self.device_ms > 0 && self.rng.one_in(3) {
                60_000
            } else {
                margin - 4 * STEP_MS
            };
            self.guard_back = self.now + self.rng.below(most);
            // Killed and started again, not only paused.
            if self.rng.one_in(2) {
                let held = match self.plant {
                    Plant::ForgetfulGuard => {
                        self.frozen = false;
                        Held { grant: None, ..self.stored.clone() }
                    }
                    _ => self.stored.clone(),
                };
                self.guard = NodeLease::new(held);
                if self.device_ms > 0 {
                    self.device_ms = 1_000 * (2 + self.rng.below(8));
                }
            }
        }
        if self.rng.one_in(cut) {
            self.cut_until = self.now + self.rng.below(60_000);
        }
        if self.rng.one_in(provable) {
            self.provable = !self.provable;
            // A cut soon after a change is where the order of messages matters most.
            if self.rng.one_in(8) {
                self.cut_from = self.now + self.rng.below(8_000);
            }
        }
        if self.cut_from <= self.now {
            self.cut_from = u64::MAX;
            self.cut_until = self.now + self.rng.below(60_000);
        }
        if self.rng.one_in(boot) {
            self.boot();
        }
    }

    fn boot(&mut self) {
        self.boot += 1;
        self.machine = None;
        self.frozen = true;
        self.armed = None;
        self.guard = NodeLease::default();
        self.stored = Held::default();
        self.guard_back = self.now + 500;
        self.daemon_back = self.now + 1_000;
    }

    /// The watchdog fires whatever the guard does.
    fn hardware(&mut self) {
        if let Some(time) = self.armed
            && self.clock.at(self.now).since(self.last_pet) >= time
        {
            self.boot();
        }
    }

    fn send(&mut self, message: impl Fn() -> Message) {
        for _ in 0..=u64::from(self.rng.one_in(6)) {
            let lost = self.now < self.cut_until || self.rng.one_in(8);
            if self.flight.len() < FLIGHT_MAX && !lost {
                let at = self.now + self.rng.delay_ms();
                self.flight.push((at, message()));
            }
        }
    }

    fn deliver(&mut self) {
        let mut due: Vec<Message> = Vec::new();
        let mut index = 0;
        while index < self.flight.len() {
            if self.flight[index].0 <= self.now {
                due.push(self.flight.swap_remove(index).1);
            } else {
                index += 1;
            }
        }
        for message in due {
            match message {
                Message::Request { request, sent, to, boot } => {
                    // Who is not the leader gets no quorum behind it, and answers nothing.
                    if to == self.leader {
                        self.lead(&request, sent, boot);
                    }
                }
                Message::Answer { answer, sent, boot } if boot == self.boot => {
                    self.answered(&answer, sent);
                }
                // Its daemon is no more.
                Message::Answer { .. } => {}
            }
        }
    }

    fn lead(&mut self, request: &LeaseRequest, sent: BootTime, boot: u64) {
        // Two records may have to be written at most: returned, then terms.
        for _ in 0..4 {
            let known = self.known();
            let (desk, clock) = &mut self.desks[self.leader];
            let answer = match desk.decide(clock.at(self.now), known, request) {
                Decision::Grant(grant) => LeaseAnswer::Granted { grant },
                Decision::Fenced { epoch } => LeaseAnswer::Fenced { epoch },
                Decision::Refuse(why) => LeaseAnswer::Refused { why: why.to_string() },
                Decision::WriteTerms(terms) => {
                    self.terms = terms;
                    continue;
                }
                Decision::WriteReturn { epoch } => {
                    assert_eq!(epoch, self.epoch);
                    self.fenced = false;
                    self.cut_off = false;
                    continue;
                }
            };
            self.send(|| Message::Answer { answer: answer.clone(), sent, boot });
            return;
        }
        panic!("a desk that never decides");
    }

    fn answered(&mut self, answer: &LeaseAnswer, sent: BootTime) {
        if self.guard_back > self.now || self.daemon_back > self.now {
            return;
        }
        let now = self.clock.at(self.now);
        let populated = self.machine.is_some();
        match answer {
            LeaseAnswer::Granted { grant } => {
                let sent = if self.plant == Plant::CountFromAnswer { now } else { sent };
                if self.plant == Plant::AnyOrder {
                    let mut held = self.guard.held().clone();
                    held.grant = None;
                    let other = self.guard.held().clone();
                    self.guard = NodeLease::new(held);
                    if self.guard.take(now, Grant { lease: *grant, sent }, populated).is_err() {
                        self.guard = NodeLease::new(other);
                    }
                    self.store();
                    return;
                }
                if self.plant == Plant::KeepMachines {
                    let mut held = self.guard.held().clone();
                    held.epoch = held.epoch.map(|_| grant.epoch);
                    self.guard = NodeLease::new(held);
                }
                let taken = self.guard.take(now, Grant { lease: *grant, sent }, populated);
                if let Err(NotTaken::EndMachinesFirst { epoch }) = taken {
                    self.guard.end_all(epoch, populated);
                }
            }
            LeaseAnswer::Fenced { epoch } => {
                if self.plant == Plant::KeepMachines {
                    let mut held = self.guard.held().clone();
                    held.epoch = Some(*epoch);
                    self.guard = NodeLease::new(held);
                } else {
                    let before = self.guard.held().epoch;
                    let done = self.guard.end_all(*epoch, populated);
                    assert!(done != EndAll::Done || before == Some(*epoch) || !populated);
                }
            }
            LeaseAnswer::Refused { .. } => {}
        }
        self.store();
    }

    /// A guard stores what it holds before it says so or acts on it.
    fn store(&mut self) {
        self.stored = self.guard.held().clone();
    }

    fn node(&mut self) {
        let now = self.clock.at(self.now);
        if self.guard_back <= self.now {
            let wanted = self.guard.wanted(now, self.machine.is_some());
            self.store();
            self.frozen = wanted.frozen;
            if wanted.kill && self.machine.take().is_some() {
                self.kills += 1;
            }
            let time = wanted.watchdog.filter(|_| self.device_ms > 0);
            if self.armed.is_none() && time.is_some() {
                self.last_pet = now;
            }
            self.armed = time;
            if wanted.pet {
                self.last_pet = now;
            }
            let may = self.guard.held().grant.is_some_and(|grant| grant.may_start(now));
            let up = self.daemon_back <= self.now;
            if up && may && wanted.stage == Stage::Open && self.machine.is_none() {
                let epoch = self.guard.held().epoch.unwrap();
                self.machine = Some(epoch);
                self.starts += 1;
            }
        }
        if self.daemon_back <= self.now && self.guard_back <= self.now {
            if self.next_request > self.now {
                return;
            }
            let every = u64::try_from(self.settings.renew_every().as_millis()).unwrap();
            self.next_request = self.now + every;
            let held = self.guard.held();
            let request = LeaseRequest {
                node: NodeId::new(uuid::Uuid::from_u128(1)),
                epoch: held.epoch,
                holding: held
                    .grant
                    .map(|grant| Holding { key: grant.lease.key, mode: grant.lease.mode }),
                watchdog_ms: self.device_ms,
            };
            let to = if self.rng.one_in(5) {
                usize::try_from(self.rng.below(3)).unwrap()
            } else {
                self.leader
            };
            let boot = self.boot;
            self.send(|| Message::Request { request, sent: now, to, boot });
        }
    }

    fn take_over(&mut self) {
        if self.fenced || !self.rng.one_in(20) {
            return;
        }
        let mut known = self.known();
        let node = NodeId::new(uuid::Uuid::from_u128(1));
        if self.plant == Plant::TermsUnasked && known.terms.is_none() {
            known.terms = Some(self.settings.terms(Duration::from_millis(self.device_ms)));
        }
        if self.plant == Plant::NoWatchdogInTakeover
            && let Some(terms) = &mut known.terms
        {
            terms.watchdog_ms = 0;
        }
        let (desk, clock) = &mut self.desks[self.leader];
        desk.close(node);
        if let Takeover::Over { .. } = desk.takeover(clock.at(self.now), node, known) {
            self.epoch += 1;
            self.fenced = true;
            self.takeovers += 1;
        } else if known.provable && self.rng.one_in(100) {
            // A fence device says off, and is right; or its disks are taken from it, until it has
            // returned.
            if self.rng.one_in(2) {
                self.boot();
            } else {
                self.cut_off = true;
            }
            self.epoch += 1;
            self.fenced = true;
            self.takeovers += 1;
        }
        self.desks[self.leader].0.open(node);
    }
}

fn run(seed: u64, plant: Plant) -> Result<World, String> {
    let mut world = World::new(seed, plant);
    for _ in 0..STEPS {
        world.step().map_err(|error| format!("seed {seed}: {error}"))?;
    }
    Ok(world)
}

/// Worlds for one run of the test; `MUSTER_LEASE_SEEDS` runs another number.
fn seeds() -> u64 {
    std::env::var("MUSTER_LEASE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600)
}

#[test]
fn no_lease_is_called_over_while_a_guard_lets_machines_run() {
    let (mut takeovers, mut starts, mut kills) = (0, 0, 0);
    for seed in 0..seeds() {
        let world = run(seed, Plant::Nothing).unwrap_or_else(|error| panic!("{error}"));
        takeovers += world.takeovers;
        starts += world.starts;
        kills += world.kills;
    }
    println!("takeovers {takeovers}, starts {starts}, kills {kills}");
    // A world in which nothing happens proves nothing.
    assert!(takeovers > seeds() && kills > seeds() && starts > 2 * seeds());
}

#[test]
fn every_planted_fault_is_found() {
    for plant in [
        Plant::CountFromAnswer,
        Plant::NoWaitAfterElection,
        Plant::AnyOrder,
        Plant::TermsUnasked,
        Plant::KeepMachines,
        Plant::BadClock,
        Plant::ForgetfulGuard,
        Plant::NoWatchdogInTakeover,
    ] {
        // Needs three rare things within one lease.
        let most = if plant == Plant::AnyOrder { 10 * PLANT_SEEDS } else { PLANT_SEEDS };
        let found = (0..most).find(|seed| run(*seed, plant).is_err());
        println!("{plant:?}: found by seed {found:?}");
        assert!(found.is_some(), "{plant:?} was not found");
    }
}
