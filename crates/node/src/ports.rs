//! Network ports of VMs: from the state to the switch.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use model::ClusterState;
use model::NetworkId;
use model::NicId;
use model::NicSpec;
use model::NodeId;
use model::OpRequest;
use model::Power;
use model::VmId;
use model::VmRecord;
use switch::Desired;
use switch::MTU_DEFAULT;
use switch::NetworkSpec;
use switch::PortObservation;
use switch::PortSpec;
use switch::Switch;
use vm::lifecycle::Ports;

use crate::truth::Truth;

/// The switch as drivers use it.
pub(crate) struct SwitchPorts {
    pub(crate) node: NodeId,
    pub(crate) truth: Arc<dyn Truth>,
    /// None where the daemon was told to leave the host's network alone.
    pub(crate) switch: Option<Switch>,
    problems: Mutex<HashMap<NetworkId, String>>,
    turns: Turns,
}

/// Callers that each want a pass over the host's network share one where they can: a pass that
/// begins after a caller has asked does for it, too. Fifty machines that start at once ask for
/// hundreds of passes, and each costs what all ports cost.
#[derive(Default)]
struct Turns {
    asked: AtomicU64,
    last: tokio::sync::Mutex<LastPass>,
}

struct LastPass {
    /// The callers it did for: all up to this one.
    did_for: u64,
    result: Result<(), String>,
}

impl Default for LastPass {
    fn default() -> Self {
        Self { did_for: 0, result: Ok(()) }
    }
}

impl Turns {
    /// The result of a pass that began after this was called.
    async fn shared<F>(&self, pass: impl FnOnce() -> F) -> Result<(), String>
    where
        F: Future<Output = Result<(), String>>,
    {
        let me = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last = self.last.lock().await;
        if last.did_for < me {
            let did_for = self.asked.load(Ordering::Acquire);
            let result = pass().await;
            *last = LastPass { did_for, result };
        }
        last.result.clone()
    }
}

impl SwitchPorts {
    pub(crate) fn new(node: NodeId, truth: Arc<dyn Truth>, switch: Option<Switch>) -> Self {
        Self { node, truth, switch, problems: Mutex::default(), turns: Turns::default() }
    }

    /// Brings the host's network to what the state says.
    pub(crate) async fn reconcile(&self) -> Result<(), String> {
        let Some(switch) = &self.switch else { return Ok(()) };
        self.turns.shared(|| self.pass(switch)).await
    }

    async fn pass(&self, switch: &Switch) -> Result<(), String> {
        let desired = desired(&self.truth.state(), self.node);
        let report = switch.apply(desired).await.map_err(|error| error.to_string())?;
        let mut problems: HashMap<NetworkId, String> = HashMap::new();
        for (network, refused) in &report.refused_networks {
            problems.insert(*network, refused.to_string());
        }
        for (network, error) in &report.without_service {
            problems.insert(*network, format!("no DHCP and DNS: {error}"));
        }
        let worst = match &report.failure {
            Some(failure) => Err(chain(failure)),
            None if report.is_clean() => Ok(()),
            None => Err(format!(
                "{} networks and {} ports cannot be had",
                report.refused_networks.len(),
                report.refused_ports.len()
            )),
        };
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
        worst
    }

    pub(crate) fn problem(&self, network: NetworkId) -> Option<String> {
        if self.switch.is_none() {
            return Some("this daemon was told to make no networks (networking = false)".into());
        }
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).get(&network).cloned()
    }

    pub(crate) async fn observe(&self) -> Vec<PortObservation> {
        match &self.switch {
            Some(switch) => switch.observe().await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

#[async_trait]
impl Ports for SwitchPorts {
    async fn open(&self, _vm: VmId, nic: &NicSpec) -> Result<OwnedFd, String> {
        let Some(switch) = &self.switch else {
            return Err("this daemon was told to make no networks (networking = false)".to_owned());
        };
        if let Err(error) = self.reconcile().await {
            // Another network's trouble must not keep this port away; its own shows below.
            tracing::warn!(%error, "the host's network is not as it should be");
        }
        switch.open_port(nic.id).await.map_err(|error| chain(&error))
    }

    async fn close(&self, _nic: NicId) {
        // The tap goes with its last descriptor, the rules with the next pass, which sees that the
        // state has no such adapter.
        self.refresh().await;
    }

    async fn refresh(&self) {
        if let Err(error) = self.reconcile().await {
            tracing::warn!(%error, "the host's network is not as it should be");
        }
    }
}

/// All ports that VMs with a machine on this node have or are being given. VMs that are off need
/// none: the cost of the rules grows with the ports.
fn desired(state: &ClusterState, node: NodeId) -> Desired {
    let networks = state
        .networks
        .values()
        .map(|network| NetworkSpec {
            id: network.id,
            name: network.name.clone(),
            kind: network.kind.clone(),
            mtu: MTU_DEFAULT,
        })
        .collect();
    let mut ports = Vec::new();
    let here = |vm: &VmRecord| vm.owner == node && may_have_machine(vm);
    for vm in state.vms.values().filter(|vm| here(vm) || comes_to(state, vm, node)) {
        let added = vm.busy().and_then(|op| state.ops.get(&op)).and_then(|op| match &op.request {
            OpRequest::NicAdd { nic, .. } => Some(nic),
            _ => None,
        });
        ports.extend(vm.spec.nics.iter().chain(added).filter_map(|nic| port(state, vm, nic)));
    }
    Desired { networks, ports }
}

/// Whether the VM has a machine, or an operation that may be giving it one.
fn may_have_machine(vm: &VmRecord) -> bool {
    matches!(vm.power, Power::Running | Power::Paused) || vm.busy().is_some()
}

/// Whether the VM is being migrated to the node: its ports are in force before its first frame.
fn comes_to(state: &ClusterState, vm: &VmRecord, node: NodeId) -> bool {
    let op = vm.busy().and_then(|op| state.ops.get(&op));
    op.is_some_and(|op| matches!(op.request, OpRequest::VmMigrate { to, .. } if to == node))
}

fn port(state: &ClusterState, vm: &VmRecord, nic: &NicSpec) -> Option<PortSpec> {
    let network = state.find_network(nic.network.as_str()).ok()?.id;
    let vm = vm.name.clone();
    Some(PortSpec { nic: nic.id, vm, network, mac: nic.mac, address: nic.address })
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use tokio::sync::Semaphore;

    use super::Turns;

    #[tokio::test]
    async fn callers_that_ask_during_a_pass_share_the_next_one() {
        let turns = Arc::new(Turns::default());
        let (passes, room) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (turns, passes, room) = (turns.clone(), passes.clone(), room.clone());
            tokio::spawn(async move {
                let pass = || async {
                    room.acquire().await.unwrap().forget();
                    Err(format!("pass {}", passes.fetch_add(1, Ordering::Relaxed) + 1))
                };
                turns.shared(pass).await.unwrap_err()
            })
        };
        let first = ask();
        while turns.last.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..50).map(|_| ask()).collect();
        while turns.asked.load(Ordering::Relaxed) < 51 {
            tokio::task::yield_now().await;
        }
        room.add_permits(100);
        assert_eq!(first.await.unwrap(), "pass 1");
        for other in others {
            assert_eq!(other.await.unwrap(), "pass 2", "the first had begun before it asked");
        }
        assert_eq!(passes.load(Ordering::Relaxed), 2);
        assert_eq!(ask().await.unwrap(), "pass 3", "a later caller is not given an old result");
    }
}
