//! The world of one schedule: hosts, network, time.
//!
//! ```text
//!   turn (20 ms):  faults -> power, restarts -> letters that are due -> each host's turn
//!                  -> letters that were sent -> clients -> invariants
//! ```

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use cluster::fence::Agents;
use cluster::lease::LeaseSettings;
use cluster::raft::PeerMethod;
use cluster::simulation::Loss;
use cluster::witness::memory;
use model::Command;
use model::FenceReason;
use model::NodeMode;
use node::simulation::log_cleared;
use node::truth::Truth;
use sim::rng::Rng;
use uuid::Uuid;

use crate::chapters::Chapters;
use crate::clients::Clients;
use crate::faults;
use crate::faults::AIM_MAX;
use crate::faults::Aim;
use crate::faults::Fault;
use crate::faults::Timed;
use crate::fences::Devices;
use crate::fences::Mood;
use crate::fences::Plugs;
use crate::ground::Ground;
use crate::ground::Tally;
use crate::ground::lock;
use crate::host::Clock;
use crate::host::Host;
use crate::host::Settings;
use crate::host::TICK_MS;
use crate::host::Volume;
use crate::host::id_of;
use crate::host::proposal;
use crate::invariants::Invariants;
use crate::movers::Movers;
use crate::plant::Plant;
use crate::setup;
use crate::setup::Plan;
use crate::staff::Deed;
use crate::staff::Staff;
use crate::vault::Vault;
use crate::wire::Content;
use crate::wire::Letter;
use crate::wire::Wire;

/// How long the cluster may take to come about.
const FOUNDING_MAX: u64 = 60_000;

/// How long faults go on.
const FAULTS: u64 = 36_000;

/// Everything is well again so long after the last fault, at most: a failed fence device is asked
/// again after 30 s, then a lease is waited for, then machines start.
const HEALING_MAX: u64 = 120_000;

/// Where VMs go back to a node, the time of day is so much later when the faults begin: a leader does not
/// trust a node that has begun lately.
const LATER: i64 = 120_000;

/// When a daemon that has ended by itself is started again, in milliseconds.
const RESTART: u64 = 1_000;

/// Of a thousand schedules so many are of two nodes and a witness.
const WITNESSED: u64 = 150;

/// Letters under way; more are lost.
const FLIGHT_MAX: usize = 20_000;

/// What a schedule is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) nodes: Option<usize>,
    pub(crate) plant: Option<Plant>,
    pub(crate) trace: bool,
}

/// How a schedule went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) error: Option<String>,
    pub(crate) lines: u64,
    pub(crate) digest: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) answered: u64,
    pub(crate) unknown: u64,
    pub(crate) takeovers: u64,
    pub(crate) handovers: u64,
    pub(crate) moves: u64,
    pub(crate) tally: Tally,
    pub(crate) faults: u64,
    pub(crate) tail: Vec<String>,
}

/// What is wrong with the network.
#[derive(Default)]
struct Weather {
    /// Cuts, from and to, and until when.
    cuts: Vec<(usize, usize, u64)>,
    loss: (u64, u64),
    late: (u64, u64),
}

pub(crate) struct World {
    seed: u64,
    rng: Rng,
    ground: Arc<Ground>,
    plan: Plan,
    settings: Settings,
    hosts: Vec<Host>,
    wire: Arc<Wire>,
    flight: BTreeMap<(u64, u64), Letter>,
    letters: u64,
    weather: Weather,
    plugs: Arc<Mutex<Plugs>>,
    /// When what starts again: power, daemon, guard of a host.
    power_at: BTreeMap<usize, u64>,
    daemon_at: BTreeMap<usize, u64>,
    guard_at: BTreeMap<usize, u64>,
    disk_at: BTreeMap<usize, u64>,
    /// When a full disk has room again.
    room_at: BTreeMap<usize, u64>,
    /// When which host reaches the witness again; all do, by the number that no host has.
    vault_at: BTreeMap<usize, u64>,
    /// Who leads, and who does not hear of it.
    lagging: Option<(usize, usize)>,
    mood_until: u64,
    /// No fault before then.
    calm_until: u64,
    faults: Vec<Timed>,
    next_fault: usize,
    volume: Volume,
    clients: Option<Clients>,
    movers: Option<Movers>,
    staff: Option<Staff>,
    invariants: Invariants,
}

/// Runs one schedule.
pub(crate) fn run(options: &Options) -> Outcome {
    let mut world = World::new(options);
    let error = world.go().err();
    let (lines, digest) = world.ground.digest();
    let (answered, unknown) =
        world.clients.as_ref().map_or((0, 0), |clients| (clients.answered, clients.unknown));
    let outcome = Outcome {
        error,
        lines,
        digest,
        simulated_ms: world.ground.now(),
        answered,
        unknown,
        takeovers: world.invariants.takeovers(),
        handovers: world.invariants.handovers(),
        moves: world.invariants.moves(),
        tally: world.ground.tallied(),
        faults: world.next_fault as u64,
        tail: world.ground.tail(),
    };
    for host in &mut world.hosts {
        host.kill(Loss::Process);
    }
    cluster::simulation::set_clocks(None);
    outcome
}

impl World {
    fn new(options: &Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let usual = if rng.permille(750) { 3 } else { 5 };
        // What is wrong with a witness shows where there is one.
        let needed = options.plant == Some(Plant::CarelessWitness);
        // By numbers of its own: the other schedules stay what they were, and what they are known to find.
        let chosen = Rng::new(options.seed ^ u64::from_be_bytes(*b"witness?")).permille(WITNESSED);
        let witness = options.nodes.is_none() && (chosen || needed);
        let nodes = options.nodes.unwrap_or(if witness { 2 } else { usual });
        let devices = rng.permille(400);
        let chapters = Chapters::of(options.seed);
        let plan = Plan { nodes, vms: 3, devices, witness, chapters };
        let ground = Arc::new(Ground::new(rng.fork(), options.plant, options.trace));
        let lease = LeaseSettings {
            lease: Duration::from_millis(rng.between(8_000, 10_000)),
            guard_margin: Duration::from_millis(rng.between(2_000, 4_000)),
            takeover: None,
        };
        let lost_after = Duration::from_millis(rng.between(5_000, 15_000));
        let mut clocks = rng.fork();
        let hosts: Vec<Host> = (0..nodes)
            .map(|index| {
                // Together at most 1 % apart.
                let rate = clocks.between(9_950, 10_050);
                let clock = Clock { rate, start: clocks.below(1_000_000), wall: 0 };
                Host::new(index, &ground, clock)
            })
            .collect();
        let plugs = Plugs { mood: Mood::Works, on: vec![true; nodes], wishes: Vec::new() };
        let plugs = Arc::new(Mutex::new(plugs));
        let agents = Devices { ground: ground.clone(), plugs: plugs.clone() };
        let wire = Arc::new(Wire::new((0..nodes).map(id_of).collect()));
        let vault = Arc::new(Vault::new(&ground, nodes));
        let agents = Agents::instead(Arc::new(agents));
        Self {
            seed: options.seed,
            ground,
            plan,
            invariants: Invariants::new(witness.then_some(&vault)),
            settings: Settings { lease, lost_after, agents, vault },
            hosts,
            wire,
            flight: BTreeMap::new(),
            letters: 0,
            weather: Weather::default(),
            plugs,
            power_at: BTreeMap::new(),
            daemon_at: BTreeMap::new(),
            guard_at: BTreeMap::new(),
            disk_at: BTreeMap::new(),
            room_at: BTreeMap::new(),
            vault_at: BTreeMap::new(),
            lagging: None,
            mood_until: 0,
            calm_until: 0,
            faults: Vec::new(),
            next_fault: 0,
            volume: Volume::default(),
            clients: None,
            movers: None,
            staff: None,
            rng,
        }
    }

    fn go(&mut self) -> Result<(), String> {
        let Plan { nodes, vms, devices, witness, chapters } = self.plan;
        let lease = self.settings.lease;
        self.ground.trace(
            "-",
            &format!(
                "{nodes} nodes, {vms} VMs, devices {devices}, witness {witness}, lease {} ms, \
                 margin {} ms, {chapters:?}",
                lease.lease.as_millis(),
                lease.guard_margin.as_millis()
            ),
        );
        self.found()?;
        let from = self.ground.now();
        self.ground.trace("-", "phase safety");
        self.faults = faults::plan(&mut self.rng, self.plan, from + 500, from + FAULTS);
        self.faults.extend(chapters.faults(self.seed, self.plan, from + 500, from + FAULTS));
        self.faults.sort_by_key(|(at, _, _)| *at);
        if chapters.failback {
            self.hosts.iter_mut().for_each(|host| host.clock.wall += LATER);
        }
        self.clients = Some(Clients::new(self.rng.fork(), self.ground.clone()));
        self.movers = Some(Movers::new(self.rng.fork(), self.ground.clone(), chapters.quick));
        if chapters.staff && !witness {
            let rng = Rng::new(self.seed ^ u64::from_be_bytes(*b"staff???"));
            self.staff = Some(Staff::new(rng, self.ground.clone()));
        }
        while self.ground.now() < from + FAULTS + 2_000 {
            self.turn()?;
        }
        self.heal()?;
        self.check_history()
    }

    /// Starts the hosts and makes them a cluster with running VMs.
    fn found(&mut self) -> Result<(), String> {
        for host in &mut self.hosts {
            host.disk.set_delay(Duration::from_millis(self.rng.between(1, 8)));
            lock(&host.body).start_guard();
            host.start(&self.wire, &self.settings);
        }
        let mut begun = false;
        while self.ground.now() < FOUNDING_MAX {
            self.turn()?;
            if !begun && let Some(daemon) = self.hosts[0].daemon() {
                begun = true;
                let (plan, vault) = (self.plan, self.settings.vault.clone());
                self.hosts[0].spawn(setup::found(daemon.truth().clone(), plan, vault));
            }
            if self.unsettled().is_none() {
                return Ok(());
            }
        }
        Err(format!("the cluster did not come about: {}", self.unsettled().unwrap_or_default()))
    }

    /// Ends all faults and waits until everything is well.
    fn heal(&mut self) -> Result<(), String> {
        let from = self.ground.now();
        self.ground.trace("-", "phase healing");
        // One that still waits for its moment would be a fault after the last.
        self.faults.truncate(self.next_fault);
        self.weather = Weather::default();
        self.set_mood(Mood::Works);
        lock(&self.plugs).on.fill(true);
        for index in 0..self.hosts.len() {
            let soon = from + self.rng.between(10, 1_000);
            let host = &mut self.hosts[index];
            (host.frozen_until, host.paused_until) = (0, 0);
            host.disk.set_delay(Duration::from_millis(5));
            host.disk.fill(None);
            if !host.powered {
                self.power_at.insert(index, soon);
            } else if host.process.is_none() {
                self.daemon_at.insert(index, soon);
            }
            let guardless = lock(&self.hosts[index].body).guard.is_none();
            if self.hosts[index].powered && guardless {
                self.guard_at.insert(index, soon);
            }
        }
        self.disk_at.clear();
        self.room_at.clear();
        let hosts = self.hosts.len();
        (0..=hosts).for_each(|at| self.reach_witness(at));
        self.vault_at.clear();
        if let Some(clients) = &mut self.clients {
            clients.served.clear();
        }
        if let Some(movers) = &mut self.movers {
            movers.rest();
        }
        if let Some(staff) = &mut self.staff {
            staff.rest();
        }
        self.invariants.heal(from);
        while self.ground.now() < from + HEALING_MAX {
            self.turn()?;
            if self.staff.as_ref().is_some_and(Staff::is_busy) {
                // A node that is out when the faults stop is the last of them.
                self.invariants.heal(self.ground.now());
                continue;
            }
            let served = self.clients.as_ref().is_some_and(|clients| {
                (0..self.hosts.len()).all(|host| clients.served.get(&host).is_some_and(|n| *n > 0))
            });
            if served && self.unsettled().is_none() {
                self.ground.trace("-", "healed");
                return Ok(());
            }
        }
        let what = self.unsettled().unwrap_or_else(|| "a node answers no writes".to_owned());
        Err(format!("(30) not healed {HEALING_MAX} ms after the last fault: {what}"))
    }

    /// What is not as it should be when there are no faults.
    fn unsettled(&self) -> Option<String> {
        if self.hosts.iter().any(|host| host.daemon().is_none()) {
            return Some("a daemon is down".to_owned());
        }
        // Clients go on, so the nodes have the same state at the same index, not at the same time.
        let applied = |host: &&Host| host.metrics().map_or(0, |metrics| metrics.applied_next);
        let state = self.hosts.iter().max_by_key(applied).and_then(Host::state);
        let Some(state) = state else { return Some("there is no state".to_owned()) };
        if state.vms.len() < self.plan.vms {
            return Some("not all VMs are there".to_owned());
        }
        let votes = self.plan.nodes + usize::from(self.plan.witness);
        let voters = self.leader().and_then(|leader| self.hosts[leader].metrics());
        if voters.is_none_or(|metrics| metrics.voters().len() != votes) {
            return Some("not all nodes vote".to_owned());
        }
        for node in state.nodes.values() {
            if node.rebuild.is_some() {
                return Some(format!("{} has lost its log", node.name));
            }
            if node.mode != NodeMode::Active {
                return Some(format!("{} takes no VMs", node.name));
            }
            if node.fenced.is_some() || node.fence.wish.is_some() {
                return Some(format!("{} is fenced or to be fenced", node.name));
            }
        }
        for vm in state.vms.values() {
            // Whoever founds the cluster ends its operations itself.
            let migrates = vm.busy().is_some() && self.movers.is_some();
            let has = |host: &&Host| lock(&host.body).machines.contains_key(&vm.id);
            let places = self.hosts.iter().filter(has).count();
            if migrates || places > 1 {
                let op = vm.busy().and_then(|op| state.ops.get(&op)).map(|op| op.request.verb());
                return Some(format!("{} is busy with {op:?}, or has {places} machines", vm.name));
            }
            let machine = |host: &Host| {
                let body = lock(&host.body);
                let machine = body.machines.get(&vm.id).copied();
                machine.filter(|it| it.cpus && !body.frozen && it.generation == vm.generation)
            };
            let runs: Vec<usize> =
                (0..self.hosts.len()).filter(|at| machine(&self.hosts[*at]).is_some()).collect();
            if runs.len() != 1 || self.hosts[runs[0]].id != vm.owner {
                return Some(format!("{} ({:?}) runs on {runs:?}", vm.name, vm.power));
            }
        }
        None
    }

    /// The whole history of each register.
    fn check_history(&self) -> Result<(), String> {
        let Some(clients) = &self.clients else { return Ok(()) };
        for (key, calls) in clients.history() {
            if !sim::linear::is_linearizable(&calls) {
                return Err(format!("(T1) the history of k{key} is not linearizable"));
            }
        }
        Ok(())
    }

    /// One turn of everybody.
    fn turn(&mut self) -> Result<(), String> {
        let now = self.ground.now() + TICK_MS;
        self.ground.set_now(now);
        while let Some((at, fault, aim)) = self.faults.get(self.next_fault).cloned() {
            // What a device may lie about is a cluster that is well, see Fault::Lie.
            if at > now || now < self.calm_until || self.waits(aim, now - at) {
                break;
            }
            self.next_fault += 1;
            self.make(&fault, now);
        }
        self.start_again(now);
        self.tend_losses(now);
        while let Some(entry) = self.flight.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let letter = entry.remove();
            self.deliver(letter);
        }
        let hosts = self.hosts.len();
        for host in &mut self.hosts {
            host.turn(&self.wire, hosts, &mut self.volume);
        }
        for (index, host) in self.hosts.iter_mut().enumerate() {
            if std::mem::take(&mut host.refused) {
                self.daemon_at.insert(index, now + RESTART);
            }
        }
        for letter in self.wire.take() {
            self.post(letter, now);
        }
        if let Some(clients) = &mut self.clients {
            clients.turn(&self.hosts);
        }
        if let Some(movers) = &mut self.movers {
            let kept = self.staff.as_ref().and_then(|staff| staff.closes(&self.hosts));
            movers.turn(&self.hosts, kept);
        }
        self.look_after_nodes(now);
        self.invariants.check(now, &self.hosts, &self.volume)?;
        self.ground.problem().map_or(Ok(()), Err)
    }

    fn look_after_nodes(&mut self, now: u64) {
        let (Some(staff), Some(newest)) = (&mut self.staff, self.invariants.newest()) else {
            return;
        };
        let Some(Deed::Renew { host }) = staff.turn(&self.hosts, &newest) else { return };
        self.power_off(host, 0, now + 1_000);
        self.hosts[host].renew(&self.wire);
    }

    /// Whether a fault that is due since `late` waits for its moment.
    fn waits(&self, aim: Aim, late: u64) -> bool {
        let any = |is: fn(&Host) -> bool| self.hosts.iter().any(is);
        let moment = match aim {
            Aim::Anything => true,
            Aim::Last => any(|host| host.migrations.sends_last()),
            Aim::HandingOver => any(|host| host.migrations.hands_over()),
        };
        !moment && late < AIM_MAX
    }

    fn deliver(&mut self, letter: Letter) {
        let host = &mut self.hosts[letter.to];
        if host.powered {
            host.deliver(letter, &self.wire);
        }
    }

    /// What becomes of a letter.
    fn post(&mut self, letter: Letter, now: u64) {
        let (from, to) = (letter.from, letter.to);
        let cut = self.weather.cuts.iter().any(|(a, b, _)| (*a, *b) == (from, to));
        let (loss, until) = self.weather.loss;
        let lost = now < until && self.rng.permille(loss);
        if cut || lost || !self.hosts[from].powered || self.flight.len() >= FLIGHT_MAX {
            return;
        }
        let twice = self.rng.permille(10) && matches!(letter.content, Content::Ask { .. });
        if twice {
            let copy = self.disguise(letter.clone());
            self.put(copy, now);
        }
        self.put(letter, now);
    }

    fn put(&mut self, letter: Letter, now: u64) {
        let (late, until) = self.weather.late;
        let delay = if now < until && self.rng.permille(300) {
            self.rng.between(0, late)
        } else {
            self.rng.below(25)
        };
        self.letters += 1;
        self.flight.insert((now + delay, self.letters), letter);
    }

    /// With a planted fault, a proposal that comes twice is two proposals.
    fn disguise(&self, mut letter: Letter) -> Letter {
        if self.ground.has(Plant::NoTickets)
            && let Content::Ask { request, .. } = &mut letter.content
            && request.method == PeerMethod::Propose
            && let Ok(text) = String::from_utf8(request.body.clone())
        {
            request.body = text.replacen("\"number\":", "\"number\":7000", 1).into_bytes();
        }
        letter
    }

    fn start_again(&mut self, now: u64) {
        self.weather.cuts.retain(|(_, _, until)| *until > now);
        let due = |map: &mut BTreeMap<usize, u64>| -> Vec<usize> {
            let due: Vec<usize> =
                map.iter().filter(|(_, at)| **at <= now).map(|(h, _)| *h).collect();
            map.retain(|_, at| *at > now);
            due
        };
        let wishes = std::mem::take(&mut lock(&self.plugs).wishes);
        for host in wishes {
            if self.hosts[host].powered {
                let back = match self.invariants.heals() {
                    false => now + self.rng_back(),
                    // A fencing that was under way when the faults stopped is the last of them: the
                    // time in which all is to be well begins after it.
                    true => {
                        self.invariants.heal(now);
                        now + self.rng.between(10, 1_000)
                    }
                };
                self.power_off(host, 0, back);
            }
            lock(&self.plugs).on[host] = false;
        }
        for host in due(&mut self.power_at) {
            lock(&self.plugs).on[host] = true;
            self.hosts[host].powered = true;
            self.hosts[host].trace("power on");
            self.guard_at.insert(host, now + 200);
            self.daemon_at.insert(host, now + 300);
        }
        for host in due(&mut self.guard_at) {
            let host = &self.hosts[host];
            if host.powered && lock(&host.body).guard.is_none() {
                host.trace("guard up");
                lock(&host.body).start_guard();
            }
        }
        for host in due(&mut self.daemon_at) {
            let host = &mut self.hosts[host];
            if host.powered && host.process.is_none() && host.lost.is_none() {
                host.start(&self.wire, &self.settings);
            }
        }
        for host in due(&mut self.disk_at) {
            self.hosts[host].disk.set_delay(Duration::from_millis(5));
        }
        for host in due(&mut self.room_at) {
            self.hosts[host].disk.fill(None);
        }
        for host in due(&mut self.vault_at) {
            self.reach_witness(host);
        }
        if self.mood_until != 0 && self.mood_until <= now {
            self.set_mood(Mood::Works);
        }
    }

    fn rng_back(&mut self) -> u64 {
        self.rng.between(2_000, 15_000)
    }

    /// A host reaches the witness again, or all do.
    fn reach_witness(&self, host: usize) {
        match host == self.hosts.len() {
            true => self.settings.vault.down(false),
            false => self.settings.vault.cut(host, false),
        }
    }

    fn set_mood(&mut self, mood: Mood) {
        lock(&self.plugs).mood = mood;
        self.mood_until = 0;
    }

    fn power_off(&mut self, host: usize, kept: usize, back: u64) {
        self.hosts[host].trace("power off");
        self.hosts[host].power_off(kept);
        self.daemon_at.remove(&host);
        self.guard_at.remove(&host);
        self.power_at.insert(host, back);
    }

    fn kill(&mut self, host: usize, back: u64) {
        if self.hosts[host].process.is_some() {
            self.hosts[host].kill(Loss::Process);
            self.daemon_at.insert(host, back);
        }
    }

    /// Who leads, as far as it knows itself.
    fn leader(&self) -> Option<usize> {
        (0..self.hosts.len())
            .find(|host| self.hosts[*host].metrics().is_some_and(|metrics| metrics.leads()))
    }

    fn isolate(&mut self, host: usize, until: u64) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.weather.cuts.push((host, other, until));
            self.weather.cuts.push((other, host, until));
        }
    }

    fn make(&mut self, fault: &Fault, now: u64) {
        self.ground.trace("-", &format!("fault {fault:?}"));
        let leader = self.leader();
        match fault {
            Fault::Power { host, back, kept } => {
                if self.hosts[*host].powered {
                    self.power_off(*host, *kept, now + back);
                }
            }
            Fault::Blackout { back } => {
                for host in 0..self.hosts.len() {
                    if self.hosts[host].powered {
                        let back = now + back + self.rng.below(2_000);
                        self.power_off(host, 0, back);
                    }
                }
            }
            Fault::Kill { host, back, behind } => {
                self.kill(*host, now + back);
                self.hosts[*host].behind = *behind;
            }
            Fault::KillLeader { back } => {
                if let Some(host) = leader {
                    self.kill(host, now + back);
                }
            }
            Fault::KillGuard { host, back } => {
                lock(&self.hosts[*host].body).guard = None;
                self.guard_at.insert(*host, now + back);
            }
            Fault::Freeze { host, length } => self.hosts[*host].frozen_until = now + length,
            Fault::Pause { host, length } => self.hosts[*host].paused_until = now + length,
            Fault::PauseLeader { length } => {
                if let Some(host) = leader {
                    self.hosts[host].paused_until = now + length;
                }
            }
            Fault::Cut { a, b, one_way, length } => {
                self.weather.cuts.push((*a, *b, now + length));
                if !one_way {
                    self.weather.cuts.push((*b, *a, now + length));
                }
            }
            Fault::Isolate { host, length } => self.isolate(*host, now + length),
            Fault::IsolateLeader { length } => {
                if let Some(host) = leader {
                    self.isolate(host, now + length);
                }
            }
            Fault::Split { side, length } => self.split(side, now + length),
            Fault::Lossy { permille, length } => self.weather.loss = (*permille, now + length),
            Fault::Late { most, length } => self.weather.late = (*most, now + length),
            Fault::SlowDisk { host, delay, length } => {
                self.hosts[*host].disk.set_delay(Duration::from_millis(*delay));
                self.disk_at.insert(*host, now + length);
            }
            Fault::Wall { host, by } => self.hosts[*host].clock.wall += by,
            Fault::Device { mood, length } => {
                self.set_mood(*mood);
                self.mood_until = now + length;
            }
            Fault::FullDisk { host, room, length } => {
                // One that has lost its log begins a new one when it is told to.
                if self.hosts[*host].lost.is_none() {
                    self.hosts[*host].disk.fill(Some(*room));
                    self.room_at.insert(*host, now + length);
                }
            }
            Fault::Lag { length } => {
                if let Some(host) = leader {
                    let other = (host + 1) % self.hosts.len();
                    self.lagging = Some((host, other));
                    self.weather.cuts.push((host, other, now + length));
                    self.weather.cuts.push((other, host, now + length));
                }
            }
            Fault::Orphan { length } => {
                let lagging = self.lagging.take().filter(|(host, _)| leader == Some(*host));
                if let Some((host, other)) = lagging {
                    self.damage(3 - host - other, now);
                    self.isolate(host, now + length);
                }
            }
            Fault::Damage { host } => self.damage(*host, now),
            Fault::WitnessAway { host, length } => {
                match host {
                    Some(host) => self.settings.vault.cut(*host, true),
                    None => self.settings.vault.down(true),
                }
                self.vault_at.insert(host.unwrap_or(self.hosts.len()), now + length);
            }
            Fault::WitnessUnsure { kinds } => {
                let later = Duration::from_millis(self.rng.between(10, 3_000));
                self.settings.vault.plan(kinds.iter().map(|kind| match kind {
                    0 => memory::Fault::LoseRequest,
                    1 => memory::Fault::LoseAnswer,
                    2 => memory::Fault::DoLater(later),
                    _ => memory::Fault::Slow(later),
                }));
            }
            Fault::Fence { host } => self.fence(*host),
            Fault::Lie { host } => self.lie(*host, now),
        }
    }

    fn split(&mut self, side: &[usize], until: u64) {
        let side: BTreeSet<usize> = side.iter().copied().collect();
        for a in 0..self.hosts.len() {
            for b in 0..self.hosts.len() {
                if side.contains(&a) != side.contains(&b) {
                    self.weather.cuts.push((a, b, until));
                }
            }
        }
    }

    /// A fence device lies about a node that is well. The law tolerates it while the node is heard,
    /// so nothing else goes wrong meanwhile.
    fn lie(&mut self, host: usize, now: u64) {
        let weather = &self.weather;
        let fine = weather.cuts.is_empty() && weather.loss.1 <= now && weather.late.1 <= now;
        let well = |host: &Host| host.powered && host.daemon().is_some() && !host.daemon_stands();
        if fine && self.hosts.iter().all(well) && self.flight.len() < 100 {
            self.set_mood(Mood::Lies);
            (self.mood_until, self.calm_until) = (now + 4_000, now + 4_500);
            self.fence(host);
        }
    }

    /// A log is damaged, if all others are whole and have a vote: two at once may take with them what
    /// was acknowledged, which nothing can mend.
    fn damage(&mut self, host: usize, now: u64) {
        let Some(leader) = self.leader().and_then(|leader| {
            let leader = &self.hosts[leader];
            Some((leader.metrics()?, leader.state()?))
        }) else {
            return;
        };
        let (metrics, state) = leader;
        let whole = self.hosts.iter().all(|host| host.lost.is_none())
            && state.nodes.values().all(|node| node.rebuild.is_none())
            && self.hosts.iter().all(|host| state.nodes.contains_key(&host.id))
            && metrics.members_applied.members.voters
                == [self.hosts.iter().map(|host| host.id).collect()]
            && metrics.members == metrics.members_applied;
        if whole && self.hosts[host].powered && self.hosts[host].process.is_some() {
            self.ground.tally(|tally| tally.damaged += 1);
            let word = Uuid::from_u128(u128::from(now) << 8 | host as u128);
            self.hosts[host].damage(word);
            self.daemon_at.insert(host, now + 300);
        }
    }

    /// Nodes that have lost their log ask another one, as `node::cluster::rebuild` does.
    fn tend_losses(&mut self, now: u64) {
        if !now.is_multiple_of(200) {
            return;
        }
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            let Some(word) = host.lost.filter(|_| host.powered && !host.stands()) else { continue };
            let (node, at) = (host.id, self.rng.place(self.hosts.len()));
            let cut = self
                .weather
                .cuts
                .iter()
                .any(|(a, b, _)| (*a, *b) == (index, at) || (*a, *b) == (at, index));
            let asked = &self.hosts[at];
            let awake = asked.powered && !asked.daemon_stands();
            let Some(daemon) = asked.daemon().filter(|_| at != index && awake && !cut) else {
                continue;
            };
            match log_cleared(&daemon.truth().state(), node, word) {
                Some(count) => {
                    self.hosts[index].begin_log(count);
                    self.daemon_at.insert(index, now + 100);
                }
                None => drop(asked.spawn(async move {
                    let problem = "log/1: damaged".to_owned();
                    let command = Command::NodeDamaged { node, word, problem };
                    // It asks again.
                    let _ = daemon.truth().propose(proposal(command)).await;
                })),
            }
        }
    }

    /// An administrator has a node fenced, through any daemon that is up.
    fn fence(&mut self, host: usize) {
        let node = self.hosts[host].id;
        let by = self.hosts.iter().find(|it| it.index != host && it.daemon().is_some());
        let Some((by, daemon)) = by.and_then(|by| Some((by, by.daemon()?))) else { return };
        by.spawn(async move {
            let command = Command::FenceBegin { node, reason: FenceReason::Manual };
            // What is refused need not be done.
            let _ = daemon.truth().propose(proposal(command)).await;
        });
    }
}
