//! Network adapters: which network, which address.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::ClusterState;
use crate::Ipv4Subnet;
use crate::NetworkKind;
use crate::NicChange;
use crate::NicId;
use crate::NicSpec;
use crate::OpRequest;
use crate::Refused;
use crate::VmId;
use crate::VmRecord;

pub(crate) fn find(vm: &VmRecord, nic: NicId) -> Result<&NicSpec, Refused> {
    vm.spec.nic(nic).ok_or_else(|| crate::state::not_found("nic", &nic.to_string()))
}

/// Carries a change out on an adapter. A new network without an address means a new address.
pub(crate) fn change(nic: &mut NicSpec, change: &NicChange) {
    if let Some(link_up) = change.link_up {
        nic.link_up = link_up;
    }
    if let Some(network) = &change.network
        && network.key() != nic.network.key()
    {
        nic.network = network.clone();
        nic.address = None;
    }
    if change.address.is_some() {
        nic.address = change.address;
    }
}

/// Checks that an adapter's network, MAC and address can be had by this VM.
pub(crate) fn admit(state: &ClusterState, vm: VmId, nic: &NicSpec) -> Result<(), Refused> {
    for (owner, theirs) in all_nics(state) {
        let same = owner == vm && theirs.id == nic.id;
        if !same && theirs.id == nic.id {
            return Err(Refused::IdTaken(nic.id.to_string()));
        }
        if !same && theirs.mac == nic.mac {
            let owner = state.vm(owner)?.name.clone();
            return Err(Refused::Invalid(format!("MAC address {} is in use by {owner}", nic.mac)));
        }
    }
    let network = state.find_network(nic.network.as_str())?;
    match (&network.kind, nic.address) {
        (_, None) => Ok(()),
        (NetworkKind::Bridge { .. }, Some(_)) => Err(Refused::Address {
            network: network.name.clone(),
            problem: "a bridged network gives no addresses; set them in the guest".to_owned(),
        }),
        (NetworkKind::Nat { subnet }, Some(address)) => {
            let problem = if !subnet.contains(address)
                || address == subnet.base()
                || address == subnet.gateway()
                || address == subnet.broadcast()
            {
                format!("{address} is not an address for guests of {subnet}")
            } else if used_addresses(state, &network.name.key(), Some((vm, nic.id)))
                .contains(&address)
            {
                format!("{address} is in use")
            } else {
                return Ok(());
            };
            Err(Refused::Address { network: network.name.clone(), problem })
        }
    }
}

/// Gives an address to each adapter on a NAT network that has none.
pub(crate) fn assign_addresses(
    state: &ClusterState,
    vm: VmId,
    nics: &mut [NicSpec],
) -> Result<(), Refused> {
    let mut given: BTreeSet<(String, Ipv4Addr)> =
        nics.iter().filter_map(|nic| Some((nic.network.key(), nic.address?))).collect();
    for nic in nics.iter_mut().filter(|nic| nic.address.is_none()) {
        let network = state.find_network(nic.network.as_str())?;
        let NetworkKind::Nat { subnet } = &network.kind else { continue };
        let key = network.name.key();
        let mut used = used_addresses(state, &key, Some((vm, nic.id)));
        used.extend(given.iter().filter(|(k, _)| *k == key).map(|(_, address)| *address));
        let address = first_free(*subnet, &used).ok_or_else(|| Refused::Address {
            network: network.name.clone(),
            problem: format!("no address of {subnet} is free"),
        })?;
        given.insert((key, address));
        nic.address = Some(address);
    }
    Ok(())
}

/// The request with an address in each adapter that is to have one.
pub(crate) fn with_addresses(
    state: &ClusterState,
    request: &OpRequest,
) -> Result<OpRequest, Refused> {
    let mut request = request.clone();
    match &mut request {
        OpRequest::VmCreate { vm, spec, .. } => assign_addresses(state, *vm, &mut spec.nics)?,
        OpRequest::NicAdd { vm, nic } => {
            assign_addresses(state, *vm, std::slice::from_mut(nic))?;
        }
        OpRequest::NicSet { vm, nic, change } => {
            let mut changed = find(state.vm(*vm)?, *nic)?.clone();
            self::change(&mut changed, change);
            assign_addresses(state, *vm, std::slice::from_mut(&mut changed))?;
            change.address = changed.address;
        }
        _ => {}
    }
    Ok(request)
}

fn first_free(subnet: Ipv4Subnet, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    subnet.guest_addresses().find(|address| !used.contains(address))
}

/// Adapters that VMs have and adapters that operations under way will give them. Looked through at
/// each admission, so nothing is copied that stands in the state.
fn all_nics(state: &ClusterState) -> impl Iterator<Item = (VmId, Cow<'_, NicSpec>)> {
    let have = state.vms.values().flat_map(|vm| vm.spec.nics.iter().map(move |nic| (vm.id, nic)));
    let have = have.map(|(vm, nic)| (vm, Cow::Borrowed(nic)));
    let get = state.ops.values().filter(|op| op.is_running()).filter_map(|op| match &op.request {
        OpRequest::NicAdd { vm, nic } => Some((*vm, Cow::Borrowed(nic))),
        OpRequest::NicSet { vm, nic, change } => {
            let mut changed = state.vms.get(vm)?.spec.nic(*nic)?.clone();
            self::change(&mut changed, change);
            Some((*vm, Cow::Owned(changed)))
        }
        _ => None,
    });
    have.chain(get)
}

fn used_addresses(
    state: &ClusterState,
    network: &str,
    but: Option<(VmId, NicId)>,
) -> BTreeSet<Ipv4Addr> {
    all_nics(state)
        .filter(|(_, nic)| nic.network.as_str().eq_ignore_ascii_case(network))
        .filter(|(vm, nic)| Some((*vm, nic.id)) != but)
        .filter_map(|(_, nic)| nic.address)
        .collect()
}
