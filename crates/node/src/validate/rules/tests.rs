//! Each rule, with facts for which it passes, warns and fails.

use std::collections::BTreeSet;

use api::ha::LossView;
use api::ha::UnplacedView;
use api::types::Accelerator;
use model::Bytes;
use uuid::Uuid;

use super::*;
use crate::validate::facts::AddressFacts;
use crate::validate::facts::CpuFacts;
use crate::validate::facts::FenceSays;
use crate::validate::facts::GuardFacts;
use crate::validate::facts::VolumeFacts;

const VOLUME: VolumeId = VolumeId::new(Uuid::from_u128(50));
const DEVICE: FenceDeviceId = FenceDeviceId::new(Uuid::from_u128(60));

fn id(n: u8) -> NodeId {
    NodeId::new(Uuid::from_u128(u128::from(n)))
}

fn ip(network: u8, n: u8) -> IpAddr {
    IpAddr::from([10, 90, network, n])
}

fn disk(volume: Option<VolumeId>) -> DiskFacts {
    DiskFacts {
        volume,
        path: "/var/lib/muster".to_owned(),
        filesystem: "ext4".to_owned(),
        options: vec!["rw".to_owned(), "relatime".to_owned()],
        device: Some("/dev/sda2".to_owned()),
        cache: Some("write back".to_owned()),
        rotational: Some(false),
        flushes: 128,
        median_us: 900,
        p99_us: 3_000,
        problem: None,
    }
}

fn link(to: u8, network: u8, from: u8) -> LinkFacts {
    LinkFacts {
        to: id(to),
        from_address: ip(network, from),
        to_address: ip(network, to),
        prefix: 24,
        sent: 60,
        answered: 60,
        min_us: 80,
        median_us: 120,
        p99_us: 900,
        jitter_us: 30,
        mtu: 1_500,
        passed: Some(1_500),
        stranger: None,
        problem: None,
    }
}

fn host(n: u8) -> HostFacts {
    let address = |network| AddressFacts {
        address: (ip(network, n), 7_444).into(),
        device: Some(format!("eth{network}")),
        prefix: Some(24),
    };
    HostFacts {
        muster: "0.1.0".to_owned(),
        kernel: "6.1.0".to_owned(),
        qemu: Some("QEMU 10.0.2".to_owned()),
        accelerator: Some(Accelerator::Kvm),
        cpu: CpuFacts {
            vendor: "GenuineIntel".to_owned(),
            model: "Xeon".to_owned(),
            features: ["fpu", "avx", "sse"].map(str::to_owned).into(),
        },
        memory: Bytes::mib(65_536),
        addresses: vec![address(0), address(1)],
        guard: GuardFacts { alone: false, answers: true, watchdog: true, problem: None },
        time_service: Some("chrony".to_owned()),
        volumes: vec![VolumeFacts { volume: VOLUME, problem: None }],
        ..HostFacts::default()
    }
}

fn loss(n: u8) -> LossView {
    LossView {
        node: format!("n{n}").parse().unwrap(),
        restarted: 2,
        unplaced: Vec::new(),
        local: Vec::new(),
    }
}

/// So many nodes of which all is well.
fn picture(count: u8) -> Picture {
    let all: Vec<u8> = (1..=count).collect();
    let others = |n: u8| all.iter().copied().filter(move |it| *it != n);
    let said = |node| FenceFacts { device: DEVICE, node: id(node), says: FenceSays::On };
    let nodes = all.iter().copied().map(|n| NodePicture {
        id: id(n),
        name: format!("n{n}"),
        addresses: vec![ip(0, n), ip(1, n)],
        certainty: Some(Certainty::Proof),
        fenced: false,
        clock: Some(Ok(ClockSample { ahead_ms: i64::from(n), round_trip_ms: 2 })),
        host: Some(Ok(host(n))),
        disks: Some(Ok(vec![disk(None), disk(Some(VOLUME))])),
        links: Some(Ok(others(n).flat_map(|to| [link(to, 0, n), link(to, 1, n)]).collect())),
        fence: Some(Ok(all.iter().copied().map(said).collect())),
        witness: Some(Ok(None)),
    });
    Picture {
        nodes: nodes.collect(),
        losses: all.iter().copied().map(loss).collect(),
        volumes: [(
            VOLUME,
            VolumePicture { name: "pool".to_owned(), path: "/srv/pool".to_owned() },
        )]
        .into(),
        devices: [(
            DEVICE,
            DevicePicture { name: "bmc".to_owned(), nodes: all.iter().copied().map(id).collect() },
        )]
        .into(),
        witness: Some(WitnessPicture {
            place: "192.0.2.9:7446".to_owned(),
            host: Some(IpAddr::from([192, 0, 2, 9])),
            path: None,
        }),
    }
}

impl Picture {
    fn host(&mut self, n: usize) -> &mut HostFacts {
        self.nodes[n - 1].host.as_mut().unwrap().as_mut().unwrap()
    }

    fn disk(&mut self, n: usize) -> &mut DiskFacts {
        &mut self.nodes[n - 1].disks.as_mut().unwrap().as_mut().unwrap()[0]
    }

    fn link(&mut self, n: usize, place: usize) -> &mut LinkFacts {
        &mut self.nodes[n - 1].links.as_mut().unwrap().as_mut().unwrap()[place]
    }
}

fn found(picture: &Picture, check: Check) -> Vec<FindingView> {
    findings(picture, &[check])
}

/// The findings of that verdict: subject and text.
fn of(picture: &Picture, check: Check, verdict: Verdict) -> Vec<(String, String)> {
    let found = found(picture, check).into_iter().filter(|it| it.verdict == verdict);
    found
        .map(|it| {
            // What is not well ends in a next step.
            assert!(verdict == Verdict::Pass || it.advice.len() > 10, "{it:?}");
            (it.subject.to_string(), it.text)
        })
        .collect()
}

/// The only finding of that verdict.
fn only(picture: &Picture, check: Check, verdict: Verdict) -> (String, String) {
    let mut found = of(picture, check, verdict);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn is(picture: &Picture, check: Check, verdict: Verdict, subject: &str, word: &str) {
    let (of, text) = only(picture, check, verdict);
    assert!(of == subject && text.contains(word), "{of}: {text}");
}

#[test]
fn where_all_is_well_every_check_says_so() {
    for count in [2, 3, 5] {
        let picture = picture(count);
        for check in Check::ALL {
            let found = found(&picture, check);
            assert!(!found.is_empty(), "{check}");
            assert!(found.iter().all(|it| it.verdict == Verdict::Pass), "{check}: {found:#?}");
        }
    }
}

#[test]
fn a_host_alone_has_no_neighbours_to_compare() {
    let mut alone = picture(1);
    alone.witness = None;
    alone.nodes[0].certainty = Some(Certainty::Alone);
    let found = findings(&alone, &Check::ALL);
    assert!(found.iter().all(|it| it.verdict != Verdict::Fail), "{found:#?}");
    is(&alone, Check::Memory, Verdict::Warn, "cluster", "only node");
    assert_eq!(findings(&Picture::default(), &Check::ALL).len(), 1, "nothing but that it is alone");
}

#[test]
fn only_the_checks_that_were_asked_for_are_made_and_the_worst_stands_first() {
    let mut picture = picture(3);
    picture.host(3).missing_limits.push("memory".to_owned());
    picture.nodes[1].host = Some(Err("no route".to_owned()));
    let found = findings(&picture, &[Check::Nodes]);
    let verdicts: Vec<_> = found.iter().map(|it| it.verdict).collect();
    assert_eq!(verdicts, [Verdict::Fail, Verdict::Warn, Verdict::Pass]);
    assert!(found.iter().all(|it| it.check == Check::Nodes));
}

#[test]
fn nodes() {
    let mut silent = picture(3);
    silent.nodes[1].host = Some(Err("no answer in time".to_owned()));
    is(&silent, Check::Nodes, Verdict::Fail, "n2", "no answer in time");
    let mut broken = picture(3);
    broken.host(3).engine_problem = Some("QEMU 7 is too old".to_owned());
    is(&broken, Check::Nodes, Verdict::Fail, "n3", "QEMU 7");
    let mut fenced = picture(3);
    fenced.nodes[0].fenced = true;
    is(&fenced, Check::Nodes, Verdict::Warn, "n1", "fenced");
}

fn clocks(ahead: &[i64]) -> Picture {
    let mut picture = picture(u8::try_from(ahead.len()).unwrap());
    for (node, ahead_ms) in picture.nodes.iter_mut().zip(ahead) {
        node.clock = Some(Ok(ClockSample { ahead_ms: *ahead_ms, round_trip_ms: 10 }));
    }
    picture
}

#[test]
fn clocks_are_compared_with_the_middle_one_whoever_asks() {
    let check = Check::Clock;
    assert!(of(&clocks(&[0, 900, -90]), check, Verdict::Warn).is_empty());
    is(&clocks(&[0, 20, 3_000]), check, Verdict::Warn, "n3", "ahead of");
    is(&clocks(&[0, 20, -60_000]), check, Verdict::Fail, "n3", "60 s behind");
    // The asking node itself is the one that is wrong.
    is(&clocks(&[0, 59_990, 60_000]), check, Verdict::Fail, "n1", "behind");
    // Of two nobody knows.
    is(&clocks(&[0, 60_000]), check, Verdict::Fail, "n1 -> n2", "differ");
    is(&clocks(&[0, -5_000]), check, Verdict::Warn, "n1 -> n2", "differ");
}

#[test]
fn a_slow_answer_accuses_no_clock() {
    let mut slow = clocks(&[0, 20, 1_200]);
    slow.nodes[2].clock = Some(Ok(ClockSample { ahead_ms: 1_200, round_trip_ms: 2_000 }));
    assert!(of(&slow, Check::Clock, Verdict::Warn).is_empty());
    slow.nodes[2].clock = Some(Err("busy".to_owned()));
    is(&slow, Check::Clock, Verdict::Warn, "n3", "busy");
}

#[test]
fn a_clock_that_nobody_sets_is_named() {
    let mut picture = picture(3);
    picture.host(2).time_service = None;
    is(&picture, Check::Clock, Verdict::Warn, "cluster", "on n2");
}

#[test]
fn processors() {
    let check = Check::Cpu;
    let mut other = picture(3);
    other.host(2).cpu.vendor = "AuthenticAMD".to_owned();
    is(&other, check, Verdict::Fail, "n2", "AuthenticAMD");
    let mut lacking = picture(3);
    lacking.host(3).cpu.features = BTreeSet::from(["fpu".to_owned()]);
    is(&lacking, check, Verdict::Warn, "n3", "lacks 2 features that others have: avx, sse");
    let advice = &found(&lacking, check)[0].advice;
    assert!(advice.contains("the 1 features that all have"), "{advice}");
    let mut mixed = picture(3);
    mixed.host(1).accelerator = Some(Accelerator::Tcg);
    is(&mixed, check, Verdict::Fail, "n1", "others use KVM");
    let mut slow = picture(2);
    for n in [1, 2] {
        slow.host(n).accelerator = Some(Accelerator::Tcg);
    }
    assert_eq!(of(&slow, check, Verdict::Warn).len(), 2);
    assert!(of(&slow, check, Verdict::Fail).is_empty());
}

#[test]
fn a_host_that_lowers_what_machines_get_is_told_before_it_joins() {
    let platform = |features: &[&str]| model::Platform {
        engine: "QEMU 10.0.2".to_owned(),
        accelerator: Accelerator::Kvm,
        cpu_base: "Nehalem-v1".to_owned(),
        cpu_features: features.iter().map(|one| (*one).to_owned()).collect(),
        machine_virtio: "pc-q35-10.0".to_owned(),
        machine_legacy: "pc-i440fx-10.0".to_owned(),
    };
    let mut joins = picture(3);
    for n in [1, 2] {
        joins.host(n).platform = Some(platform(&["aes", "avx", "avx2"]));
    }
    joins.host(3).platform = Some(platform(&["aes", "sha-ni"]));
    is(&joins, Check::Cpu, Verdict::Warn, "n3", "2 features less when they are switched on: avx");
    assert_eq!(of(&joins, Check::Cpu, Verdict::Warn).len(), 1, "the others have more, not less");
    joins.host(3).platform = Some(platform(&["aes", "avx", "avx2", "sha-ni"]));
    assert!(of(&joins, Check::Cpu, Verdict::Warn).is_empty());
}

#[test]
fn versions_that_differ_are_shown_as_a_matrix() {
    let mut picture = picture(3);
    picture.host(3).qemu = Some("QEMU 9.2".to_owned());
    let (_, text) = only(&picture, Check::Versions, Verdict::Warn);
    assert!(text.contains("QEMU 10.0.2 on n1, n2; QEMU 9.2 on n3"), "{text}");
    picture.host(1).kernel = "6.12".to_owned();
    picture.host(2).muster = "0.2.0".to_owned();
    assert_eq!(of(&picture, Check::Versions, Verdict::Warn).len(), 3);
}

#[test]
fn memory() {
    let mut full = picture(3);
    let vm = UnplacedView { vm: "db".parse().unwrap(), why: "no node has the memory".to_owned() };
    full.losses[1].unplaced.push(vm);
    is(&full, Check::Memory, Verdict::Fail, "n2", "db (no node has the memory)");
    let mut local = picture(3);
    local.losses[0].local.push("old".parse().unwrap());
    is(&local, Check::Memory, Verdict::Warn, "n1", "old");
    let mut unheard = picture(3);
    unheard.losses.remove(2);
    is(&unheard, Check::Memory, Verdict::Warn, "n3", "heartbeats");
}

#[test]
fn networks() {
    let check = Check::Networks;
    let mut single = picture(3);
    for n in 1..=3 {
        single.host(n).addresses.truncate(1);
    }
    is(&single, check, Verdict::Warn, "cluster", "1 networks");
    let mut absent = picture(3);
    absent.host(2).addresses.truncate(1);
    let warned = of(&absent, check, Verdict::Warn);
    assert!(
        warned.iter().any(|(of, text)| of == "n2" && text.contains("10.90.1.0/24")),
        "{warned:?}"
    );
    let mut gone = picture(3);
    gone.host(1).addresses[1].device = None;
    is(&gone, check, Verdict::Fail, "n1", "10.90.1.1");
}

#[test]
fn addresses_in_use_twice() {
    let check = Check::Networks;
    let mut claimed = picture(3);
    claimed.nodes[2].addresses[0] = ip(0, 1);
    is(&claimed, check, Verdict::Fail, "n1 -> n3", "10.90.0.1");
    let mut answered = picture(3);
    answered.link(1, 0).stranger = Some(id(3));
    is(&answered, check, Verdict::Fail, "n1 -> n2 on 10.90.0.0/24", "it is n3 that answers");
}

#[test]
fn round_trips() {
    let check = Check::Latency;
    let judged = |change: fn(&mut LinkFacts), verdict, word: &str| {
        let mut picture = picture(3);
        change(picture.link(3, 1));
        is(&picture, check, verdict, "n3 -> n1 on 10.90.1.0/24", word);
    };
    judged(|it| it.answered = 0, Verdict::Fail, "no message");
    judged(|it| it.answered = 29, Verdict::Fail, "31 of 60");
    judged(|it| it.answered = 59, Verdict::Warn, "1 of 60");
    judged(|it| it.median_us = 15_000, Verdict::Warn, "15.0 ms");
    judged(|it| it.median_us = 250_000, Verdict::Fail, "250 ms");
    judged(|it| it.p99_us = 300_000, Verdict::Warn, "vary");
    judged(|it| it.jitter_us = 30_000, Verdict::Warn, "jitter 30.0 ms");
    let mut hurried = picture(3);
    hurried.nodes[0].links = Some(Ok(vec![link(2, 0, 1)]));
    is(&hurried, check, Verdict::Warn, "n1 -> n3", "not measured");
}

#[test]
fn a_hole_in_the_mtu_is_named_with_the_odd_device() {
    let mut picture = picture(3);
    // The device of n3 was made small: it sends small packets and drops large ones.
    for n in [1, 2] {
        // The second way to the second of the other nodes.
        assert_eq!(picture.link(n, 3).to, id(3));
        picture.link(n, 3).passed = Some(1_400);
    }
    for at in [1, 3] {
        (picture.link(3, at).mtu, picture.link(3, at).passed) = (1_400, Some(1_400));
    }
    let failed = of(&picture, Check::Mtu, Verdict::Fail);
    let ways: Vec<_> = failed.iter().map(|(of, _)| of.as_str()).collect();
    assert_eq!(ways, ["n1 -> n3 on 10.90.1.0/24", "n2 -> n3 on 10.90.1.0/24"]);
    assert!(failed[0].1.contains("1500") && failed[0].1.contains("1400"), "{failed:?}");
    is(&picture, Check::Mtu, Verdict::Warn, "n3", "MTU of 1400");
}

#[test]
fn packets_larger_than_can_be_tried_are_not_missed() {
    let mut picture = picture(2);
    for n in [1, 2] {
        for at in [0, 1] {
            (picture.link(n, at).mtu, picture.link(n, at).passed) = (65_536, Some(9_244));
        }
    }
    assert!(of(&picture, Check::Mtu, Verdict::Fail).is_empty());
}

#[test]
fn flushes() {
    let check = Check::Disks;
    let judged = |change: fn(&mut DiskFacts), verdict, word: &str| {
        let mut picture = picture(3);
        change(picture.disk(2));
        is(&picture, check, verdict, "n2", word);
    };
    judged(|it| it.median_us = 30_000, Verdict::Warn, "each change waits");
    judged(|it| it.median_us = 900_000, Verdict::Fail, "cannot follow");
    judged(|it| it.p99_us = 500_000, Verdict::Warn, "leaders change");
    judged(|it| it.problem = Some("read-only".to_owned()), Verdict::Fail, "read-only");
    judged(|it| it.filesystem = "tmpfs".to_owned(), Verdict::Fail, "in memory");
    judged(|it| it.filesystem = "overlay".to_owned(), Verdict::Fail, "layers");
    judged(|it| it.filesystem = "9p".to_owned(), Verdict::Fail, "not on a disk");
    judged(|it| it.options.push("barrier=0".to_owned()), Verdict::Fail, "barrier=0");
    judged(
        |it| (it.rotational, it.median_us) = (Some(true), 50),
        Verdict::Warn,
        "faster than it can turn",
    );
    judged(
        |it| (it.rotational, it.cache) = (Some(true), Some("write through".to_owned())),
        Verdict::Warn,
        "sends it no flushes",
    );
    // What time cannot show is said in so many words.
    let picture = picture(2);
    let said = of(&picture, check, Verdict::Pass);
    assert!(
        said.iter().any(|(_, text)| text.contains("only a cut of its power shows")),
        "{said:?}"
    );
}

#[test]
fn a_volume_on_a_server_is_no_failure_and_says_what_cannot_be_seen() {
    let mut picture = picture(2);
    for node in &mut picture.nodes {
        let disk = &mut node.disks.as_mut().unwrap().as_mut().unwrap()[1];
        (disk.filesystem, disk.device) = ("nfs4".to_owned(), Some("nas:/vm".to_owned()));
    }
    let said = of(&picture, Check::Disks, Verdict::Pass);
    assert!(
        said.iter().any(|(of, text)| of == "volume pool on n1" && text.contains("cannot be seen"))
    );
}

#[test]
fn volumes() {
    let mut missing = picture(3);
    missing.host(3).volumes[0].problem = Some("not marked as a volume".to_owned());
    is(&missing, Check::Volumes, Verdict::Fail, "volume pool on n3", "not marked");
    let mut unheard = picture(3);
    unheard.host(2).volumes.clear();
    is(&unheard, Check::Volumes, Verdict::Warn, "volume pool on n2", "not heard");
    let mut none = picture(3);
    none.volumes.clear();
    is(&none, Check::Volumes, Verdict::Warn, "cluster", "no shared volume");
}

#[test]
fn certainty_and_guards() {
    let check = Check::Fencing;
    let with = |certainty| {
        let mut picture = picture(3);
        picture.nodes[1].certainty = Some(certainty);
        picture
    };
    is(&with(Certainty::None), check, Verdict::Fail, "n2", "administrator");
    let alone = Certainty::SelfFencing { watchdog: false, takeover_ms: 36_000 };
    is(&with(alone), check, Verdict::Warn, "n2", "36 s");
    let mut unguarded = picture(3);
    unguarded.host(3).guard.answers = false;
    is(&unguarded, check, Verdict::Fail, "n3", "guard");
    let mut troubled = picture(3);
    troubled.host(3).guard.problem = Some("no watchdog could be opened".to_owned());
    is(&troubled, check, Verdict::Warn, "n3", "no watchdog");
}

#[test]
fn fence_devices() {
    let check = Check::Fencing;
    let says = |asking: &[usize], about: u8, says: &FenceSays| {
        let mut picture = picture(3);
        for n in asking {
            let said = picture.nodes[n - 1].fence.as_mut().unwrap().as_mut().unwrap();
            said[usize::from(about) - 1].says = says.clone();
        }
        picture
    };
    let failed = FenceSays::Failed("no route to host".to_owned());
    is(
        &says(&[1, 3], 2, &failed),
        check,
        Verdict::Fail,
        "device bmc for n2",
        "from n1, n3: no route",
    );
    is(&says(&[2], 3, &FenceSays::Off), check, Verdict::Fail, "device bmc for n3", "lies");
    // Of a node that does not answer, "off" is no lie.
    let mut off = says(&[1, 2], 3, &FenceSays::Off);
    off.nodes[2].host = Some(Err("no answer".to_owned()));
    off.nodes[2].fence = None;
    assert!(of(&off, check, Verdict::Fail).is_empty());
    let mut silent = picture(3);
    for node in &mut silent.nodes {
        node.fence = Some(Ok(Vec::new()));
    }
    assert_eq!(of(&silent, check, Verdict::Warn).len(), 3, "each of the three was asked by nobody");
}

#[test]
fn the_witness() {
    let check = Check::Witness;
    let mut gone = picture(2);
    gone.nodes[1].witness = Some(Ok(Some("no answer within 5 s".to_owned())));
    is(&gone, check, Verdict::Fail, "n2", "no answer within 5 s");
    let mut none = picture(2);
    none.witness = None;
    is(&none, check, Verdict::Warn, "cluster", "no witness");
    let mut odd = picture(3);
    odd.witness = None;
    is(&odd, check, Verdict::Pass, "cluster", "need no witness");
    let mut here = picture(2);
    here.witness.as_mut().unwrap().host = Some(ip(0, 2));
    is(&here, check, Verdict::Warn, "n2", "runs on this node");
    let mut beside = picture(2);
    beside.witness.as_mut().unwrap().path = Some("/srv/pool/witness".to_owned());
    is(&beside, check, Verdict::Warn, "cluster", "volume pool");
}

#[test]
fn numbers_for_people() {
    assert_eq!(
        [shown(5), shown(1_250), shown(250_000), shown(61_000_000)],
        ["5 us", "1.2 ms", "250 ms", "61 s"]
    );
    assert_eq!([shown_ms(0), shown_ms(1_250), shown_ms(36_250)], ["0 ms", "1.2 s", "36 s"]);
    assert_eq!(some_of(["a", "b", "c"], 2), "a, b and 1 more");
    assert_eq!(subnet(IpAddr::from([10, 1, 2, 3]), 0), "0.0.0.0/0");
    assert_eq!(subnet("fd00::1:2".parse().unwrap(), 64), "fd00::/64");
    assert_eq!(subnet(IpAddr::from([10, 1, 2, 3]), 32), "10.1.2.3/32");
}
