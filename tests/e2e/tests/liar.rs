//! Guest agents that are silent, endless, or lie.
//!
//! The real agent of the tiny guest is ended, and a script of the test's own sits on its port: it
//! synchronises as the protocol says (else nothing it says would be listened to) and answers
//! everything else by `/run/answer`, which a test writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::time::Duration;

use api::endpoint as ep;
use api::model::Bytes;
use api::model::OpState;
use api::model::Power;
use api::types::DiskAddBody;
use api::types::Heartbeat;
use api::types::ShutdownBody;
use e2e::GUEST;
use e2e::Host;
use e2e::Serial;
use e2e::Vm;
use e2e::eventually;
use e2e::tiny;

/// More than the daemon may grow by while an agent talks, in bytes. One reply may be a megabyte,
/// and parsed JSON takes some times its text.
const GROWTH_MAX: u64 = 64 << 20;

/// Most that the daemon may work for a hostile agent, in parts of one processor.
const LOAD_MAX: f64 = 0.5;

/// The script on the agent's port. Each line is at most what a terminal takes at once.
const LIAR: &str = r#"#!/bin/sh
for known in /sys/class/virtio-ports/*; do
grep -q guest_agent $known/name && port=/dev/${known##*/}
done
# It is free only once whoever had it is gone.
until sh -c "exec 3<>$port"; do sleep 0.1; done
exec 3<>$port
while :; do
# While nobody is connected on the other side a read ends at once; that is not the end.
read -r line <&3 || { sleep 0.1; continue; }
id=${line##*\"id\":}; id=${id%%[!0-9]*}
say() { printf "{\"return\": %s, \"id\": $id}\n" "$1" >&3; }
case $line in
*guest-sync-delimited*) printf "\377" >&3; say $id;;
*) . /run/answer;;
esac
done"#;

/// Ends the script and the programs that it writes by: each of them holds the port.
const END: &str = "killall liar head tr yes 2>/dev/null; true";

/// Ends the real agent and starts the script with these answers.
async fn possess(shell: &mut Serial, answers: &str) {
    shell.run(END).await;
    for (file, text) in [("/run/liar", LIAR), ("/run/answer", answers)] {
        shell.run(&format!(": >{file}")).await;
        for line in text.lines() {
            assert!(!line.contains('\''), "{line}");
            shell.run(&format!("echo '{line}' >>{file}")).await;
        }
    }
    shell.run("chmod +x /run/liar").await;
    // The agent overhears a mere request to end while it starts.
    let kill = "killall -9 agent qemu-ga 2>/dev/null";
    let replace = format!("{kill}; while pidof agent qemu-ga; do {kill}; done; /run/liar");
    shell.run(&format!("{replace} >/run/liar.log 2>&1 & true")).await;
}

/// Ends the script and starts the real agent again.
async fn heal(vm: &Vm<'_>, shell: &mut Serial) {
    shell.run(END).await;
    shell.run("/etc/agent >/dev/null 2>&1 & true").await;
    vm.wait_heartbeat().await;
}

fn resident(host: &Host) -> u64 {
    let status = format!("/proc/{}/status", host.daemon_pid().unwrap());
    let text = std::fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Processor time that the daemon has used.
fn used(host: &Host) -> Duration {
    const TICKS: u64 = 100;
    let text = std::fs::read_to_string(format!("/proc/{}/stat", host.daemon_pid().unwrap()));
    let text = text.unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / TICKS)
}

#[tokio::test]
async fn an_agent_that_answers_without_end_costs_little() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("flood")).await;
    let mut shell = vm.shell().await;
    let before = resident(&host);
    let answers = [
        // A gigabyte as the answer to whatever is asked.
        "printf \"{\\\"return\\\": \\\"\" >&3; head -c 1073741824 /dev/zero | tr \"\\000\" a >&3",
        // As many answers as fit, to questions that nobody asked.
        "yes \"{\\\"return\\\": {}, \\\"id\\\": 1}\" | head -c 1073741824 >&3",
        // Brackets without end.
        "head -c 1073741824 /dev/zero | tr \"\\000\" [ >&3",
    ];
    for answer in answers {
        let (cpu, clock) = (used(&host), std::time::Instant::now());
        possess(&mut shell, answer).await;
        vm.wait("no contact", |view| view.guest.heartbeat == Heartbeat::NoContact).await;
        let load = (used(&host) - cpu).as_secs_f64() / clock.elapsed().as_secs_f64();
        assert!(load < LOAD_MAX, "the daemon was busy with {answer}: {load}");
        heal(&vm, &mut shell).await;
    }
    let grown = resident(&host).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "the daemon has grown by {} MiB", grown >> 20);
}

#[tokio::test]
async fn an_agent_that_lies_is_shown_as_the_guests_word_and_decides_nothing() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("liar")).await;
    let honest = vm.show().await;
    let mac = honest.nics[0].mac.to_string();
    let mut shell = vm.shell().await;
    let named = |name: &str| format!("{{\\\"name\\\":\\\"{name}\\\",\\\"enabled\\\":true}}");
    let commands: Vec<_> = [
        "guest-ping",
        "guest-get-osinfo",
        "guest-get-host-name",
        "guest-get-users",
        "guest-get-timezone",
        "guest-network-get-interfaces",
        "guest-get-fsinfo",
        "guest-shutdown",
        "guest-fsfreeze-status",
        "guest-fsfreeze-freeze",
        "guest-fsfreeze-thaw",
        "guest-set-time",
        "guest-exec",
        "guest-exec-status",
        "guest-file-open",
        "guest-file-write",
        "guest-file-close",
    ]
    .map(named)
    .into();
    let list = commands.join(",");
    let answers = format!(
        "case $line in\n\
         *guest-info*) say \"{{\\\"version\\\":\\\"\\\\u001b[2J99\\\",\\\"supported_commands\\\":[{list}]}}\";;\n\
         *osinfo*) long=$(head -c 100000 /dev/zero | tr \"\\000\" x)\n\
         say \"{{\\\"pretty-name\\\":\\\"\\\\u001b]0;owned\\\\u0007\\\\r\\\\n$long\\\",\\\"id\\\":7}}\";;\n\
         *host-name*) say \"{{\\\"host-name\\\":\\\"../../etc/passwd\\\\u001b[31m\\\"}}\";;\n\
         *get-users*) say 5;;\n\
         *timezone*) say \"{{\\\"offset\\\":99999999999,\\\"zone\\\":\\\"x\\\"}}\";;\n\
         *interfaces*) many=\n\
         for i in $(seq 100); do many=\"$many,{{\\\"name\\\":\\\"e$i\\\",\\\"hardware-address\\\":\\\"{mac}\\\",\\\"ip-addresses\\\":[{{\\\"ip-address\\\":\\\"not;an;address\\\",\\\"prefix\\\":999}}]}}\"; done\n\
         say \"[{{\\\"name\\\":\\\"eth0\\\",\\\"hardware-address\\\":\\\"{mac}\\\",\\\"ip-addresses\\\":[{{\\\"ip-address\\\":\\\"8.8.8.8\\\",\\\"prefix\\\":-1}}]}}$many]\";;\n\
         *get-fsinfo*) say \"{{}}\";;\n\
         *fsfreeze-status*) say \"\\\"frozen\\\"\";;\n\
         *fsfreeze-freeze*) say 18446744073709551615;;\n\
         *file-open*) say 1;;\n\
         *file-write*) say \"{{\\\"count\\\":-5}}\";;\n\
         *guest-exec*) say \"{{\\\"pid\\\":-1,\\\"exited\\\":false}}\";;\n\
         *) say {{}};;\n\
         esac"
    );
    possess(&mut shell, &answers).await;
    let view = vm
        .wait("its word is shown", |view| {
            view.guest.agent.as_ref().is_some_and(|version| version.contains("99"))
                && view.guest.os.as_ref().is_some_and(|os| os.contains("xxx"))
        })
        .await;
    // It answers, so there is contact; what it says is cut and harmless.
    vm.wait("contact", |view| view.guest.heartbeat == Heartbeat::Ok).await;
    let guest = &view.guest;
    let texts = [&guest.agent, &guest.os, &guest.hostname, &guest.kernel, &guest.timezone];
    for text in texts.into_iter().flatten().chain(&guest.users) {
        assert!(text.chars().count() <= 256 && !text.contains(char::is_control), "{text:?}");
    }
    for addresses in view.nics.iter().map(|nic| &nic.addresses) {
        assert!(addresses.iter().all(|it| it.parse::<std::net::IpAddr>().is_ok()), "{addresses:?}");
        assert!(addresses.len() <= 64);
    }
    assert_eq!(view.nics[0].reserved_address, honest.nics[0].reserved_address);
    let shown = host.cli(&["vm", "show", "liar"]).await.ok();
    assert!(!shown.out.contains('\u{1b}') && !shown.out.contains('\u{7}'), "{:?}", shown.out);
    let listed = host.cli(&["vm", "list"]).await.ok();
    assert!(!listed.out.contains('\u{1b}'), "{:?}", listed.out);

    // What it says to have frozen is thawed at once or after the limit; nothing waits for ever.
    let frozen = host.client().get::<ep::VmFreeze>(&["liar"]).await;
    if let Err(error) = &frozen {
        assert!(!error.hint.is_empty(), "{error:?}");
    }
    vm.wait("nothing is frozen for long", |view| !view.guest.frozen).await;
    // Devices do not depend on its word.
    let disk = DiskAddBody { size: Some(Bytes::mib(40)), ..DiskAddBody::default() };
    host.op::<ep::DiskAdd>(&["liar"], &disk).await;
    // It says that it shuts down and does not: the power button is pressed, too.
    let body = ShutdownBody { patience_s: 120, then_off: false };
    let op = host.try_op::<ep::VmShutdown>(&["liar"], &body).await.unwrap();
    assert!(matches!(op.state, OpState::Done { .. }), "{op:?}");
    assert_eq!(vm.show().await.power, Power::Off);
}

#[tokio::test]
async fn an_agent_that_never_answers_holds_nothing_up() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("mute")).await;
    let mut shell = vm.shell().await;
    // It synchronises, and then it is silent.
    possess(&mut shell, "true").await;
    vm.wait("no contact", |view| view.guest.heartbeat == Heartbeat::NoContact).await;
    let error = host.client().get::<ep::VmFreeze>(&["mute"]).await.unwrap_err();
    assert!(!error.hint.is_empty(), "{error:?}");
    // Everything that can do without it does.
    vm.verb::<ep::VmPause>().await;
    vm.verb::<ep::VmResume>().await;
    let disk = DiskAddBody { size: Some(Bytes::mib(40)), ..DiskAddBody::default() };
    host.op::<ep::DiskAdd>(&["mute"], &disk).await;
    vm.verb::<ep::VmSave>().await;
    vm.start().await;
    let mut shell = vm.serial().await;
    eventually("the guest goes on", GUEST, async || {
        (shell.try_run("true").await.0 == 0).then_some(())
    })
    .await;
    let body = ShutdownBody { patience_s: 120, then_off: false };
    let op = host.try_op::<ep::VmShutdown>(&["mute"], &body).await.unwrap();
    assert!(matches!(op.state, OpState::Done { .. }), "{op:?}");
}
