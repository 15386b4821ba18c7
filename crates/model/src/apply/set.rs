//! Changes of a VM's configuration.

use crate::ClusterState;
use crate::Name;
use crate::OpRecord;
use crate::OpRequest;
use crate::Power;
use crate::Refused;
use crate::VmChange;
use crate::VmId;
use crate::VmRecord;
use crate::VmSpec;
use crate::apply::ha;

/// Checks a change against the VM as it is.
pub(crate) fn admit(state: &ClusterState, vm: &VmRecord, change: &VmChange) -> Result<(), Refused> {
    if let Some(name) = &change.name {
        name_free(state, name, Some(vm.id))?;
    }
    let mut spec = vm.spec.clone();
    carry_out(&mut spec, change);
    // Growing past the ceiling while off just lifts the ceiling, as a user would expect.
    if vm.power == Power::Off {
        lift_ceilings(&mut spec, change);
    }
    spec.validate()?;
    let name = change.name.as_ref().unwrap_or(&vm.name);
    ha::admit_after(state, name, &spec.ha.after)?;
    if vm.power == Power::Off {
        return Ok(());
    }
    let needs_off = [
        (spec.cpus.max != vm.spec.cpus.max, "the most processors"),
        (spec.memory.max != vm.spec.memory.max, "the most memory"),
        (spec.firmware != vm.spec.firmware, "the firmware"),
        (spec.profile != vm.spec.profile, "the device family"),
    ];
    if let Some((_, what)) = needs_off.into_iter().find(|(changed, _)| *changed) {
        return Err(Refused::NeedsOff { what, target: vm.name.clone() });
    }
    if vm.power == Power::Saved && hardware_changed(&vm.spec, &spec) {
        return Err(Refused::NeedsOff { what: "the hardware", target: vm.name.clone() });
    }
    if vm.spec.profile == crate::DeviceProfile::Legacy && hardware_changed(&vm.spec, &spec) {
        return Err(Refused::Legacy { target: vm.name.clone(), what: "change hardware" });
    }
    Ok(())
}

/// Checks that no VM but `but` has the name, nor is being given it.
pub(crate) fn name_free(
    state: &ClusterState,
    name: &Name,
    but: Option<VmId>,
) -> Result<(), Refused> {
    let key = name.key();
    let has_it = state.vm_names.get(&key).is_some_and(|owner| Some(*owner) != but);
    let gets_it = |op: &OpRecord| match &op.request {
        OpRequest::VmSet { vm, change, .. } => {
            op.is_running()
                && Some(*vm) != but
                && change.name.as_ref().is_some_and(|wanted| wanted.key() == key)
        }
        _ => false,
    };
    if has_it || state.ops.values().any(|op| gets_it(op)) {
        return Err(Refused::NameTaken { what: "VM", name: name.clone() });
    }
    Ok(())
}

fn hardware_changed(old: &VmSpec, new: &VmSpec) -> bool {
    old.cpus.count != new.cpus.count || old.memory != new.memory
}

/// Carries an admitted change out.
pub(crate) fn change(vm: &mut VmRecord, change: &VmChange) {
    carry_out(&mut vm.spec, change);
    if vm.power == Power::Off {
        lift_ceilings(&mut vm.spec, change);
    }
}

fn carry_out(spec: &mut VmSpec, change: &VmChange) {
    let VmChange {
        name: _,
        cpus,
        cpus_max,
        cpu_weight,
        cpu_cap_percent,
        cpu_compat,
        memory,
        memory_max,
        balloon,
        firmware,
        profile,
        services,
        on_crash,
        ha,
        description,
        tags,
        keys,
        cloud_init,
        migration,
    } = change.clone();
    spec.cpus.max = cpus_max.unwrap_or(spec.cpus.max);
    spec.cpus.count = cpus.unwrap_or(spec.cpus.count);
    spec.cpus.weight = cpu_weight.unwrap_or(spec.cpus.weight);
    if let Some(cap) = cpu_cap_percent {
        spec.cpus.cap_percent = (cap != 0).then_some(cap);
    }
    spec.cpus.compat = cpu_compat.unwrap_or(spec.cpus.compat);
    spec.memory.max = memory_max.unwrap_or(spec.memory.max);
    if let Some(size) = memory {
        spec.memory.size = size;
        // A target above the new size has lost its meaning.
        spec.memory.balloon = spec.memory.balloon.filter(|target| *target < size);
    }
    if let Some(target) = balloon {
        spec.memory.balloon = (target != spec.memory.size).then_some(target);
    }
    spec.firmware = firmware.unwrap_or(spec.firmware);
    spec.profile = profile.unwrap_or(spec.profile);
    spec.services.shutdown = services.shutdown.unwrap_or(spec.services.shutdown);
    spec.services.heartbeat = services.heartbeat.unwrap_or(spec.services.heartbeat);
    spec.services.exchange = services.exchange.unwrap_or(spec.services.exchange);
    spec.services.time_sync = services.time_sync.unwrap_or(spec.services.time_sync);
    spec.services.backup = services.backup.unwrap_or(spec.services.backup);
    spec.on_crash = on_crash.unwrap_or(spec.on_crash);
    spec.ha.change(&ha);
    if let Some(description) = description {
        spec.description = description;
    }
    if let Some(tags) = tags {
        spec.tags = tags;
    }
    for (key, value) in keys {
        if value.is_empty() {
            spec.keys.remove(&key);
        } else {
            spec.keys.insert(key, value);
        }
    }
    spec.migration = spec.migration.changed(&migration);
    if cloud_init.is_some() {
        spec.cloud_init = cloud_init;
    }
}

fn lift_ceilings(spec: &mut VmSpec, change: &VmChange) {
    if change.cpus_max.is_none() {
        spec.cpus.max = spec.cpus.max.max(spec.cpus.count);
    }
    if change.memory_max.is_none() {
        spec.memory.max = spec.memory.max.max(spec.memory.size);
    }
}
