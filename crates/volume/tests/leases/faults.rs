//! Faults, who becomes the coordinator, and the end of all faults.

use volume::lease::ClientInput;
use volume::lease::Epoch;

use crate::host::Node;
use crate::world::Event;
use crate::world::SAFETY_MS;
use crate::world::World;

/// What is to be made good again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Path(usize),
    Cut(usize, usize),
    Loss,
    Slow,
}

impl World {
    pub(crate) fn fault(&mut self) {
        if self.now >= SAFETY_MS {
            return;
        }
        let gap = self.rng.between(150, 900);
        self.at(gap, Event::Fault);
        self.tally.faults += 1;
        let node = self.rng.place(self.nodes.len());
        let other = self.rng.place(self.nodes.len());
        let dice = self.rng.below(100);
        let long = self.rng.between(100, 2_500);
        self.say(&|| format!("fault {dice} n{node} n{other} {long}"));
        match dice {
            0..14 => self.crash(node, long, true),
            14..22 => self.crash(node, 20, false),
            // The zombie: longer than every deadline, with commands on the way.
            22..42 => self.nodes[node].paused_until = self.now + long,
            42..56 => {
                self.nodes[node].path = false;
                if self.rng.permille(500) {
                    self.tell_path(node);
                }
                self.at(long, Event::Mend(Fault::Path(node)));
            }
            // One way, with the LUN still reachable by both.
            56..68 if node != other => {
                self.cuts.push((node, other));
                if self.rng.permille(500) {
                    self.cuts.push((other, node));
                }
                self.at(long, Event::Mend(Fault::Cut(node, other)));
            }
            68..76 => {
                self.loss_permille = 300;
                self.at(long, Event::Mend(Fault::Loss));
            }
            76..82 => {
                self.slow_lun = true;
                self.at(long, Event::Mend(Fault::Slow));
            }
            82..86 => self.cache_loss(None, long),
            86..90 => self.cache_loss(Some(node), long),
            96.. => self.power_loss(),
            _ => self.elect(Some(node)),
        }
    }

    pub(crate) fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::Path(node) => {
                self.nodes[node].path = true;
                self.tell_path(node);
            }
            Fault::Cut(one, two) => {
                self.cuts.retain(|cut| *cut != (one, two) && *cut != (two, one));
            }
            Fault::Loss => self.loss_permille = 0,
            Fault::Slow => self.slow_lun = false,
        }
    }

    /// The process ends; with `power` the whole host, and what it had not sent to the LUN.
    fn crash(&mut self, node: usize, for_ms: u64, power: bool) {
        if !self.nodes[node].up {
            return;
        }
        self.end_guests(node);
        let boot = self.nodes[node].boot + 1;
        let client = self.client_of(node, boot);
        let limits = self.limits.clone();
        let old = std::mem::replace(&mut self.nodes[node], Node::new(node, &limits, boot));
        let host = &mut self.nodes[node];
        host.client = client;
        host.up = false;
        host.path = old.path;
        if power {
            self.flights.retain(|_, flight| flight.node != node || flight.at_target);
            // What is with the LUN may still come; the host that starts knows nothing of it.
            let told = self.flights.values_mut().filter(|flight| flight.node == node);
            told.for_each(|flight| flight.told = true);
        } else {
            host.outstanding = old.outstanding;
        }
        self.at(for_ms, Event::Boot(node));
    }

    pub(crate) fn boot(&mut self, node: usize) {
        self.nodes[node].up = true;
        self.say(&|| format!("n{node} is up"));
        let (epoch, coordinator) = self.truth;
        // A coordinator that comes back is none until it is elected anew.
        if epoch > Epoch(0) {
            let delay = self.rng.between(5, 100);
            self.at(delay, Event::View { node, epoch, coordinator });
        }
        self.serve(node, ClientInput::Tick);
        self.tell_path(node);
    }

    fn power_loss(&mut self) {
        for node in 0..self.nodes.len() {
            let long = self.rng.between(100, 600);
            self.crash(node, long, true);
        }
        self.flights.clear();
        let mut rng = self.rng.fork();
        self.lun.power_loss(&mut rng);
        self.oracle.power_loss();
    }

    /// The LUN loses its cache, or one controller of it its own, with the paths to it; hosts live.
    fn cache_loss(&mut self, by: Option<usize>, long: u64) {
        self.tally.losses += 1;
        let (nodes, mut rng) = (self.nodes.len(), self.rng.fork());
        self.lun.cache_loss(by, nodes, &mut rng);
        self.oracle.cache_loss(self.now);
        // Often the path is back before anybody has missed it.
        let node = by.unwrap_or(0);
        if self.rng.permille(500) {
            self.nodes[node].path = false;
            self.tell_path(node);
            self.at(long, Event::Mend(Fault::Path(node)));
        }
    }

    /// The replicated state: finds a coordinator that is gone, and names the next one.
    pub(crate) fn watch_over(&mut self) {
        self.at(50, Event::Truth);
        let (epoch, node) = self.truth;
        let host = &self.nodes[node];
        let leads = host.coordinator.as_ref().is_some_and(|it| it.epoch == epoch);
        let comes = host.takeover.as_ref().is_some_and(|it| it.epoch() == epoch);
        let well = host.up && (leads || comes) && host.paused_until <= self.now && host.path;
        if well {
            self.unhealthy_since = None;
            return;
        }
        let since = *self.unhealthy_since.get_or_insert(self.now);
        if self.now - since >= 250 {
            self.elect(None);
        }
    }

    fn elect(&mut self, wish: Option<usize>) {
        let up: Vec<usize> =
            (0..self.nodes.len()).filter(|it| self.nodes[*it].up && self.nodes[*it].path).collect();
        let choice = wish.filter(|it| up.contains(it)).or_else(|| self.rng.pick(&up));
        let Some(chosen) = choice else { return };
        let epoch = Epoch(self.truth.0.0 + 1);
        self.truth = (epoch, chosen);
        self.unhealthy_since = None;
        self.say(&|| format!("the state gives {epoch:?} to n{chosen}"));
        for node in 0..self.nodes.len() {
            let far = if self.rng.permille(100) { 1_500 } else { 40 };
            let delay = self.rng.between(1, far);
            if node == chosen {
                let boot = self.nodes[node].boot;
                self.at(delay, Event::Elected { node, boot, epoch });
            } else {
                self.at(delay, Event::View { node, epoch, coordinator: chosen });
            }
        }
    }

    /// No more faults: from now on all must become well.
    pub(crate) fn heal(&mut self) {
        self.healing = true;
        self.now = SAFETY_MS;
        self.cuts.clear();
        self.loss_permille = 0;
        self.slow_lun = false;
        for node in 0..self.nodes.len() {
            self.nodes[node].paused_until = self.now;
            self.nodes[node].path = true;
            self.tell_path(node);
        }
    }
}
