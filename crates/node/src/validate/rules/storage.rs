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

/// A verdict with its text and advice.
type Judged = (Verdict, String, &'static str);

fn honesty(disk: &DiskFacts, subject: Subject) -> FindingView {
    let judged = unflushed(disk).or_else(|| elsewhere(disk)).or_else(|| implausible(disk));
    let (verdict, text, advice) = judged.unwrap_or_else(|| {
        let device = device(disk);
        let filesystem = &disk.filesystem;
        let text = match disk.cache.as_deref() {
            Some("write through") => format!(
                "{filesystem} on {device}, which says that it has no cache that could lose a write; \
                 {LIMIT}"
            ),
            Some(_) => {
                format!("{filesystem} on {device}, whose cache is sent a flush each time; {LIMIT}")
            }
            None => format!(
                "{filesystem} on {device}: nothing is known of its cache, and nothing turns flushes \
                 off; {LIMIT}"
            ),
        };
        (Verdict::Pass, text, "")
    });
    finding(Check::Disks, verdict, subject, text).advice(advice)
}

fn device(disk: &DiskFacts) -> &str {
    disk.device.as_deref().unwrap_or("a device that is not known")
}

/// Where nothing is flushed at all.
fn unflushed(disk: &DiskFacts) -> Option<Judged> {
    let (path, filesystem) = (&disk.path, disk.filesystem.as_str());
    if IN_MEMORY.contains(&filesystem) {
        let text = format!("{path} is on {filesystem}, in memory: it is gone with the power");
        return Some((Verdict::Fail, text, "put it on a file system of a disk"));
    }
    let option = disk.options.iter().find(|it| UNFLUSHED.contains(&it.as_str()))?;
    let text = format!("{path} is mounted with {option}: flushes are not passed on");
    Some((Verdict::Fail, text, "mount it without that option"))
}

/// Where flushes end in something that is no disk of this host.
fn elsewhere(disk: &DiskFacts) -> Option<Judged> {
    let advice = "give Muster a file system of a disk for its data: data_dir in \
                  /etc/muster/config.toml";
    let (path, filesystem) = (&disk.path, disk.filesystem.as_str());
    let data = disk.volume.is_none();
    if data && filesystem == "overlay" {
        let text = format!("{path} is on overlay, the layers of a container or a live system");
        return Some((Verdict::Fail, text, advice));
    }
    if !ELSEWHERE.contains(&filesystem) {
        return None;
    }
    if data {
        let text = format!("{path} is on {filesystem}, not on a disk of this host");
        return Some((Verdict::Fail, text, advice));
    }
    let text = format!(
        "flushes go to a server ({filesystem}); whether it writes before it says so (NFS: exported \
         with sync) cannot be seen from here"
    );
    Some((Verdict::Pass, text, ""))
}

/// What a disk says of itself that does not fit together.
fn implausible(disk: &DiskFacts) -> Option<Judged> {
    if disk.rotational != Some(true) {
        return None;
    }
    match disk.cache.as_deref()? {
        "write back" if disk.median_us < SPINNING_LEAST_US => {
            let text = format!(
                "half of the flushes take {} on a disk that is said to spin and to cache writes: \
                 faster than it can turn. Either its cache is safe (battery, a virtual disk), or it \
                 does not flush",
                shown(disk.median_us)
            );
            let advice = "find out which; for a virtual disk, its host must not ignore flushes (cache=unsafe)";
            Some((Verdict::Warn, text, advice))
        }
        "write through" => {
            let text = format!(
                "the kernel takes {} for a disk without a cache and sends it no flushes; most \
                 spinning disks have one. {LIMIT}",
                device(disk)
            );
            let advice = "see its cache: hdparm -W DEVICE; if it is on: echo 'write back' > \
                          /sys/block/NAME/queue/write_cache";
            Some((Verdict::Warn, text, advice))
        }
        _ => None,
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
