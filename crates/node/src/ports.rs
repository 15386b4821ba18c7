//! Network ports of VMs: from the state to the switch.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

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
}

impl SwitchPorts {
    pub(crate) fn new(node: NodeId, truth: Arc<dyn Truth>, switch: Option<Switch>) -> Self {
        Self { node, truth, switch, problems: Mutex::default() }
    }

    /// One pass: brings the host's network to what the state says.
    pub(crate) async fn reconcile(&self) -> Result<(), String> {
        let Some(switch) = &self.switch else { return Ok(()) };
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
    for vm in state.vms.values().filter(|vm| vm.owner == node && may_have_machine(vm)) {
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
