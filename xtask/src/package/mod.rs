//! `cargo xtask package-test`: the Debian package, on a real Debian under systemd.
//!
//! ```text
//! this machine    QEMU: Debian 12, systemd, cgroup v2 (guests/host12.qcow2, its disk is thrown away)
//!   in it           apt install muster_1.deb: muster.service, muster-machines.service,
//!                   muster-guard.service, muster-guests.service
//!     in that         QEMU of the machine `a`: the ticker, a guest of one sector (it is emulated twice)
//! ```
//!
//! It is installed, runs a machine whose limits the kernel shows and enforces, is restarted, stopped,
//! killed and upgraded while that machine goes on, shuts the guest down and starts it again with its
//! host, refuses to be removed under it, is removed without a trace but the disks, and purged with
//! them. The same for its guard, which the daemon finds again each time, and which knows after a
//! violent death or an upgrade what it knew before.

mod host;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;

use crate::deb;
use crate::guest;
use crate::guest::Which;
use crate::install;
use crate::run::cmd;
use crate::run::is_root;
use crate::run::quiet;
use crate::run::target;

use host::Host;

/// For commands that take a second on a real machine. Everything here runs some twenty times slower,
/// and on a busy machine much slower still.
const SHORT: Duration = Duration::from_secs(600);

/// For apt, dpkg and starts of the daemon or of a machine.
const LONG: Duration = Duration::from_secs(1200);

/// How often a condition in the host is looked at; each look costs the host a second.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The delegated control group of machines.
const GROUP: &str = "/sys/fs/cgroup/muster.slice/muster-machines.service";

/// What the kernel and systemd have because of Muster, and processes of it; nothing of it is there
/// before the installation and after the removal. A unit that a removal has masked is known by its
/// name until the purge.
const TRACES: &str = "ls -d /sys/fs/cgroup/muster.slice 2>/dev/null; ls /sys/class/net; \
                      nft list tables; ps -e -o comm= | grep -E '^(muster|qemu-system)'; \
                      systemctl list-units --all --plain --no-legend 'muster*' | grep -v masked; \
                      ls -d /run/muster /usr/bin/muster /lib/systemd/system/muster* 2>/dev/null; true";

/// What a purge takes away besides.
const KEPT: &str = "ls -d /etc/muster /var/lib/muster 2>/dev/null; getent group muster muster-admin; \
                    find /etc/systemd /var/lib/systemd -name 'muster*'; \
                    systemctl list-units --all --plain --no-legend 'muster*'; \
                    systemctl list-unit-files --no-legend 'muster*'; \
                    dpkg -l muster | grep '^[ir]'; true";

/// Tells the process of the guard if it is active.
const GUARD_PID: &str = "systemctl is-active --quiet muster-guard.service && \
                         systemctl show --property=MainPID --value muster-guard.service";

/// What the guard goes on with after an end of its process.
const GUARD_STATE: &str = "/run/muster/guard.state";

/// Builds what is missing, and runs the test.
pub(crate) fn run() -> Result<()> {
    install::run()?;
    if !is_root() {
        bail!("the host's image is built by root (files of many owners); run it with sudo");
    }
    let image = guest::ensure(Which::DebianHost, false)?;
    let packages = [deb::make(true, 1)?, deb::make(true, 2)?];
    let dir = target().join("package-test");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let payload = payload(&dir, &packages)?;

    let began = Instant::now();
    let mut test = Test { host: Host::boot(&dir, &image, &payload)?, began };
    test.say("the host is up");
    let result = test.play();
    if result.is_err() {
        eprintln!("{}\nThe host's console:\n{}", test.last_words(), test.host.console());
    }
    drop(test);
    // The disk's copy and the payload are large, and of no use to anybody.
    let _ = fs::remove_file(dir.join("root.qcow2"));
    let _ = fs::remove_file(&payload);
    result.context("the package test failed")
}

/// What the host needs, as an archive that is its second disk.
fn payload(dir: &Path, packages: &[PathBuf; 2]) -> Result<PathBuf> {
    guest::ticker::build(dir, &dir.join("ticker.img"))?;
    let archive = dir.join("payload.tar");
    let mut tar = cmd("tar", ["--create", "--file", &archive.to_string_lossy()]);
    for (from, name) in [(&packages[0], "1.deb"), (&packages[1], "2.deb")] {
        std::os::unix::fs::symlink(from, dir.join(name))?;
    }
    tar.args([
        "--dereference",
        "--directory",
        &dir.to_string_lossy(),
        "1.deb",
        "2.deb",
        "ticker.img",
    ]);
    quiet(tar)?;
    Ok(archive)
}

struct Test {
    host: Host,
    began: Instant,
}

/// What shows that a machine is the same one as before.
#[derive(Debug, PartialEq, Eq)]
struct Same {
    pid: String,
    /// In ticks since boot: a pid can be given away again.
    started: String,
    generation: u64,
}

impl Test {
    fn play(&mut self) -> Result<()> {
        self.host.run("mkdir /root/p && tar -xf /dev/vdb -C /root/p", SHORT)?;
        let before = self.host.run(TRACES, SHORT)?;
        self.install()?;
        let group = self.start_machine()?;
        self.limits(&group)?;
        self.witness()?;
        self.throttle()?;
        self.restart(&group)?;
        self.kill()?;
        self.upgrade()?;
        self.reboot()?;
        self.refuse_removal()?;
        self.remove(&before)?;
        self.purge(&before)
    }

    fn install(&mut self) -> Result<()> {
        self.apt("install -y /root/p/1.deb")?;
        self.host.run(
            "systemctl is-active muster.service muster-machines.service muster-guard.service \
             muster-guests.service",
            SHORT,
        )?;
        self.host.run("systemctl is-enabled muster.service muster-guests.service", SHORT)?;
        let files = "cd / && ls etc/muster/config.toml usr/share/man/man1/muster.1.gz \
                     usr/share/bash-completion/completions/muster";
        self.host.run(files, SHORT)?;
        self.guard()?;
        self.say("installed; daemon and guard are active");
        Ok(())
    }

    /// Creates the machine and starts it; its control group.
    fn start_machine(&mut self) -> Result<String> {
        self.host.run("muster image import ticker /root/p/ticker.img --format raw", LONG)?;
        self.host.run("muster vm create a --image ticker --memory 128M", SHORT)?;
        self.host.run("muster vm set a --cpu-weight 300", SHORT)?;
        self.host.run("muster vm start a", LONG)?;
        let vm = self.vm()?;
        let id = vm["id"].as_str().context("no id")?;
        let group = self.host.run(&format!("ls -d {GROUP}/muster-*/vm-{id}"), SHORT)?;
        self.until("its guest to tick", LONG, Self::ticks)?;
        self.say("a machine was started, and its guest ticks");
        Ok(group)
    }

    /// All limits are the kernel's, the process is where they hold, and nothing protects it from an
    /// end by lack of memory.
    fn limits(&mut self, group: &str) -> Result<()> {
        let vm = self.vm()?;
        let missing = vm["run"]["missing_limits"].as_array().context("no limits told")?;
        ensure!(missing.is_empty(), "limits that are not in force: {missing:?}");
        let read = format!("cd {group}; cat cpu.weight cpu.max memory.max pids.max");
        let read = self.host.run(&read, SHORT)?;
        let lines: Vec<&str> = read.lines().collect();
        let [weight, cap, memory, pids] = lines[..] else { bail!("limits: {read}") };
        ensure!(weight == "300" && cap == "max 100000", "cpu.weight {weight}, cpu.max {cap}");
        let memory: u64 = memory.parse().context("memory.max")?;
        ensure!((128 << 20..2 << 30).contains(&memory), "memory.max {memory}");
        ensure!(pids.parse::<u64>().is_ok(), "pids.max {pids}");
        let pid = self.same()?.pid;
        self.host.run(&format!("grep -qx {pid} {group}/cgroup.procs"), SHORT)?;
        let score = self.host.run(&format!("cat /proc/{pid}/oom_score_adj"), SHORT)?;
        ensure!(score == "0", "oom_score_adj {score}");
        self.say("its limits are in force");
        Ok(())
    }

    /// It is there for who wants it, under a user of its own, and its token is root's.
    fn witness(&mut self) -> Result<()> {
        let unit = "muster-witness.service";
        let ask = format!("systemctl is-enabled {unit}; systemctl is-active {unit}");
        let said = self.host.ask(&ask, SHORT)?.out;
        ensure!(said.trim() == "disabled\ninactive", "the witness without a word: {said}");
        self.host.run(&format!("systemctl start {unit}"), SHORT)?;
        let token = self.host.run("cat /var/lib/muster-witness/token", SHORT)?;
        ensure!(token.len() > 40 && !token.contains(' '), "its token: {token:?}");
        let mode = self.host.run("stat -L -c %a /var/lib/muster-witness/token", SHORT)?;
        ensure!(mode == "600", "the token's mode is {mode}");
        let said = self.host.run(&format!("journalctl -u {unit}"), SHORT)?;
        ensure!(!said.contains(&token), "the token is in the journal");
        let user = "ps -o user= -p $(systemctl show -p MainPID --value muster-witness)";
        let user = self.host.run(user, SHORT)?;
        ensure!(user != "root", "the witness runs as root");
        self.host.run(&format!("systemctl stop {unit}"), SHORT)?;
        self.say("a witness runs for who starts it");
        Ok(())
    }

    /// A second machine that may use half a processor is held to it while it boots.
    fn throttle(&mut self) -> Result<()> {
        self.host.run("muster vm create b --image ticker --memory 128M --no-network", SHORT)?;
        self.host.run("muster vm set b --cpu-cap 50 && muster vm start b", LONG)?;
        let id = self
            .host
            .run("muster --json vm show b | grep -o '\"id\":\"[^\"]*' | head -1", SHORT)?;
        let id = id.trim_start_matches("\"id\":\"");
        let group = format!("{GROUP}/muster-*/vm-{id}");
        let max = self.host.run(&format!("cat {group}/cpu.max"), SHORT)?;
        ensure!(max == "50000 100000", "cpu.max {max}");
        let throttled = format!("awk '/^nr_throttled/ {{print $2}}' {group}/cpu.stat");
        self.until("its cap to be felt", SHORT, |test| {
            let times = test.host.run(&throttled, SHORT)?;
            Ok(times.parse::<u64>().is_ok_and(|times| times > 0))
        })?;
        self.host.run("muster vm off b --yes", SHORT)?;
        self.say("a processor cap is enforced");
        Ok(())
    }

    /// A restart and a stop of the daemon; the guard is not stopped by the way.
    fn restart(&mut self, group: &str) -> Result<()> {
        let before = self.same()?;
        let guard = self.guard()?;
        self.host.run("systemctl daemon-reload && systemctl restart muster", LONG)?;
        self.adopted(&before, "a restart")?;
        self.host.run("systemctl stop muster", LONG)?;
        self.host.run(&format!("grep -qx {} {group}/cgroup.procs", before.pid), SHORT)?;
        self.host.run("systemctl start muster", LONG)?;
        self.adopted(&before, "a stop and start")?;
        let stopped = self.host.ask("systemctl stop muster-guard", SHORT)?;
        ensure!(stopped.code != 0, "the guard could be stopped by the way");
        ensure!(self.guard()? == guard, "another guard runs");
        self.say("the machine went on while the daemon was restarted and stopped");
        Ok(())
    }

    /// A violent death of the daemon and of the guard.
    fn kill(&mut self) -> Result<()> {
        let before = self.same()?;
        let guard = self.guard()?;
        self.host.run("systemctl kill --kill-whom=main --signal=KILL muster", SHORT)?;
        self.until("the daemon to come back", LONG, |test| {
            Ok(test.host.ask("muster vm list", SHORT)?.code == 0)
        })?;
        self.adopted(&before, "a killed daemon")?;
        ensure!(self.guard()? == guard, "another guard runs");

        self.host.run("systemctl kill --kill-whom=main --signal=KILL muster-guard", SHORT)?;
        self.until("a guard to follow", LONG, |test| {
            let now = test.host.ask(GUARD_PID, SHORT)?;
            Ok(now.code == 0 && now.out.trim() != guard)
        })?;
        self.guard()?;
        self.knew_more()?;
        self.adopted(&before, "a killed guard")?;
        self.say("the machine went on while daemon and guard were killed");
        Ok(())
    }

    fn upgrade(&mut self) -> Result<()> {
        let before = self.same()?;
        let daemon = "systemctl show --property=MainPID --value muster";
        let old = self.host.run(daemon, SHORT)?;
        let guard = self.guard()?;
        self.apt("install -y /root/p/2.deb")?;
        ensure!(self.guard()? == guard, "the guard's process is another one");
        // The old program's file is deleted, and the kernel says so.
        let program = format!("readlink /proc/{guard}/exe");
        let program = self.host.run(&program, SHORT)?;
        ensure!(program == "/usr/bin/muster", "the guard still runs the old program: {program}");
        self.knew_more()?;
        let version =
            self.host.run("dpkg-query -W -f '${Version} ${db:Status-Status}' muster", SHORT)?;
        ensure!(version.ends_with("-2 installed"), "dpkg has {version}");
        ensure!(self.host.run(daemon, SHORT)? != old, "the old daemon still runs");
        self.adopted(&before, "an upgrade")?;
        self.say("upgraded under the machine");
        Ok(())
    }

    /// The guard's process, which is active, and which the daemon has found: the state that it
    /// stores is of this node, and changes with each renewal of the lease.
    fn guard(&mut self) -> Result<String> {
        let pid = self.host.run(GUARD_PID, SHORT)?;
        let node = "grep -q \"$(cat /var/lib/muster/node-id)\" ";
        let renewed = format!("{node} {GUARD_STATE} && md5sum <{GUARD_STATE}");
        let mut first = None;
        self.until("the daemon to renew its lease with the guard", SHORT, |test| {
            let said = test.host.ask(&renewed, SHORT)?;
            if said.code != 0 {
                return Ok(false);
            }
            let met = first.as_ref().is_some_and(|first| *first != said.out);
            first.get_or_insert(said.out);
            Ok(met)
        })?;
        Ok(pid)
    }

    /// The guard that began last began with the lease that the one before it held. One without
    /// would have frozen the machine until the daemon came.
    fn knew_more(&mut self) -> Result<()> {
        let begun = "journalctl -o cat -u muster-guard | grep 'guarding group=' | tail -1 | \
                     grep -q 'held=Held { grant: Some'";
        self.host.run(begun, SHORT).context("a guard began without what was known")?;
        Ok(())
    }

    /// The guest is shut down with its host, by its own power button, and started again with it.
    fn reboot(&mut self) -> Result<()> {
        let before = self.same()?;
        self.host.reboot()?;
        self.until("the machine to run again", LONG, |test| {
            Ok(test.host.ask("muster --json vm show a | grep '\"phase\":\"running\"'", SHORT)?.code
                == 0)
        })?;
        self.until("its guest to tick", LONG, Self::ticks)?;
        let vm = self.vm()?;
        ensure!(vm["last_exit"]["kind"] == "requested", "it ended by {}", vm["last_exit"]);
        let generation = vm["generation"].as_u64();
        ensure!(generation == Some(before.generation + 1), "this is run {generation:?}");
        let events = self.host.run("muster event list", SHORT)?;
        ensure!(!events.contains("was turned off"), "the guest was not asked:\n{events}");
        self.host.run("test ! -e /var/lib/muster/stopped-machines.json", SHORT)?;
        self.guard()?;
        self.say("the host was restarted: the guest shut down, and was started again");
        Ok(())
    }

    fn refuse_removal(&mut self) -> Result<()> {
        let before = self.same()?;
        let said = self.host.ask("apt-get -q remove -y muster", LONG)?;
        ensure!(said.code != 0, "it was removed under a running machine:\n{}", said.out);
        let all = format!("{}{}", said.out, said.err);
        ensure!(all.contains("machines are still running"), "no word on why:\n{all}");
        self.adopted(&before, "a removal that was refused")?;
        self.say("a removal under the machine was refused");
        Ok(())
    }

    fn remove(&mut self, before: &str) -> Result<()> {
        self.host.run("muster vm shutdown a", LONG)?;
        self.until("the machine to be off", LONG, |test| Ok(test.vm()?["phase"] == "off"))?;
        self.apt("remove -y muster")?;
        let after = self.host.run(TRACES, SHORT)?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        let kept = "ls /etc/muster/config.toml /var/lib/muster/state.redb /var/lib/muster/vms/*/disks/*.qcow2";
        self.host.run(kept, SHORT).context("a removal keeps configuration and disks")?;
        self.say("removed; nothing is left but configuration and data");
        Ok(())
    }

    fn purge(&mut self, before: &str) -> Result<()> {
        self.apt("purge -y muster")?;
        let left = self.host.run(KEPT, SHORT)?;
        ensure!(left.is_empty(), "left after a purge:\n{left}");
        let after = self.host.run(TRACES, SHORT)?;
        ensure!(after == before, "before:\n{before}\nafter a purge:\n{after}");
        self.say("purged; nothing is left");
        Ok(())
    }

    fn apt(&mut self, what: &str) -> Result<()> {
        self.host.run(&format!("DEBIAN_FRONTEND=noninteractive apt-get -q {what}"), LONG).map(drop)
    }

    /// The first machine, as the daemon sees it.
    fn vm(&mut self) -> Result<Value> {
        let said = self.host.run("muster --json vm show a", SHORT)?;
        serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))
    }

    fn same(&mut self) -> Result<Same> {
        let vm = self.vm()?;
        let pid = vm["run"]["pid"].as_u64().context("it does not run")?.to_string();
        let started = self.host.run(&format!("cut -d' ' -f22 /proc/{pid}/stat"), SHORT)?;
        let generation = vm["generation"].as_u64().context("no generation")?;
        Ok(Same { pid, started, generation })
    }

    /// The same process in the same generation, taken over, and its guest goes on.
    fn adopted(&mut self, before: &Same, after: &str) -> Result<()> {
        self.until("it to be taken over", LONG, |test| Ok(test.vm()?["phase"] == "running"))?;
        let now = self.same()?;
        ensure!(now == *before, "after {after} there is {now:?}, and there was {before:?}");
        self.until("its guest to tick", SHORT, Self::ticks)
    }

    /// Whether the guest writes on its screen, which it does each second.
    fn ticks(&mut self) -> Result<bool> {
        let look = "muster vm screenshot a -o - | md5sum";
        let said = self.host.run(&format!("{look}; sleep 2; {look}"), SHORT)?;
        let looks: Vec<&str> = said.lines().collect();
        let [first, second] = looks[..] else { bail!("two looks at a screen: {said}") };
        Ok(first != second)
    }

    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut met: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let until = Instant::now() + limit;
        while !met(self)? {
            ensure!(Instant::now() < until, "waited {limit:?} for {what}");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn say(&self, what: &str) {
        println!("  {:>4} s  {what}", self.began.elapsed().as_secs());
    }

    /// What the units and the daemon said last.
    fn last_words(&mut self) -> String {
        let script = "systemctl --no-pager status 'muster*'; muster vm list; \
                      journalctl --no-pager -n 40 -u 'muster*'";
        self.host
            .ask(script, SHORT)
            .map_or_else(|error| format!("{error:#}"), |said| said.out + &said.err)
    }
}
