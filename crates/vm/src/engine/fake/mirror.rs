//! Copies of a fake machine's disks. The files are real where they are there: what the fake guest has
//! written and got acknowledged is in them, or it is lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use model::Bytes;

use super::FakeHost;
use super::Fault;
use super::lock;
use super::machine::FakeVm;
use crate::engine::EngineError;
use crate::engine::ImageSlot;
use crate::engine::MachineEvent;
use crate::engine::MirrorPhase;
use crate::engine::MirrorPlan;
use crate::engine::MirrorProgress;
use crate::engine::RunState;

/// What is copied at once.
const BLOCK: usize = 4096;

/// Looks until all of a disk is copied.
const LOOKS: u64 = 3;

/// A copy under way.
#[derive(Debug)]
pub(super) struct Mirror {
    target: PathBuf,
    /// Held open, as by a process: whoever renames it changes nothing.
    file: File,
    phase: MirrorPhase,
    looks: u64,
    tight: bool,
}

fn refuse(why: &str) -> EngineError {
    EngineError::Command { command: "blockdev-mirror".to_owned(), why: why.to_owned() }
}

/// Begins a copy.
pub(super) fn begin(vm: &mut FakeVm, plan: &MirrorPlan) -> Result<(), EngineError> {
    let Some(target) = plan.chain.first().map(|file| file.path.clone()) else {
        return Err(refuse("there is no file to copy to"));
    };
    if vm.image(plan.slot).is_none() {
        return Err(EngineError::NotPlugged(format!("{:?}", plan.slot)));
    }
    let file = File::options().read(true).write(true).open(&target).map_err(|error| {
        let path = target.display().to_string();
        EngineError::Image { path, why: error.to_string() }
    })?;
    if vm.mirrors.contains_key(&plan.slot) {
        return Err(refuse("it is being copied already"));
    }
    let mirror = Mirror { target, file, phase: MirrorPhase::Copying, looks: 0, tight: false };
    vm.mirrors.insert(plan.slot, mirror);
    Ok(())
}

/// How far all are. Each look brings them further.
pub(super) fn progress(host: &FakeHost, vm: &mut FakeVm) -> BTreeMap<ImageSlot, MirrorProgress> {
    let id = vm.run.vm;
    let stalls = host.has_fault(id, &Fault::MirrorStalls);
    let fails = host.find_fault(id, |fault| match fault {
        Fault::MirrorFails(why) => Some(why.clone()),
        _ => None,
    });
    let sources: BTreeMap<_, _> =
        vm.mirrors.keys().filter_map(|slot| Some((*slot, vm.image(*slot)?))).collect();
    for (slot, mirror) in &mut vm.mirrors {
        if mirror.phase != MirrorPhase::Copying {
            continue;
        }
        if let Some(why) = &fails {
            mirror.phase = MirrorPhase::Failed(why.clone());
            continue;
        }
        if !stalls {
            mirror.looks = (mirror.looks + 1).min(LOOKS);
        }
        if mirror.tight && mirror.looks == LOOKS {
            // From here on each write goes to both.
            mirror.phase = match copy(&sources[slot], &mirror.file) {
                Ok(()) => MirrorPhase::InStep,
                Err(error) => MirrorPhase::Failed(error.to_string()),
            };
        }
    }
    let told = vm.mirrors.iter().map(|(slot, mirror)| {
        let progress = MirrorProgress {
            phase: mirror.phase.clone(),
            target: Some(mirror.target.clone()),
            done: Bytes::new(mirror.looks),
            total: Bytes::new(LOOKS),
        };
        (*slot, progress)
    });
    told.collect()
}

fn copy(from: &Path, to: &File) -> io::Result<()> {
    for (at, block) in (0..).zip(std::fs::read(from)?.chunks(BLOCK)) {
        // Thin stays thin.
        if block.iter().any(|byte| *byte != 0) {
            to.write_all_at(block, at * BLOCK as u64)?;
        }
    }
    Ok(())
}

/// Makes writes wait for both files, and asks those that are in step to hold.
pub(super) fn tighten(vm: &mut FakeVm) {
    for mirror in vm.mirrors.values_mut() {
        mirror.tight = true;
    }
}

pub(super) fn hold(vm: &mut FakeVm) {
    for mirror in vm.mirrors.values_mut() {
        if mirror.phase == MirrorPhase::InStep {
            mirror.phase = MirrorPhase::Held;
        }
    }
    vm.emit(MachineEvent::MirrorMoved);
}

/// The new files are the machine's.
pub(super) fn pivot(host: &FakeHost, vm: &mut FakeVm) -> Result<(), EngineError> {
    if vm.mirrors.values().any(|mirror| mirror.phase != MirrorPhase::Held) {
        return Err(refuse("it is not held"));
    }
    if host.has_fault(vm.run.vm, &Fault::PivotFails) {
        return Err(refuse("it does not let go"));
    }
    for (slot, mirror) in std::mem::take(&mut vm.mirrors) {
        let opened = format!("/proc/self/fd/{}", mirror.file.as_raw_fd());
        vm.set_image(slot, std::fs::read_link(opened).unwrap_or(mirror.target));
    }
    Ok(())
}

/// All are given up.
pub(super) fn cancel(vm: &mut FakeVm) {
    vm.mirrors.clear();
    vm.emit(MachineEvent::MirrorMoved);
}

impl FakeHost {
    /// The guest writes a number to the beginning of each of its disks. True if it was acknowledged.
    pub fn guest_writes(&self, vm: model::VmId, number: u64) -> bool {
        let Some(fake) = lock(&self.0.vms).get(&vm).cloned() else { return false };
        let fake = lock(&fake);
        let held = fake.mirrors.values().any(|mirror| mirror.phase == MirrorPhase::Held);
        if fake.exit.is_some() || fake.state != RunState::Running || held {
            return false;
        }
        let both = fake.mirrors.iter().filter(|(_, it)| it.phase == MirrorPhase::InStep);
        let number = number.to_be_bytes();
        let write =
            |path: &PathBuf| File::options().write(true).open(path)?.write_all_at(&number, 0);
        let mut all = true;
        for mirror in both.filter(|(slot, _)| **slot != ImageSlot::Firmware) {
            all &= mirror.1.file.write_all_at(&number, 0).is_ok();
        }
        fake.writers().iter().all(|path| write(path).is_ok()) && all
    }

    /// What the guest reads at the beginning of its first disk, if it can read now.
    pub fn guest_reads(&self, vm: model::VmId) -> Option<u64> {
        let fake = lock(&self.0.vms).get(&vm).cloned()?;
        let fake = lock(&fake);
        let held = fake.mirrors.values().any(|mirror| mirror.phase == MirrorPhase::Held);
        if fake.exit.is_some() || fake.state != RunState::Running || held {
            return None;
        }
        let mut number = [0; 8];
        File::open(fake.writers().first()?).ok()?.read_exact_at(&mut number, 0).ok()?;
        Some(u64::from_be_bytes(number))
    }

    /// The files that a machine's process writes to as its own.
    pub fn writes_to(&self, vm: model::VmId) -> Vec<PathBuf> {
        let fake = lock(&self.0.vms).get(&vm).cloned();
        fake.map(|fake| lock(&fake).writers()).unwrap_or_default()
    }
}
