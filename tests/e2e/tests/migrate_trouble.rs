//! Faults in the middle of live migrations, in a lab: after each there is one machine, with all that
//! its guest had in memory and on its disk, or one that was started again where its host was lost.
//!
//! `cargo xtask trouble --runs 200` draws faults and moments by lot; the tests here are sixteen fixed ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use e2e::BOOT;
use e2e::GUEST;
use e2e::TestLab;
use e2e::eventually;
use e2e::ha::Auditor;
use e2e::ha::PATIENT;
use e2e::ha::TAKEOVER;
use e2e::ha::cluster;
use e2e::ha::generation;
use e2e::ha::show;
use e2e::ha::unique;
use e2e::ha::with_fence_device;
use e2e::migrate::WORKS;
use e2e::migrate::count;
use e2e::migrate::disk;
use e2e::migrate::load;
use e2e::migrate::processes;
use e2e::migrate::with_network;

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// What a way carries, so that a migration takes a few seconds and faults can meet each of its parts.
const RATE: &str = "250M";

/// A fault in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// No packets between source and target, for so many seconds.
    Cut(u64),
    /// Those from the source do not arrive.
    OneWay(u64),
    /// The source is cut off from everybody.
    SourceAlone(u64),
    /// The target is.
    TargetAlone(u64),
    /// The way becomes twenty times narrower.
    Slow(u64),
    /// The target hangs.
    TargetHangs(u64),
    /// The source hangs, its guest too.
    SourceHangs(u64),
    /// The daemon is killed.
    SourceDaemon,
    TargetDaemon,
    /// Both are.
    BothDaemons,
    /// Whoever leads loses its daemon.
    Leader,
    /// Somebody thinks better of it.
    Cancel,
    /// Somebody else wants it elsewhere.
    Twice,
    /// The machine that waits is killed.
    TargetMachine,
    /// A host loses its power.
    TargetPower,
    SourcePower,
}

impl Fault {
    /// All of which no machine may be lost.
    const HARMLESS: [Self; 13] = [
        Self::Cut(4),
        Self::Cut(14),
        Self::OneWay(14),
        Self::SourceAlone(5),
        Self::TargetAlone(5),
        Self::Slow(4),
        Self::TargetHangs(5),
        Self::SourceHangs(5),
        Self::SourceDaemon,
        Self::TargetDaemon,
        Self::BothDaemons,
        Self::Leader,
        Self::Cancel,
    ];

    /// Those by which a machine can be lost, and must then be started again.
    const LOSSES: [Self; 3] = [Self::TargetMachine, Self::TargetPower, Self::SourcePower];

    /// Whether the guest may have been started again.
    fn may_restart(self) -> bool {
        Self::LOSSES.contains(&self)
    }

    async fn make(self, place: &Place<'_>) {
        let Place { lab, from, to, .. } = *place;
        let lasts = match self {
            Self::Cut(seconds) => {
                lab.run(&["cut", from, to]).await.ok();
                seconds
            }
            Self::OneWay(seconds) => {
                lab.run(&["cut", from, to, "--one-way"]).await.ok();
                seconds
            }
            Self::SourceAlone(seconds) | Self::TargetAlone(seconds) => {
                let node = if matches!(self, Self::SourceAlone(_)) { from } else { to };
                lab.run(&["isolate", node]).await.ok();
                seconds
            }
            Self::Slow(seconds) => {
                lab.run(&["slow", from, "--rate", "20M"]).await.ok();
                seconds
            }
            Self::TargetHangs(seconds) | Self::SourceHangs(seconds) => {
                let node = if matches!(self, Self::SourceHangs(_)) { from } else { to };
                lab.run(&["freeze", node]).await.ok();
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                lab.run(&["thaw", node]).await.ok();
                0
            }
            _ => return self.strike(place).await,
        };
        tokio::time::sleep(Duration::from_secs(lasts)).await;
        lab.run(&["mend", "--all"]).await.ok();
    }

    /// Those that take no time.
    async fn strike(self, place: &Place<'_>) {
        let Place { lab, from, to, vm, before, .. } = place;
        match self {
            Self::SourceDaemon => drop(lab.run(&["restart", from]).await.ok()),
            Self::TargetDaemon => drop(lab.run(&["restart", to]).await.ok()),
            Self::BothDaemons => {
                let both = [["restart", *from], ["restart", *to]];
                let (one, two) = tokio::join!(lab.run(&both[0]), lab.run(&both[1]));
                // The lab does one thing at a time; the second one may have had to wait.
                drop((one.ok(), two.ok()));
            }
            Self::Leader => {
                let leads = leader(lab, from).await;
                lab.run(&["restart", &leads]).await.ok();
            }
            Self::Cancel => {
                let op = show(lab, from, vm)
                    .await
                    .and_then(|view| view["op"]["id"].as_str().map(str::to_owned));
                // It may have ended a moment ago.
                if let Some(op) = op {
                    lab.muster(from, &["op", "cancel", &op]).await;
                }
            }
            Self::Twice => {
                let other = NODES.into_iter().find(|node| node != from && node != to).unwrap();
                let second = lab.muster(from, &["vm", "migrate", vm, "--to", other]).await;
                assert!(second.code != 0 && second.err.contains("is busy"), "{second:?}");
            }
            Self::TargetMachine => {
                let waits = processes(vm).into_iter().find(|(pid, _)| !before.contains(pid));
                if let Some((pid, _)) = waits {
                    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
                }
            }
            Self::TargetPower => drop(lab.run(&["power-off", to]).await.ok()),
            Self::SourcePower => drop(lab.run(&["power-off", from]).await.ok()),
            _ => unreachable!("made by its caller"),
        }
    }
}

/// Where a fault strikes.
struct Place<'a> {
    lab: &'a TestLab,
    vm: &'a str,
    from: &'a str,
    to: &'a str,
    /// The machine's processes before the migration.
    before: Vec<u32>,
}

async fn leader(lab: &TestLab, by: &str) -> String {
    eventually("somebody leads", TAKEOVER, async || {
        let said = lab.muster(by, &["cluster", "status", "--json"]).await;
        let view = (said.code == 0).then(|| said.json())?;
        let leads = view["nodes"].as_array()?.iter().find(|node| node["part"] == "leader")?.clone();
        Some(leads["name"].as_str()?.to_owned())
    })
    .await
}

/// A machine that is migrated again and again.
struct Traveller {
    lab: TestLab,
    vm: String,
    at: String,
    /// Which boot of the guest it is.
    boot: String,
    round: u32,
}

impl Traveller {
    async fn start(config: &str) -> Self {
        let lab = cluster("3", config).await;
        with_fence_device(&lab, &NODES).await;
        let vm = unique("trouble");
        with_network(&lab, "n1", &vm).await;
        let mut serial = lab.serial("n1", &vm).await;
        serial.expect("MUSTER-GUEST-READY", BOOT).await;
        load(&mut serial).await;
        disk(&mut serial, 0).await;
        let boot = serial.run("cat /proc/sys/kernel/random/boot_id").await;
        let this = Self { lab, vm, at: "n1".to_owned(), boot, round: 1 };
        this.narrow().await;
        this
    }

    async fn narrow(&self) {
        for node in NODES {
            self.lab.run(&["slow", node, "--rate", RATE]).await.ok();
        }
    }

    /// Begins a migration, lets a fault strike `after` its begin, mends everything and looks.
    async fn meets(&mut self, fault: Fault, after: Duration) {
        let begun = Instant::now();
        let Self { lab, vm, at, .. } = &*self;
        let to = if at == "n1" { "n2" } else { "n1" };
        let run = generation(lab, at, vm).await;
        let before = processes(vm).into_iter().map(|(pid, _)| pid).collect();
        let begin = ["--no-wait", "vm", "migrate", vm, "--to", to, "--json"];
        let op = lab.muster(at, &begin).await.ok().json()["op"]["id"].as_str().unwrap().to_owned();
        tokio::time::sleep(after).await;
        fault.make(&Place { lab, vm, from: at, to, before }).await;
        if fault.may_restart() {
            // What is lost is taken over before its host is back.
            self.runs(fault).await;
        }
        self.heal().await;
        let now_at = self.runs(fault).await;
        eventually(&format!("one process is left after {fault:?}"), GUEST, async || {
            (count(&self.vm) == 1).then_some(())
        })
        .await;
        let now = generation(&self.lab, &now_at, &self.vm).await;
        assert!(now >= run, "{fault:?}: a run that was before: {now}");
        self.at = now_at;
        self.look(fault).await;
        self.narrow().await;
        let op = self.lab.muster("n3", &["op", "show", &op, "--json"]).await.ok().json();
        eprintln!(
            "{fault:?} after {after:?} on the way to {to}, is on {}, run {run} -> {now}, {:?}: {} {}",
            self.at,
            begun.elapsed(),
            op["state"],
            op["failure"],
        );
        if fault == Fault::Twice {
            assert_eq!(self.at, to, "the first one goes on: {op}");
        }
    }

    /// Ends all faults, and waits until the cluster is whole.
    async fn heal(&self) {
        self.lab.run(&["mend", "--all"]).await.ok();
        for node in NODES {
            if self.lab.node(node).await["power"] == "off" {
                self.lab.run(&["power-on", node]).await.ok();
            }
        }
        eventually("the cluster is whole", TAKEOVER, async || {
            let said = self.lab.muster("n3", &["cluster", "status", "--json"]).await;
            let view = (said.code == 0).then(|| said.json())?;
            (view["health"] == "healthy" && view["voters"] == 3).then_some(())?;
            for node in NODES {
                let said = self.lab.muster("n3", &["node", "fencing", node, "--json"]).await;
                (said.code == 0 && said.json()["fenced"].is_null()).then_some(())?;
            }
            Some(())
        })
        .await;
    }

    /// Waits until the machine runs and nothing is done with it; returns where.
    async fn runs(&self, fault: Fault) -> String {
        eventually(&format!("it runs after {fault:?}"), TAKEOVER, async || {
            let view = show(&self.lab, "n3", &self.vm).await?;
            let runs = view["phase"] == "running" && view["guest"]["heartbeat"] == "ok";
            (runs && view["op"].is_null()).then(|| view["node"].as_str().unwrap().to_owned())
        })
        .await
    }

    /// What the guest says.
    async fn look(&mut self, fault: Fault) {
        let mut serial = self.lab.serial(&self.at, &self.vm).await;
        let boot = serial.run("cat /proc/sys/kernel/random/boot_id").await;
        if boot == self.boot {
            serial.run("md5sum -c /tmp/sum").await;
            serial.run(WORKS).await;
        } else {
            assert!(fault.may_restart(), "{fault:?}: the guest was started again");
            load(&mut serial).await;
            self.boot = boot;
        }
        disk(&mut serial, self.round).await;
        self.round += 1;
    }
}

/// By a lot that a seed decides: the same seed, the same faults and moments.
struct Lot(u64);

impl Lot {
    /// One of `0..below` (the generator is `SplitMix64`).
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    fn moment(&mut self) -> Duration {
        Duration::from_millis(self.draw(60) * 60)
    }
}

#[tokio::test]
async fn a_fault_of_the_way_costs_no_guest() {
    let mut traveller = Traveller::start(PATIENT).await;
    let auditor = Auditor::start(&traveller.vm);
    for (fault, after) in [
        (Fault::Cut(14), 900),
        (Fault::OneWay(14), 1_500),
        (Fault::SourceAlone(5), 2_000),
        (Fault::TargetAlone(5), 300),
        (Fault::Slow(4), 600),
    ] {
        traveller.meets(fault, Duration::from_millis(after)).await;
    }
    assert_eq!(auditor.verdict(), 1);
}

#[tokio::test]
async fn a_daemon_or_a_host_that_stops_in_the_middle_costs_no_guest() {
    let mut traveller = Traveller::start(PATIENT).await;
    let auditor = Auditor::start(&traveller.vm);
    for (fault, after) in [
        (Fault::TargetHangs(5), 1_000),
        (Fault::SourceHangs(5), 1_600),
        (Fault::SourceDaemon, 1_200),
        (Fault::TargetDaemon, 700),
        (Fault::BothDaemons, 2_000),
        (Fault::Leader, 1_800),
        (Fault::Cancel, 1_400),
        (Fault::Twice, 100),
    ] {
        traveller.meets(fault, Duration::from_millis(after)).await;
    }
    assert_eq!(auditor.verdict(), 1);
}

#[tokio::test]
async fn a_host_that_is_lost_in_the_middle_costs_one_restart_at_most() {
    let mut traveller = Traveller::start("beatless_ms = 8000").await;
    let auditor = Auditor::start(&traveller.vm);
    for (fault, after) in
        [(Fault::TargetMachine, 1_500), (Fault::TargetPower, 1_500), (Fault::SourcePower, 1_500)]
    {
        traveller.meets(fault, Duration::from_millis(after)).await;
    }
    assert_eq!(auditor.verdict(), 1);
}

/// So many runs in each lab: a node that is lost three times in an hour is given nothing more.
const RUNS_OF_A_LAB: u64 = 8;

/// For `cargo xtask trouble`.
#[tokio::test]
#[ignore = "takes an hour or more: cargo xtask trouble"]
async fn faults_by_lot() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runs = number("MUSTER_TROUBLE_RUNS").expect("how many runs");
    let seed = number("MUSTER_TROUBLE_SEED").expect("a seed");
    let mut lot = Lot(seed);
    let mut left = runs;
    while left > 0 {
        let losses = lot.draw(4) == 0;
        let mut traveller =
            Traveller::start(if losses { "beatless_ms = 8000" } else { PATIENT }).await;
        let auditor = Auditor::start(&traveller.vm);
        let of_lab = if losses { 2 } else { RUNS_OF_A_LAB };
        for _ in 0..of_lab.min(left) {
            let faults = if losses { &Fault::LOSSES[..] } else { &Fault::HARMLESS[..] };
            let at = usize::try_from(lot.draw(faults.len() as u64)).unwrap();
            let moment = lot.moment();
            traveller.meets(faults[at], moment).await;
            left -= 1;
            eprintln!("{} of {runs} runs", runs - left);
        }
        assert_eq!(auditor.verdict(), 1);
    }
}
