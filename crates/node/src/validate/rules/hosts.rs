//! Rules on hosts: do they answer, do their clocks, processors and programs fit together, and is
//! there room for what a lost one had.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use api::types::Accelerator;
use api::validate::Check;
use api::validate::FindingView;
use api::validate::Subject;
use api::validate::Unit;
use api::validate::Verdict;
use model::NodeId;
use model::Platform;

use super::HostFacts;
use super::NodePicture;
use super::Picture;
use super::With;
use super::finding;
use super::node;
use super::shown_ms;
use super::some_of;
use super::unsaid;

/// From here on, events of two nodes are told in a wrong order that people notice, and what a guest
/// is told of the time jumps when it moves. A time service keeps hosts far closer.
const CLOCK_WARN_MS: u64 = 1_000;

/// From here on, the time is wrong and not merely drifting: certificates and join tokens are judged
/// by it, and a log of several nodes cannot be read. Leases do not depend on the date.
const CLOCK_FAIL_MS: u64 = 10_000;

/// Features that are named in a text.
const FEATURES_SHOWN: usize = 8;

pub(super) fn nodes(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Nodes;
    let mut found = Vec::new();
    for it in &picture.nodes {
        let before = found.len();
        match &it.host {
            None => continue,
            Some(Err(why)) => found.push(
                finding(check, Verdict::Fail, node(it), format!("it does not answer: {why}"))
                    .advice("see whether it runs: muster cluster status; all that follows is without it"),
            ),
            Some(Ok(host)) => {
                if let Some(why) = &host.engine_problem {
                    let text = format!("it cannot run machines: {why}");
                    found.push(
                        finding(check, Verdict::Fail, node(it), text)
                            .advice("install QEMU 10 or newer there: muster node show"),
                    );
                }
                if !host.missing_limits.is_empty() {
                    let text = format!(
                        "it cannot enforce all limits on machines: {}",
                        some_of(&host.missing_limits, 3)
                    );
                    found.push(
                        finding(check, Verdict::Warn, node(it), text)
                            .advice("turn these controllers on in the host's kernel or in systemd"),
                    );
                }
            }
        }
        if it.fenced {
            found.push(
                finding(check, Verdict::Warn, node(it), "it was fenced and takes no machines yet")
                    .advice(format!("see what it waits for: muster node fencing {}", it.name)),
            );
        }
        if found.len() == before {
            found.push(finding(check, Verdict::Pass, node(it), "it answers and can run machines"));
        }
    }
    found
}

/// How far each node's clock is ahead of the middle one, with the error of that, in milliseconds.
pub(in crate::validate) fn ahead_of_middle(picture: &Picture) -> Vec<(NodeId, i64, i64)> {
    let samples: Vec<_> = picture
        .nodes
        .iter()
        .filter_map(|it| Some((it.id, it.clock.as_ref()?.as_ref().ok()?)))
        .collect();
    let mut sorted: Vec<i64> = samples.iter().map(|(_, sample)| sample.ahead_ms).collect();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    let shift = |ahead: i64| ahead.saturating_sub(middle);
    samples
        .iter()
        .map(|(id, sample)| (*id, shift(sample.ahead_ms), sample.round_trip_ms / 2))
        .collect()
}

pub(super) fn clock(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Clock;
    let mut found = unsaid(picture, check, |it| &it.clock);
    let ahead = ahead_of_middle(picture);
    // Of two clocks nobody can say which one is wrong.
    let pair = match ahead.as_slice() {
        [(one, ..), (other, ..)] => Some((picture.name(*one), picture.name(*other))),
        _ => None,
    };
    let mut worst = 0;
    for (id, ms, error) in &ahead {
        let surely = ms.unsigned_abs().saturating_sub(error.unsigned_abs());
        worst = worst.max(ms.unsigned_abs());
        let verdict = match surely {
            CLOCK_FAIL_MS.. => Verdict::Fail,
            CLOCK_WARN_MS.. => Verdict::Warn,
            _ => continue,
        };
        let far = shown_ms(ms.unsigned_abs());
        let (subject, text) = match &pair {
            Some((one, other)) => (
                Subject::Pair { from: one.clone(), to: other.clone(), network: None },
                format!("their clocks differ by {far}; which one is right cannot be said of two"),
            ),
            None => {
                let way = if *ms > 0 { "ahead of" } else { "behind" };
                let name = picture.name(*id);
                let text = format!("its clock is {far} {way} the middle one of all nodes");
                (Subject::Node { node: name }, text)
            }
        };
        found.push(
            finding(check, verdict, subject, text)
                .advice("let a time service set it: apt-get install systemd-timesyncd (or chrony)")
                .measured(ms.unsigned_abs(), Unit::Milliseconds),
        );
    }
    if found.is_empty() && ahead.len() > 1 {
        let text = format!("all clocks are within {} of the middle one", shown_ms(worst));
        found.push(
            finding(check, Verdict::Pass, Subject::Cluster, text)
                .measured(worst, Unit::Milliseconds),
        );
    }
    let hosts = picture.hosts();
    let unset: Vec<&str> = hosts
        .iter()
        .filter(|(_, host)| host.time_service.is_none())
        .map(|(it, _)| it.name.as_str())
        .collect();
    if !unset.is_empty() {
        let text = format!("no time service is seen to set the clock on {}", some_of(unset, 5));
        found.push(
            finding(check, Verdict::Warn, Subject::Cluster, text)
                .advice("install one: apt-get install systemd-timesyncd (or chrony)"),
        );
    } else if !hosts.is_empty() {
        let text = "a time service sets the clock of each node";
        found.push(finding(check, Verdict::Pass, Subject::Cluster, text));
    }
    found
}

/// Nodes by a value, the value that most have first; of equally many, the one of the first node.
fn by_value(values: &[(&NodePicture, String)]) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for (it, value) in values {
        match groups.iter_mut().find(|(of, _)| of == value) {
            Some((_, names)) => names.push(it.name.clone()),
            None => groups.push((value.clone(), vec![it.name.clone()])),
        }
    }
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    groups
}

pub(super) fn cpu(picture: &Picture) -> Vec<FindingView> {
    let mut found = Vec::new();
    let hosts = picture.hosts();
    if hosts.is_empty() {
        return found;
    }
    vendors(picture, &mut found);
    features(picture, &mut found);
    accelerators(picture, &mut found);
    found
}

fn vendors(picture: &Picture, found: &mut Vec<FindingView>) {
    let vendor = |vendor: &str| match vendor {
        "" => "a vendor that is not known".to_owned(),
        vendor => vendor.to_owned(),
    };
    let values: Vec<_> =
        picture.hosts().iter().map(|(it, host)| (*it, vendor(&host.cpu.vendor))).collect();
    let groups = by_value(&values);
    let Some(((most, _), others)) = groups.split_first() else { return };
    for (vendor, names) in others {
        for name in names {
            let text = format!(
                "its processor is of {vendor}, most others' of {most}: no machine can move between \
                 them while it runs"
            );
            found.push(
                finding(Check::Cpu, Verdict::Fail, Subject::Node { node: name.clone() }, text)
                    .advice(
                        "machines can still be stopped here and started there, also after a loss; \
                         to move them while they run, use hosts with processors of one vendor",
                    ),
            );
        }
    }
    if others.is_empty() {
        let text = format!("all processors are of {most}");
        found.push(finding(Check::Cpu, Verdict::Pass, Subject::Cluster, text));
    }
}

fn features(picture: &Picture, found: &mut Vec<FindingView>) {
    let hosts = picture.hosts();
    let said: Vec<(&NodePicture, &Platform)> =
        hosts.iter().filter_map(|(it, host)| Some((*it, host.platform.as_ref()?))).collect();
    if said.len() == hosts.len() {
        return guests(&said, found);
    }
    let all: BTreeSet<&String> = hosts.iter().flat_map(|(_, host)| &host.cpu.features).collect();
    let common: Vec<&&String> = all
        .iter()
        .filter(|it| hosts.iter().all(|(_, host)| host.cpu.features.contains(**it)))
        .collect();
    let mut same = true;
    for (it, host) in &hosts {
        let missing: Vec<&&String> =
            all.iter().filter(|one| !host.cpu.features.contains(**one)).collect();
        if missing.is_empty() {
            continue;
        }
        same = false;
        let text = format!(
            "its processor lacks {} features that others have: {}",
            missing.len(),
            some_of(missing.iter().map(|it| it.as_str()), FEATURES_SHOWN)
        );
        let advice = format!(
            "a machine that shall move between all nodes while it runs can use the {} features that \
             all have, no more",
            common.len()
        );
        found.push(
            finding(Check::Cpu, Verdict::Warn, node(it), text)
                .advice(advice)
                .measured(missing.len() as u64, Unit::Count),
        );
    }
    if same {
        let text = format!("all processors have the same {} features", all.len());
        found.push(
            finding(Check::Cpu, Verdict::Pass, Subject::Cluster, text)
                .measured(all.len() as u64, Unit::Count),
        );
    }
}

/// What machines get, where every host has said what it can give them.
fn guests(said: &[(&NodePicture, &Platform)], found: &mut Vec<FindingView>) {
    let mut same = true;
    for (it, platform) in said {
        let mut others = said
            .iter()
            .filter(|(other, kin)| other.id != it.id && kin.is_kin(platform))
            .map(|(_, kin)| &kin.cpu_features);
        let Some(first) = others.next() else { continue };
        let mut common = first.clone();
        others.for_each(|more| common.retain(|one| more.contains(one)));
        let lowered: Vec<&str> =
            common.difference(&platform.cpu_features).map(String::as_str).collect();
        if lowered.is_empty() {
            continue;
        }
        same = false;
        let count = lowered.len() as u64;
        let text = format!(
            "because of it, machines get {count} features less when they are switched on: {}",
            some_of(lowered, FEATURES_SHOWN)
        );
        let advice = "machines that run keep what they have, and can go there only when they were \
                      off and on; see: muster cluster cpu";
        found.push(
            finding(Check::Cpu, Verdict::Warn, node(it), text)
                .advice(advice)
                .measured(count, Unit::Count),
        );
    }
    if same {
        let text = "no host lowers what machines get of their processors".to_owned();
        found.push(finding(Check::Cpu, Verdict::Pass, Subject::Cluster, text));
    }
}

fn accelerators(picture: &Picture, found: &mut Vec<FindingView>) {
    let hosts = picture.hosts();
    let known: Vec<_> =
        hosts.iter().filter_map(|(it, host)| Some((*it, *host, host.accelerator?))).collect();
    let slow: Vec<_> =
        known.iter().filter(|(_, _, accelerator)| *accelerator == Accelerator::Tcg).collect();
    let mixed = !slow.is_empty() && slow.len() < known.len();
    for (it, host, _) in &slow {
        let (verdict, effect) = match mixed {
            true => (
                Verdict::Fail,
                "; others use KVM, and no machine can move between the two while it runs",
            ),
            false => (Verdict::Warn, ", which is much slower"),
        };
        let why = &host.accelerator_reason;
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        let text = format!("machines run under emulation there{effect}{why}");
        found.push(
            finding(Check::Cpu, verdict, node(it), text)
                .advice("turn virtualization on in the firmware, and load the module kvm"),
        );
    }
    if slow.is_empty() && !known.is_empty() {
        let text = "all nodes run machines by KVM";
        found.push(finding(Check::Cpu, Verdict::Pass, Subject::Cluster, text));
    }
}

/// The version of something on a host.
type Version = fn(&HostFacts) -> String;

pub(super) fn versions(picture: &Picture) -> Vec<FindingView> {
    let hosts = picture.hosts();
    let mut found = Vec::new();
    let kinds: [(&str, Version, &str); 3] = [
        ("Muster", |host| host.muster.clone(), "upgrade the nodes to one version, one by one"),
        (
            "QEMU",
            |host| host.qemu.clone().unwrap_or_else(|| "none".to_owned()),
            "a machine moves to a newer QEMU and may not come back: install one version everywhere",
        ),
        ("the kernel", |host| host.kernel.clone(), "boot all nodes into one version"),
    ];
    for (what, of, advice) in kinds {
        let values: Vec<_> = hosts.iter().map(|(it, host)| (*it, of(host))).collect();
        let groups = by_value(&values);
        match groups.as_slice() {
            [] => {}
            [(version, _)] => {
                let text = format!("{what} is {version} on all nodes");
                found.push(finding(Check::Versions, Verdict::Pass, Subject::Cluster, text));
            }
            many => {
                let matrix: Vec<_> = many
                    .iter()
                    .map(|(version, names)| format!("{version} on {}", some_of(names, 5)))
                    .collect();
                let text = format!("{what} is not the same everywhere: {}", matrix.join("; "));
                found.push(
                    finding(Check::Versions, Verdict::Warn, Subject::Cluster, text).advice(advice),
                );
            }
        }
    }
    found
}

pub(super) fn memory(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Memory;
    let mut found = Vec::new();
    if picture.nodes.len() < 2 {
        let text = "this is the only node: nothing can take its machines over";
        let advice = "let another host join: muster cluster token";
        return vec![finding(check, Verdict::Warn, Subject::Cluster, text).advice(advice)];
    }
    let planned: BTreeMap<&str, _> =
        picture.losses.iter().map(|loss| (loss.node.as_str(), loss)).collect();
    for it in &picture.nodes {
        let Some(loss) = planned.get(it.name.as_str()) else {
            if matches!(it.host, Some(Ok(_))) {
                let text = "it is not heard by its heartbeats: its loss was not planned";
                let advice = "see the networks below, and muster cluster status";
                found.push(finding(check, Verdict::Warn, node(it), text).advice(advice));
            }
            continue;
        };
        if !loss.unplaced.is_empty() {
            let vms = loss.unplaced.iter().map(|vm| format!("{} ({})", vm.vm, vm.why));
            let text = format!("if it were lost, these would not start: {}", some_of(vms, 5));
            found.push(
                finding(check, Verdict::Fail, node(it), text)
                    .advice(
                        "add memory or a node, make machines smaller, or give these a lower \
                         priority: muster cluster capacity",
                    )
                    .measured(loss.unplaced.len() as u64, Unit::Count),
            );
        }
        if !loss.local.is_empty() {
            let vms = loss.local.iter().map(ToString::to_string);
            let text = format!(
                "if it were lost, these on its own disks would be down: {}",
                some_of(vms, 5)
            );
            found.push(
                finding(check, Verdict::Warn, node(it), text)
                    .advice(
                        "machines that must go on belong on a shared volume: muster volume list",
                    )
                    .measured(loss.local.len() as u64, Unit::Count),
            );
        }
        if loss.unplaced.is_empty() && loss.local.is_empty() {
            let text = format!(
                "if it were lost, all {} of its running machines would start elsewhere",
                loss.restarted
            );
            found.push(
                finding(check, Verdict::Pass, node(it), text)
                    .measured(u64::from(loss.restarted), Unit::Count),
            );
        }
    }
    found
}
