//! A host in memory, for tests of the switch and of everything above it.
//!
//! It behaves like the kernel where it matters: taps vanish when their descriptor closes, a port
//! of a deleted bridge is free again, an address brings a route, a rule set is replaced as a whole.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::net::UdpSocket;

use crate::action::Action;
use crate::host::Announced;
use crate::host::DnsSockets;
use crate::host::Host;
use crate::host::HostError;
use crate::host::Neighbour;
use crate::host::ServiceSockets;
use crate::plan::Actual;
use crate::plan::Counters;
use crate::plan::HostRoute;
use crate::plan::Link;
use crate::plan::LinkKind;
use crate::rules::RulesId;
use crate::tag::InstanceTag;
use crate::tag::LinkName;

const MTU_DEFAULT: u32 = 1500;

/// A host without a kernel.
#[derive(Default)]
pub struct FakeHost {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// All but the rules.
    actual: Actual,
    rules: BTreeMap<InstanceTag, RulesId>,
    learning: BTreeSet<InstanceTag>,
    announced: Vec<Announced>,
    next_index: u32,
    /// Our end of each tap; the other end is what the caller got.
    taps: BTreeMap<LinkName, UnixStream>,
    neighbours: Vec<Neighbour>,
    /// Fail after so many more actions.
    fail_after: Option<usize>,
}

impl FakeHost {
    /// An empty host.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device that is not ours.
    pub fn add_link(&self, name: &LinkName, kind: LinkKind) {
        let mut state = self.lock();
        state.insert(name, kind);
    }

    /// Adds a route that is not ours.
    pub fn add_route(&self, route: HostRoute) {
        self.lock().actual.routes.push(route);
    }

    /// Adds an entry to the neighbour table.
    pub fn add_neighbour(&self, neighbour: Neighbour) {
        self.lock().neighbours.push(neighbour);
    }

    /// Lets a guest announce an address.
    pub fn announce(&self, announced: Announced) {
        self.lock().announced.insert(0, announced);
    }

    /// Lets the next `actions` changes succeed and fails the one after them, once.
    pub fn fail_after(&self, actions: usize) {
        self.lock().fail_after = Some(actions);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain data: a test that panicked has left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, name: &LinkName, kind: LinkKind) {
        self.next_index += 1;
        let link = Link {
            index: self.next_index,
            kind,
            up: false,
            mtu: MTU_DEFAULT,
            master: None,
            addresses: Vec::new(),
            ipv6: true,
            counters: Counters::default(),
        };
        self.actual.links.insert(name.clone(), link);
    }

    fn link(&mut self, name: &LinkName) -> Result<&mut Link, HostError> {
        self.actual.links.get_mut(name).ok_or_else(|| HostError::NoLink(name.clone()))
    }

    fn remove(&mut self, name: &LinkName) {
        self.actual.links.remove(name);
        self.actual.routes.retain(|route| route.link.as_ref() != Some(name));
        for link in self.actual.links.values_mut() {
            link.master = link.master.take().filter(|master| master != name);
        }
    }

    /// Takes away the taps whose descriptor has been closed.
    fn reap(&mut self) {
        let closed: Vec<LinkName> = self
            .taps
            .iter_mut()
            .filter_map(|(name, stream)| {
                matches!(stream.read(&mut [0; 64]), Ok(0)).then(|| name.clone())
            })
            .collect();
        for name in closed {
            self.taps.remove(&name);
            self.remove(&name);
        }
    }

    fn perform(&mut self, tag: &InstanceTag, action: &Action) -> Result<(), HostError> {
        match action {
            Action::DeleteLink(name) => {
                self.link(name)?;
                self.taps.remove(name);
                self.remove(name);
            }
            Action::CreateBridge { name, .. } => {
                if self.actual.links.contains_key(name) {
                    let message = "File exists".to_owned();
                    return Err(HostError::Netlink { what: format!("make {name}"), message });
                }
                self.insert(name, LinkKind::Bridge);
            }
            Action::SilenceIpv6(name) => self.link(name)?.ipv6 = false,
            Action::SetMtu { link, mtu } => self.link(link)?.mtu = *mtu,
            Action::AddAddress { link, address, prefix } => {
                self.link(link)?.addresses.push((*address, *prefix));
                let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
                let base = Ipv4Addr::from(u32::from(*address) & mask);
                let link = Some(link.clone());
                self.actual.routes.push(HostRoute { base, prefix: *prefix, link });
            }
            Action::RemoveAddress { link, address, prefix } => {
                self.link(link)?.addresses.retain(|have| *have != (*address, *prefix));
                self.actual.routes.retain(|route| route.link.as_ref() != Some(link));
            }
            Action::LoadRules(ruleset) => {
                self.rules.insert(tag.clone(), ruleset.id.clone());
            }
            Action::LearnAddresses => {
                self.learning.insert(tag.clone());
            }
            Action::RemoveRules => {
                self.learning.remove(tag);
                self.rules.remove(tag);
            }
            Action::EnableForwarding => self.actual.forwarding = true,
            Action::SetUp(name) => self.link(name)?.up = true,
            Action::Attach { tap, bridge } => {
                self.link(bridge)?;
                self.link(tap)?.master = Some(bridge.clone());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Host for FakeHost {
    async fn observe(
        &self,
        tag: &InstanceTag,
        _expected: Option<&RulesId>,
    ) -> Result<Actual, HostError> {
        let mut state = self.lock();
        state.reap();
        let rules = state.rules.get(tag).cloned();
        let learning = state.learning.contains(tag);
        Ok(Actual { tables: rules.is_some(), rules, learning, ..state.actual.clone() })
    }

    async fn perform(&self, tag: &InstanceTag, action: &Action) -> Result<(), HostError> {
        let mut state = self.lock();
        state.reap();
        match state.fail_after {
            Some(0) => {
                state.fail_after = None;
                return Err(HostError::Injected);
            }
            Some(left) => state.fail_after = Some(left - 1),
            None => {}
        }
        state.perform(tag, action)
    }

    async fn open_tap(&self, name: &LinkName) -> Result<OwnedFd, HostError> {
        let failed = |source| HostError::Tap { name: name.clone(), source };
        let mut state = self.lock();
        state.reap();
        if state.actual.links.contains_key(name) {
            return Err(HostError::TapBusy(name.clone()));
        }
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        state.insert(name, LinkKind::Tap);
        state.taps.insert(name.clone(), ours);
        Ok(OwnedFd::from(theirs))
    }

    async fn neighbours(&self) -> Result<Vec<Neighbour>, HostError> {
        Ok(self.lock().neighbours.clone())
    }

    async fn announced(&self, tag: &InstanceTag) -> Result<Vec<Announced>, HostError> {
        let state = self.lock();
        let learning = state.learning.contains(tag);
        Ok(state.announced.iter().filter(|_| learning).cloned().collect())
    }

    async fn serve(
        &self,
        bridge: &LinkName,
        _gateway: Ipv4Addr,
    ) -> Result<ServiceSockets, HostError> {
        let failed = |source| HostError::Port {
            what: "a loopback socket",
            bridge: bridge.clone(),
            port: 0,
            source,
        };
        let any = (Ipv4Addr::LOCALHOST, 0);
        Ok(ServiceSockets {
            dhcp: UdpSocket::bind(any).await.map_err(failed)?,
            dns: Ok(DnsSockets {
                udp: UdpSocket::bind(any).await.map_err(failed)?,
                tcp: TcpListener::bind(any).await.map_err(failed)?,
            }),
        })
    }
}
