//! What was changed in a VM's settings, when and by whom.
//!
//! The newest changes of each VM stand in the replicated state beside its record, not in it: lists
//! of VMs do not carry them. A change of settings is one that raised the record's revision; it is noted where
//! a command is applied (`apply::history`), whichever command it was, so none can be forgotten.
//!
//! What may be secret is never kept: of the guest's keys and of its first-boot configuration it is
//! told only that they changed (`docs/decisions/0033-history-idle-certificates.md`).

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Bytes;
use crate::DiskSource;
use crate::HaChange;
use crate::MigrateChange;
use crate::OpId;
use crate::Revision;
use crate::ServiceChange;
use crate::UnixMillis;
use crate::VmChange;
use crate::VmRecord;
use crate::VmSpec;

/// Most changes that are kept of one VM: some years of an ordinary one.
pub const CHANGES_MAX: usize = 50;

/// Most bytes of values that are kept of one VM, its newest change apart: with 8,000 VMs of which
/// somebody rewrites long descriptions all day the state stays below half a gigabyte.
const VALUES_MAX: usize = 32 * 1024;

/// One change of a VM's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChange {
    /// The revision of the configuration that it made.
    pub revision: Revision,
    /// When.
    pub at: UnixMillis,
    /// Who: whoever began the operation.
    pub by: String,
    /// The operation, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpId>,
    /// Settings as they were: those only that changed. As a change, it sets them back.
    pub before: Box<VmChange>,
    /// The same ones as they became.
    pub after: Box<VmChange>,
    /// What no [`VmChange`] says: disks, network adapters, the machine type, and what is not told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<FieldChange>,
}

/// One setting before and after a change, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// Which, such as `memory` or `disk data: size`.
    pub field: String,
    /// What it was; none where there was nothing, and where it is not told.
    #[serde(default)]
    pub old: Option<String>,
    /// What it became; none where there is nothing now, and where it is not told.
    #[serde(default)]
    pub new: Option<String>,
    /// It may be a secret, so neither is told.
    #[serde(default)]
    pub withheld: bool,
}

impl SettingsChange {
    /// What differs between two records of one VM; none if no setting does.
    pub(crate) fn between(old: &VmRecord, new: &VmRecord) -> Option<Difference> {
        let (before, after) = differing(old, new);
        let mut others = devices(old, new);
        others.extend(withheld(&old.spec, &new.spec));
        let nothing = before == VmChange::default() && others.is_empty();
        (!nothing).then(|| Difference { before: Box::new(before), after: Box::new(after), others })
    }

    /// All that changed, in words, settings first.
    pub fn fields(&self) -> Vec<FieldChange> {
        let (before, after) = (rows(&self.before), rows(&self.after));
        let settings = before.into_iter().zip(after).filter_map(|((field, old), (_, new))| {
            let told = old.is_some() || new.is_some();
            told.then(|| FieldChange { field: field.to_owned(), old, new, withheld: false })
        });
        settings.chain(self.others.iter().cloned()).collect()
    }

    /// The change that sets back what can be: none where it only was about devices or secrets.
    pub fn back(&self) -> Option<VmChange> {
        (*self.before != VmChange::default()).then(|| (*self.before).clone())
    }

    fn weight(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.fields().iter().map(|it| it.field.len() + length(&it.old) + length(&it.new)).sum()
    }
}

/// What differs between two records.
pub(crate) struct Difference {
    pub(crate) before: Box<VmChange>,
    pub(crate) after: Box<VmChange>,
    pub(crate) others: Vec<FieldChange>,
}

/// Adds a change as the newest, and drops the oldest ones beyond the limits.
pub(crate) fn add(changes: &mut Vec<SettingsChange>, change: SettingsChange) {
    changes.push(change);
    let mut bytes = 0;
    let fit = changes.iter().rev().take(CHANGES_MAX).take_while(|change| {
        bytes += change.weight();
        bytes <= VALUES_MAX
    });
    // The newest one is kept, however long it is: it is what was just done.
    let keep = fit.count().max(1);
    changes.drain(..changes.len() - keep);
}

/// All settings of a VM as the change that would make them.
pub(crate) fn said(vm: &VmRecord) -> VmChange {
    let VmSpec {
        cpus,
        memory,
        firmware,
        profile,
        disks: _,
        nics: _,
        services,
        cloud_init: _,
        on_crash,
        ha,
        migration,
        description,
        tags,
        keys: _,
    } = &vm.spec;
    VmChange {
        name: Some(vm.name.clone()),
        cpus: Some(cpus.count),
        cpus_max: Some(cpus.max),
        cpu_weight: Some(cpus.weight),
        cpu_cap_percent: Some(cpus.cap_percent.unwrap_or(0)),
        cpu_compat: Some(cpus.compat),
        memory: Some(memory.size),
        memory_max: Some(memory.max),
        balloon: Some(memory.balloon.unwrap_or(memory.size)),
        firmware: Some(*firmware),
        profile: Some(*profile),
        services: ServiceChange {
            shutdown: Some(services.shutdown),
            heartbeat: Some(services.heartbeat),
            exchange: Some(services.exchange),
            time_sync: Some(services.time_sync),
            backup: Some(services.backup),
        },
        on_crash: Some(*on_crash),
        ha: HaChange {
            enabled: Some(ha.enabled),
            priority: Some(ha.priority),
            preferred: Some(ha.preferred.clone()),
            possible: Some(ha.possible.clone()),
            failback: Some(ha.failback),
            after: Some(ha.after.clone()),
            failures_max: Some(ha.failures_max),
            failure_period: Some(ha.failure_period),
            restart_hung: Some(ha.restart_hung),
            hung_after: Some(ha.hung_after),
        },
        migration: MigrateChange {
            max_pause: Some(migration.max_pause),
            throttle: Some(migration.throttle),
            at_limit: Some(migration.at_limit),
            bandwidth: Some(migration.bandwidth.unwrap_or(Bytes::ZERO)),
        },
        description: Some(description.clone()),
        tags: Some(tags.clone()),
        keys: std::collections::BTreeMap::new(),
        cloud_init: None,
    }
}

/// Takes out of both what is equal in both.
macro_rules! take_equal {
    ($old:ident, $new:ident, $($field:ident $(. $part:ident)?),+ $(,)?) => {$(
        if $old.$field $(.$part)? == $new.$field $(.$part)? {
            $old.$field $(.$part)? = None;
            $new.$field $(.$part)? = None;
        }
    )+};
}

fn differing(old: &VmRecord, new: &VmRecord) -> (VmChange, VmChange) {
    let (mut before, mut after) = (said(old), said(new));
    if old.spec.memory.balloon == new.spec.memory.balloon {
        // An empty balloon goes along with the size of the memory.
        (before.balloon, after.balloon) = (None, None);
    }
    take_equal!(
        before,
        after,
        name,
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
        services.shutdown,
        services.heartbeat,
        services.exchange,
        services.time_sync,
        services.backup,
        on_crash,
        ha.enabled,
        ha.priority,
        ha.preferred,
        ha.possible,
        ha.failback,
        ha.after,
        ha.failures_max,
        ha.failure_period,
        ha.restart_hung,
        ha.hung_after,
        migration.max_pause,
        migration.throttle,
        migration.at_limit,
        migration.bandwidth,
        description,
        tags,
    );
    (before, after)
}

/// A change's settings in words; always the same rows, so that two changes stand side by side.
pub(crate) fn rows(change: &VmChange) -> Vec<(&'static str, Option<String>)> {
    fn text<T: ToString>(value: Option<&T>) -> Option<String> {
        value.map(ToString::to_string)
    }
    fn switch(value: Option<bool>) -> Option<String> {
        value.map(|on| if on { "on" } else { "off" }.to_owned())
    }
    fn words<T: ToString>(value: Option<&Vec<T>>) -> Option<String> {
        value.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }
    // Words of the API: the name of the variant in small letters, with `_` between words.
    fn word<T: std::fmt::Debug>(value: Option<&T>) -> Option<String> {
        let snake = |name: String| {
            name.chars().enumerate().fold(String::new(), |mut text, (at, letter)| {
                if letter.is_uppercase() && at > 0 {
                    text.push('_');
                }
                text.extend(letter.to_lowercase());
                text
            })
        };
        value.map(|value| snake(format!("{value:?}")))
    }
    let seconds = |value: Option<crate::Millis>| value.map(|it| format!("{} s", it.get() / 1000));
    let unless_zero = |value: Option<Bytes>| {
        value.map(|it| if it == Bytes::ZERO { "no limit".to_owned() } else { it.to_string() })
    };
    let cap = change.cpu_cap_percent.map(|cap| match cap {
        0 => "no limit".to_owned(),
        cap => format!("{cap} %"),
    });
    let (services, ha, migration) = (&change.services, &change.ha, &change.migration);
    vec![
        ("name", text(change.name.as_ref())),
        ("processors", text(change.cpus.as_ref())),
        ("most processors", text(change.cpus_max.as_ref())),
        ("processor weight", text(change.cpu_weight.as_ref())),
        ("processor cap", cap),
        ("processor compatibility", word(change.cpu_compat.as_ref())),
        ("memory", text(change.memory.as_ref())),
        ("most memory", text(change.memory_max.as_ref())),
        ("balloon", text(change.balloon.as_ref())),
        ("firmware", word(change.firmware.as_ref())),
        ("devices", word(change.profile.as_ref())),
        ("service shutdown", switch(services.shutdown)),
        ("service heartbeat", switch(services.heartbeat)),
        ("service exchange", switch(services.exchange)),
        ("service time-sync", switch(services.time_sync)),
        ("service backup", switch(services.backup)),
        ("after a crash", word(change.on_crash.as_ref())),
        ("failover", switch(ha.enabled)),
        ("priority", word(ha.priority.as_ref())),
        ("preferred nodes", words(ha.preferred.as_ref())),
        ("possible nodes", words(ha.possible.as_ref())),
        ("failback", switch(ha.failback)),
        ("started after", words(ha.after.as_ref())),
        ("most takeovers", text(ha.failures_max.as_ref())),
        ("period of takeovers", seconds(ha.failure_period)),
        ("restart when hung", switch(ha.restart_hung)),
        ("hung after", seconds(ha.hung_after)),
        ("migration: longest pause", migration.max_pause.map(|it| format!("{} ms", it.get()))),
        ("migration: slow down", switch(migration.throttle)),
        ("migration: at the limit", word(migration.at_limit.as_ref())),
        ("migration: most per second", unless_zero(migration.bandwidth)),
        ("description", change.description.clone()),
        ("tags", words(change.tags.as_ref())),
    ]
}

/// Disks, network adapters and the machine type: what no [`VmChange`] says.
fn devices(old: &VmRecord, new: &VmRecord) -> Vec<FieldChange> {
    let mut before = Vec::new();
    let mut after = Vec::new();
    for (vm, list) in [(old, &mut before), (new, &mut after)] {
        list.push(("machine type".to_owned(), vm.pinned.machine_type.clone()));
        for disk in &vm.spec.disks {
            list.push((format!("disk {}: size", disk.name), disk.size.to_string()));
            let source = match disk.source {
                DiskSource::Blank => "whole".to_owned(),
                DiskSource::Image { image } => format!("thin copy of image {image}"),
            };
            list.push((format!("disk {}: contents", disk.name), source));
        }
        for nic in &vm.spec.nics {
            let name = &nic.name;
            list.push((format!("adapter {name}: network"), nic.network.to_string()));
            let address = nic.address.map_or("none".to_owned(), |address| address.to_string());
            list.push((format!("adapter {name}: address"), address));
            let cable = if nic.link_up { "in" } else { "out" };
            list.push((format!("adapter {name}: cable"), cable.to_owned()));
        }
    }
    let find = |list: &[(String, String)], field: &str| {
        list.iter().find(|(name, _)| name == field).map(|(_, value)| value.clone())
    };
    let removed = before.iter().filter(|(field, _)| find(&after, field).is_none());
    let all = after.iter().chain(removed);
    all.map(|(field, _)| FieldChange {
        field: field.clone(),
        old: find(&before, field),
        new: find(&after, field),
        withheld: false,
    })
    .filter(|change| change.old != change.new)
    .collect()
}

/// What may hold a password: only that it changed.
fn withheld(old: &VmSpec, new: &VmSpec) -> Vec<FieldChange> {
    let names = old.keys.keys().chain(new.keys.keys().filter(|key| !old.keys.contains_key(*key)));
    let keys = names
        .filter(|key| old.keys.get(*key) != new.keys.get(*key))
        .map(|key| format!("key {key}"));
    let first_boot = (old.cloud_init != new.cloud_init).then(|| "first-boot configuration".into());
    keys.chain(first_boot)
        .map(|field| FieldChange { field, old: None, new: None, withheld: true })
        .collect()
}
