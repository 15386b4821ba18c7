//! A VM that the state has lost comes back from its directory.
//!
//! The node has looked at the files; what is checked here is what the state knows: ids, names,
//! networks, addresses, images.

use std::sync::Arc;

use crate::ClusterState;
use crate::DiskSource;
use crate::EventKind;
use crate::ImageRecord;
use crate::ImageState;
use crate::Power;
use crate::Refused;
use crate::Severity;
use crate::VmRecord;
use crate::apply::Context;
use crate::apply::begin;
use crate::apply::nics;
use crate::apply::vm_subject;
use crate::apply::volume;

pub(crate) fn register(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    found: &VmRecord,
    images: &[ImageRecord],
) -> Result<(), Refused> {
    // Images come first, since disks are checked against them, and a refusal must leave nothing.
    let mut next = state.clone();
    for image in images {
        admit_image(&next, image)?;
        next.images.insert(image.id, Arc::new(image.clone()));
    }
    next.node(found.owner)?;
    let mut vm = found.clone();
    for nic in &mut vm.spec.nics {
        // Its address may have been given to another VM meanwhile; it gets a new one then.
        if let Err(Refused::Address { .. }) = nics::admit(&next, vm.id, nic) {
            nic.address = None;
        }
    }
    for disk in &vm.spec.disks {
        if let DiskSource::Image { image } = disk.source {
            volume::admit_image(&next, image, None, vm.owner)?;
        }
    }
    begin::admit_create(&next, vm.id, &vm.name, &vm.spec)?;
    nics::assign_addresses(&next, vm.id, &mut vm.spec.nics)?;
    vm.slot = begin::free_slot(&next);
    vm.power = if vm.saved.is_some() { Power::Saved } else { Power::Off };
    vm.revision = vm.revision.next();
    vm.ops = Vec::new();
    vm.crashes = Vec::new();
    vm.volume = None;
    vm.copies = Vec::new();
    vm.takeovers = Vec::new();
    vm.moving = None;
    vm.deleted = None;
    let text = format!("{} was registered again from its directory", vm.name);
    cx.event(EventKind::VmRegistered, Severity::Info, vm_subject(&vm), text, None);
    next.vm_names.insert(vm.name.key(), vm.id);
    next.vms.insert(vm.id, Arc::new(vm));
    *state = next;
    Ok(())
}

fn admit_image(state: &ClusterState, image: &ImageRecord) -> Result<(), Refused> {
    begin::admit_image(state, image.id, &image.name)?;
    match image.state {
        ImageState::Ready { .. } => Ok(()),
        _ => Err(Refused::ImageNotReady(image.name.clone())),
    }
}
