//! Rules on disks and volumes: is a flush fast enough, and may it be believed.

use api::validate::Check;
use api::validate::FindingView;
use api::validate::Subject;
use api::validate::Unit;
use api::validate::Verdict;

use super::DiskFacts;
use super::NodePicture;
use super::Picture;
use super::With;
use super::finding;
use super::node;
use super::shown;
use super::some_of;
use super::unsaid;

/// Each change waits for a flush on a majority: from here on, people wait for the cluster. Solid
/// state disks need a tenth of it; a spinning one about half.
const MEDIAN_WARN_US: u64 = 20_000;

/// An election begins after 800 ms without the leader's word: a node that needs longer than that for
/// half of its flushes cannot follow.
const MEDIAN_FAIL_US: u64 = 800_000;

/// One in a hundred may take this long: beyond, leaders change under load.
const SLOWEST_WARN_US: u64 = 400_000;

/// A spinning disk needs part of a turn for each flush: 7,200 turns a minute are 8.3 ms for one. No
/// such disk has half of its flushes done in a twentieth of a turn.
const SPINNING_LEAST_US: u64 = 400;

/// File systems that lose everything with the power.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// File systems whose flushes end in a program or host that cannot be looked into from here.
const ELSEWHERE: [&str; 8] =
    ["9p", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "fuse", "fuse.sshfs"];

/// Mount options that turn flushes off.
const UNFLUSHED: [&str; 4] = ["nobarrier", "barrier=0", "volatile", "nofsync"];

pub(super) fn disks(picture: &Picture) -> Vec<FindingView> {
    let mut found = unsaid(picture, Check::Disks, |it| &it.disks);
    for it in &picture.nodes {
        let Some(Ok(disks)) = &it.disks else { continue };
        for disk in disks {
            let subject = subject(picture, it, disk);
            if let Some(why) = &disk.problem {
                let text = format!("{} cannot be written: {why}", disk.path);
                found.push(
                    finding(Check::Disks, Verdict::Fail, subject, text)
                        .advice("mount it there, writable, and see how full it is: df -h"),
                );
                continue;
            }
            found.push(speed(disk, subject.clone()));
            found.push(honesty(disk, subject));
        }
    }
    found
}

fn subject(picture: &Picture, it: &NodePicture, disk: &DiskFacts) -> Subject {
    match disk.volume {
        None => node(it),
        Some(id) => Subject::Volume {
            volume: picture.volumes.get(&id).map_or_else(|| id.to_string(), |it| it.name.clone()),
            node: Some(it.name.clone()),
        },
    }
}

fn speed(disk: &DiskFacts, subject: Subject) -> FindingView {
    let (median, p99) = (disk.median_us, disk.p99_us);
    let said = format!(
        "{} flushes of 4 KiB in {}: half within {}, 99 of 100 within {}",
        disk.flushes,
        disk.path,
        shown(median),
        shown(p99)
    );
    let advice = "use a solid state disk with power loss protection for Muster's data, and keep \
                  other writers off it";
    let (verdict, text) = if median >= MEDIAN_FAIL_US {
        (Verdict::Fail, format!("{said}; this node cannot follow a leader"))
    } else if median >= MEDIAN_WARN_US {
        (Verdict::Warn, format!("{said}; each change waits for one"))
    } else if p99 >= SLOWEST_WARN_US {
        (Verdict::Warn, format!("{said}; leaders change when they are so slow"))
    } else {
        (Verdict::Pass, said)
    };
    let found = finding(Check::Disks, verdict, subject, text).measured(median, Unit::Microseconds);
    if verdict == Verdict::Pass { found } else { found.advice(advice) }
}

/// What is said wherever nothing speaks against a device: time cannot prove more.
const LIMIT: &str = "whether the device keeps what it acknowledges, only a cut of its power shows";

fn honesty(disk: &DiskFacts, subject: Subject) -> FindingView {
    let filesystem = disk.filesystem.as_str();
    let data = disk.volume.is_none();
    let fail = |text: String, advice: &str| {
        finding(Check::Disks, Verdict::Fail, subject.clone(), text).advice(advice)
    };
    let warn = |text: String, advice: &str| {
        finding(Check::Disks, Verdict::Warn, subject.clone(), text).advice(advice)
    };
    if IN_MEMORY.contains(&filesystem) {
        return fail(
            format!("{} is on {filesystem}, in memory: it is gone with the power", disk.path),
            "put it on a file system of a disk",
        );
    }
    if let Some(option) = disk.options.iter().find(|it| UNFLUSHED.contains(&it.as_str())) {
        return fail(
            format!("{} is mounted with {option}: flushes are not passed on", disk.path),
            "mount it without that option",
        );
    }
    if data && filesystem == "overlay" {
        return fail(
            format!("{} is on overlay, the layers of a container or a live system", disk.path),
            "give Muster a file system of a disk for its data: data_dir in /etc/muster/config.toml",
        );
    }
    if ELSEWHERE.contains(&filesystem) {
        if data {
            return fail(
                format!("{} is on {filesystem}, not on a disk of this host", disk.path),
                "give Muster a file system of a disk for its data: data_dir in \
                 /etc/muster/config.toml",
            );
        }
        return finding(
            Check::Disks,
            Verdict::Pass,
            subject,
            format!(
                "flushes go to a server ({filesystem}); whether it writes before it says so (NFS: \
                 exported with sync) cannot be seen from here"
            ),
        );
    }
    let cache = disk.cache.as_deref();
    if disk.rotational == Some(true)
        && cache == Some("write back")
        && disk.median_us < SPINNING_LEAST_US
    {
        return warn(
            format!(
                "half of the flushes take {} on a disk that is said to spin and to cache writes: \
                 faster than it can turn. Either its cache is safe (battery, a virtual disk), or it \
                 does not flush",
                shown(disk.median_us)
            ),
            "find out which; for a virtual disk, its host must not ignore flushes (cache=unsafe)",
        );
    }
    let device = disk.device.as_deref().unwrap_or("a device that is not known");
    match cache {
        Some("write through") if disk.rotational == Some(true) => warn(
            format!(
                "the kernel takes {device} for a disk without a cache and sends it no flushes; most \
                 spinning disks have one. {LIMIT}"
            ),
            "see its cache: hdparm -W DEVICE; if it is on: echo 'write back' > \
             /sys/block/NAME/queue/write_cache",
        ),
        Some("write through") => finding(
            Check::Disks,
            Verdict::Pass,
            subject,
            format!(
                "{filesystem} on {device}, which says that it has no cache that could lose a write; \
                 {LIMIT}"
            ),
        ),
        Some(_) => finding(
            Check::Disks,
            Verdict::Pass,
            subject,
            format!("{filesystem} on {device}, whose cache is sent a flush each time; {LIMIT}"),
        ),
        None => finding(
            Check::Disks,
            Verdict::Pass,
            subject,
            format!(
                "{filesystem} on {device}: nothing is known of its cache, and nothing turns flushes \
                 off; {LIMIT}"
            ),
        ),
    }
}

pub(super) fn volumes(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Volumes;
    let mut found = Vec::new();
    let hosts = picture.hosts();
    for (id, volume) in &picture.volumes {
        let mut well = Vec::new();
        for (it, host) in &hosts {
            let subject =
                Subject::Volume { volume: volume.name.clone(), node: Some(it.name.clone()) };
            match host.volumes.iter().find(|it| it.volume == *id) {
                Some(said) if said.problem.is_none() => well.push(it.name.as_str()),
                Some(said) => {
                    let why = said.problem.as_deref().unwrap_or_default();
                    let text = format!("this node does not have it: {why}");
                    found.push(finding(check, Verdict::Fail, subject, text).advice(format!(
                        "mount it there at {}, as on the other nodes",
                        volume.path
                    )));
                }
                None => {
                    let text = "this node has not heard of it yet";
                    let advice = "validate again; if it stays: muster cluster status";
                    found.push(finding(check, Verdict::Warn, subject, text).advice(advice));
                }
            }
        }
        if well.len() == hosts.len() && !hosts.is_empty() {
            let text = format!("{} is the same volume on {}", volume.path, some_of(well, 8));
            let subject = Subject::Volume { volume: volume.name.clone(), node: None };
            found.push(finding(check, Verdict::Pass, subject, text));
        }
    }
    if picture.volumes.is_empty() && picture.nodes.len() > 1 {
        let text = "there is no shared volume: no machine can be started on another node";
        found
            .push(finding(check, Verdict::Warn, Subject::Cluster, text).advice(
                "mount a share on each node, then: muster volume create NAME --share PATH",
            ));
    }
    found
}
