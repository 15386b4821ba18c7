//! The task that owns the host's network: one request after the other, each a pass.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use model::NetworkId;
use model::NicId;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::action::Action;
use crate::desired::Desired;
use crate::desired::NetworkSpec;
use crate::desired::PortSpec;
use crate::dns::Upstreams;
use crate::host::Announced;
use crate::host::Host;
use crate::host::HostError;
use crate::host::Neighbour;
use crate::plan::Actual;
use crate::plan::Plan;
use crate::plan::RulesCache;
use crate::plan::bridge_of;
use crate::plan::plan_with;
use crate::rules::RulesId;
use crate::service::Service;
use crate::switch::ActionFailure;
use crate::switch::AddressSource;
use crate::switch::PortError;
use crate::switch::PortObservation;
use crate::switch::PortState;
use crate::switch::Report;
use crate::switch::SeenAddress;
use crate::switch::SwitchConfig;
use crate::tag::LinkName;

/// Reading all rules back shows what somebody changed in them by hand; with hundreds of ports it
/// takes a third of a second, so machines that start in a row share one reading.
const RULES_READ_INTERVAL: Duration = Duration::from_secs(20);

/// Addresses shown of one port: a guest has few, and one that announces thousands fills no list.
const ADDRESSES_MAX: usize = 16;

/// What the owner can be asked.
pub(crate) enum Request {
    Apply { desired: Desired, reply: oneshot::Sender<Report> },
    OpenPort { nic: NicId, reply: oneshot::Sender<Result<OwnedFd, PortError>> },
    Observe { reply: oneshot::Sender<Result<Vec<PortObservation>, HostError>> },
}

pub(crate) struct Owner {
    config: SwitchConfig,
    host: Arc<dyn Host>,
    upstreams: Arc<Upstreams>,
    desired: Desired,
    services: BTreeMap<NetworkId, Service>,
    /// What the last pass left in force, and when all of it was last read back.
    rules: Option<(RulesId, Instant)>,
    cache: RulesCache,
}

impl Owner {
    pub(crate) fn new(config: SwitchConfig, host: Arc<dyn Host>) -> Self {
        let upstreams = Arc::new(Upstreams::new(config.resolv_conf.clone()));
        let desired = Desired::default();
        let cache = RulesCache::default();
        Self { config, host, upstreams, desired, services: BTreeMap::new(), rules: None, cache }
    }

    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        // A caller that no longer waits for the answer is no error: the host is changed all the
        // same, and a descriptor nobody takes closes and takes its tap with it.
        while let Some(request) = inbox.recv().await {
            match request {
                Request::Apply { desired, reply } => {
                    self.desired = desired;
                    let _ = reply.send(self.pass().await);
                }
                Request::OpenPort { nic, reply } => {
                    let _ = reply.send(self.open_port(nic).await);
                }
                Request::Observe { reply } => {
                    let _ = reply.send(self.observe().await);
                }
            }
        }
    }

    async fn pass(&mut self) -> Report {
        let mut report = Report::default();
        let expected = self.expected_rules();
        let actual = match self.host.observe(&self.config.tag, expected.as_ref()).await {
            Ok(actual) => actual,
            Err(source) => {
                let action = "looking at what is there failed".to_owned();
                report.failure = Some(ActionFailure { action, source });
                return report;
            }
        };
        let plan = plan_with(&self.config.tag, &self.desired, &actual, &mut self.cache);
        self.stop_services(&plan).await;
        for action in &plan.actions {
            match self.host.perform(&self.config.tag, action).await {
                Ok(()) => {
                    report.changes += 1;
                    tracing::info!(tag = %self.config.tag, change = %action, "changed the host");
                }
                // The machine ended between looking and acting: its tap went with it.
                Err(HostError::NoLink(link)) if self.is_tap(&link) => {}
                Err(source) => {
                    let action = format!("failed to {action}");
                    tracing::warn!(tag = %self.config.tag, %action, %source, "pass cut short");
                    report.failure = Some(ActionFailure { action, source });
                    break;
                }
            }
        }
        if report.failure.is_none() {
            self.note_rules(expected.is_none(), &actual, &plan);
            report.without_service = self.run_services(&plan).await;
        }
        report.refused_networks = plan.refused_networks;
        report.refused_ports = plan.refused_ports;
        report
    }

    /// The rules that the last passes left, as long as they need not be read back again.
    fn expected_rules(&self) -> Option<RulesId> {
        let (rules, read) = self.rules.as_ref()?;
        (read.elapsed() < RULES_READ_INTERVAL).then(|| rules.clone())
    }

    /// Remembers the rules now in force, and when they were last read back in full.
    fn note_rules(&mut self, read: bool, actual: &Actual, plan: &Plan) {
        let since = self.rules.take().map(|(_, since)| since).filter(|_| !read);
        let since = since.unwrap_or_else(Instant::now);
        let mut rules = actual.rules.clone();
        for action in &plan.actions {
            match action {
                Action::LoadRules(ruleset) => rules = Some(ruleset.id.clone()),
                Action::RemoveRules => rules = None,
                _ => {}
            }
        }
        self.rules = rules.map(|rules| (rules, since));
    }

    fn is_tap(&self, link: &LinkName) -> bool {
        link.as_str().starts_with(&self.config.tag.tap_prefix())
    }

    /// Ends servers whose network goes, and those whose bridge or address is about to be made anew
    /// (their sockets are bound to the old one).
    async fn stop_services(&mut self, plan: &Plan) {
        let tag = &self.config.tag;
        let desired = &self.desired;
        let ending = self.services.extract_if(.., |id, service| {
            let network = desired.networks.iter().find(|network| network.id == *id);
            let Some(subnet) = network.and_then(NetworkSpec::subnet) else { return true };
            let bridge = tag.bridge(*id);
            let renewed = plan.actions.iter().any(|action| match action {
                Action::CreateBridge { name, .. } => *name == bridge,
                Action::AddAddress { link, .. } => *link == bridge,
                _ => false,
            });
            renewed || !service.serves(subnet) || !service.is_whole()
        });
        for (_, service) in ending {
            service.stop().await;
        }
    }

    async fn run_services(&mut self, plan: &Plan) -> BTreeMap<NetworkId, HostError> {
        let mut failed = BTreeMap::new();
        for network in &self.desired.networks {
            let Some(subnet) = network.subnet() else { continue };
            if plan.refused_networks.contains_key(&network.id) {
                continue;
            }
            if let Some(service) = self.services.get(&network.id) {
                service.update(network, &self.desired);
                continue;
            }
            let bridge = self.config.tag.bridge(network.id);
            match self.host.serve(&bridge, subnet.gateway()).await {
                Ok(sockets) => {
                    let (service, without_dns) =
                        Service::start(sockets, network, subnet, &self.desired, &self.upstreams);
                    failed.extend(without_dns.map(|why| (network.id, why)));
                    self.services.insert(network.id, service);
                }
                Err(error) => {
                    failed.insert(network.id, error);
                }
            }
            if let Some(why) = failed.get(&network.id) {
                tracing::warn!(network = %network.name, %why, "guests are not fully served");
            }
        }
        failed
    }

    async fn open_port(&mut self, nic: NicId) -> Result<OwnedFd, PortError> {
        if !self.desired.ports.iter().any(|port| port.nic == nic) {
            return Err(PortError::Unknown(nic));
        }
        let tap = self.config.tag.tap(nic);
        // Down and mute until the pass has loaded its rules and attached it; if the pass fails the
        // descriptor closes here and the tap is gone.
        let descriptor = self.host.open_tap(&tap).await?;
        let mut report = self.pass().await;
        if let Some(reason) = report.refused_ports.remove(&nic) {
            return Err(reason.into());
        }
        match report.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(descriptor),
        }
    }

    async fn observe(&self) -> Result<Vec<PortObservation>, HostError> {
        // Only devices are of interest here, so that the rules need not be read back in full.
        let rules = self.rules.as_ref().map(|(rules, _)| rules);
        let actual = self.host.observe(&self.config.tag, rules).await?;
        let neighbours = self.host.neighbours().await?;
        let announced = self.host.announced(&self.config.tag).await?;
        let seen = |port| self.observe_port(port, &actual, &neighbours, &announced);
        Ok(self.desired.ports.iter().map(seen).collect())
    }

    fn observe_port(
        &self,
        port: &PortSpec,
        actual: &Actual,
        neighbours: &[Neighbour],
        announced: &[Announced],
    ) -> PortObservation {
        let tap = self.config.tag.tap(port.nic);
        let network = self.desired.networks.iter().find(|network| network.id == port.network);
        let bridge = network.map(|network| bridge_of(&self.config.tag, network));
        let link = actual.links.get(&tap);
        let state = match link {
            None => PortState::Absent,
            Some(link) if link.up && link.master.is_some() && link.master == bridge => {
                PortState::Attached
            }
            Some(_) => PortState::Detached,
        };
        let mut addresses = Vec::new();
        // What was seen of a machine that is off is no address of it.
        if state == PortState::Attached {
            let lease = self.services.get(&port.network).and_then(|s| s.taken(port.mac));
            let lease = lease.map(|address| (IpAddr::V4(address), AddressSource::Lease));
            let announced = announced
                .iter()
                .filter(|announced| announced.tap == tap)
                .map(|announced| (announced.address, AddressSource::Announced));
            let index = bridge.and_then(|bridge| actual.links.get(&bridge)).map(|link| link.index);
            let neighbours = neighbours
                .iter()
                .filter(|seen| Some(seen.link_index) == index && seen.mac == port.mac)
                .map(|seen| (seen.address, AddressSource::Neighbour));
            for (address, source) in lease.into_iter().chain(announced).chain(neighbours) {
                let known = addresses.iter().any(|seen: &SeenAddress| seen.address == address);
                if !known && addresses.len() < ADDRESSES_MAX {
                    addresses.push(SeenAddress { address, source });
                }
            }
        }
        let counters = link.map(|link| link.counters).unwrap_or_default();
        PortObservation { nic: port.nic, tap, mac: port.mac, state, addresses, counters }
    }
}
