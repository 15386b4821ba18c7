//! What nodes can run, and what a VM's processors are made of (FEATURES.md area 1, "Processor
//! compatibility mode").
//!
//! ```text
//!   node: what its QEMU can give a guest here  -->  Platform, in the state
//!   cold start of a VM: what all nodes of that maker can give  -->  GuestCpu, frozen in the VM's record
//!   migration, resume of a saved VM: the node must have all of the frozen one
//! ```
//!
//! A guest finds out once, when it boots, what its processors can do, and never looks again: one
//! that came to a node that can do less would crash some time later. So what it has is fixed for as
//! long as its memory lives, whatever becomes of the nodes, and is changed by the next cold start.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ClusterState;
use crate::Membership;
use crate::NodeRecord;
use crate::VmRecord;

/// Most features of a processor: QEMU 10 knows some 350.
const FEATURES_MAX: usize = 1_024;

/// Longest name of a feature, a model or a machine type, in characters.
const WORD_CHARS_MAX: usize = 64;

/// Features that are named in a sentence; of more, the number is told.
const NAMED_MAX: usize = 8;

/// What carries a guest's processors out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The host's processor itself.
    Kvm,
    /// Emulation: works everywhere, much slower.
    Tcg,
}

/// What the processors of a VM have when it is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuCompat {
    /// All that every node of the cluster with processors of that maker has: it can go to each.
    #[default]
    Cluster,
    /// All that its node has: while it runs it can only go to nodes that have as much.
    Node,
    /// The least that every processor of that maker of the last decade has: it can also go to older
    /// nodes that join later.
    Minimal,
}

/// What a node's engine can give guests. Told by the node whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Platform {
    /// Engine and version, such as `QEMU 10.0.2`.
    pub engine: String,
    /// What carries processors out there.
    pub accelerator: Accelerator,
    /// The least model of its processor's maker, as QEMU calls it.
    pub cpu_base: String,
    /// What it can give beyond that model, by QEMU's names.
    pub cpu_features: BTreeSet<String>,
    /// Newest versioned machine type for the virtio profile, such as `pc-q35-10.0`.
    pub machine_virtio: String,
    /// The same for the legacy profile.
    pub machine_legacy: String,
}

/// What the processors of a VM have, from its start until its memory is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestCpu {
    /// QEMU's model.
    pub base: String,
    /// What they have beyond it.
    pub features: BTreeSet<String>,
}

impl CpuCompat {
    /// Whether this is what every VM has that nobody said anything about.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl GuestCpu {
    /// As QEMU's option `-cpu` takes it. With `enforce`, QEMU refuses to start where the host cannot
    /// give all of it, instead of leaving something out in silence.
    pub fn to_qemu(&self) -> String {
        let features: String = self.features.iter().map(|one| format!(",+{one}")).collect();
        format!("{}{features},enforce", self.base)
    }
}

impl Platform {
    /// Everything that a guest can get here.
    pub fn all(&self) -> GuestCpu {
        GuestCpu { base: self.cpu_base.clone(), features: self.cpu_features.clone() }
    }

    /// Whether processors here are of the same maker and carried out in the same way.
    pub fn is_kin(&self, other: &Self) -> bool {
        self.cpu_base == other.cpu_base && self.accelerator == other.accelerator
    }

    /// Whether a guest with these processors can go on here.
    ///
    /// # Errors
    /// What is missing, in words that go on from the name of the node.
    pub fn fits(&self, cpu: &GuestCpu) -> Result<(), String> {
        if cpu.base != self.cpu_base {
            return Err(format!(
                "has processors of another maker ({}, the guest has {})",
                self.cpu_base, cpu.base
            ));
        }
        let missing: Vec<&str> =
            cpu.features.difference(&self.cpu_features).map(String::as_str).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(format!("lacks {} of the guest's processors", some(&missing))),
        }
    }

    /// Whether machines of a versioned type, such as `pc-q35-10.0`, can be started here.
    pub fn knows(&self, machine: &str) -> bool {
        let newest = match machine.starts_with("pc-i440fx-") {
            true => &self.machine_legacy,
            false => &self.machine_virtio,
        };
        let versions = machine_version(machine).zip(machine_version(newest));
        versions.is_some_and(|(wanted, newest)| wanted <= newest)
    }

    /// Checks names, which end up in command lines.
    ///
    /// # Errors
    /// The first one that cannot be.
    pub fn validate(&self) -> Result<(), String> {
        let words = [&self.cpu_base, &self.machine_virtio, &self.machine_legacy];
        if self.cpu_features.len() > FEATURES_MAX {
            return Err(format!("{} features of a processor", self.cpu_features.len()));
        }
        let bad = |word: &&String| {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            word.is_empty() || word.len() > WORD_CHARS_MAX || !word.chars().all(fits)
        };
        if let Some(word) = words.into_iter().chain(&self.cpu_features).find(bad) {
            return Err(format!("{word:?} is no name of a model, a feature or a machine type"));
        }
        match self.engine.chars().count() > WORD_CHARS_MAX {
            true => Err("the name of the engine is too long".to_owned()),
            false => Ok(()),
        }
    }
}

/// Features in words: by name as long as they are few.
pub fn some<T: AsRef<str>>(features: &[T]) -> String {
    let named: Vec<&str> = features.iter().take(NAMED_MAX).map(AsRef::as_ref).collect();
    match features.len().saturating_sub(named.len()) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// The version of a machine type such as `pc-q35-10.0`.
pub fn machine_version(machine: &str) -> Option<(u32, u32)> {
    let (_, version) = machine.rsplit_once('-')?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl ClusterState {
    /// Nodes that are to stay, with what they can run, as far as they have said.
    pub fn platforms(&self) -> impl Iterator<Item = (&NodeRecord, &Platform)> {
        self.nodes
            .values()
            .filter(|node| node.membership == Membership::Member)
            .filter_map(|node| Some((&**node, node.platform.as_deref()?)))
    }

    /// What every node of that maker can give: the baseline.
    pub fn baseline(&self, of: &Platform) -> GuestCpu {
        let mut baseline = of.all();
        for (_, other) in self.platforms().filter(|(_, other)| of.is_kin(other)) {
            baseline.features.retain(|one| other.cpu_features.contains(one));
        }
        baseline
    }

    /// The newest machine types that all nodes know, for the virtio and the legacy profile; none
    /// where no node has said.
    pub fn common_machines(&self) -> Option<(String, String)> {
        let oldest = |of: fn(&Platform) -> &String| {
            self.platforms().map(|(_, it)| of(it)).min_by_key(|it| machine_version(it)).cloned()
        };
        Some((oldest(|it| &it.machine_virtio)?, oldest(|it| &it.machine_legacy)?))
    }

    /// What a VM's processors get at a cold start on its node; none where that node has not said
    /// what it can.
    pub fn cpu_at_start(&self, vm: &VmRecord) -> Option<GuestCpu> {
        let platform = self.nodes.get(&vm.owner)?.platform.as_deref()?;
        Some(match vm.spec.cpus.compat {
            CpuCompat::Cluster => self.baseline(platform),
            CpuCompat::Node => platform.all(),
            CpuCompat::Minimal => {
                GuestCpu { base: platform.cpu_base.clone(), features: BTreeSet::new() }
            }
        })
    }
}
