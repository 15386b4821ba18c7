//! The daemon dies; guests do not notice, and the next one finds everything.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::time::Duration;
use std::time::Instant;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::model::ExitKind;
use api::model::OpState;
use api::model::Power;
use api::types::DiskAddBody;
use api::types::OpListQuery;
use api::types::Phase;
use api::types::VmCreateBody;
use api::types::VmListQuery;
use e2e::GUEST;
use e2e::Host;
use e2e::OWN;
use e2e::Serial;
use e2e::Traces;
use e2e::Vm;
use e2e::eventually;
use e2e::tiny;

/// A guest's own clock in milliseconds since its boot: it stands while the guest is stopped.
async fn uptime_ms(shell: &mut Serial) -> f64 {
    let text = shell.run("cut -d' ' -f1 /proc/uptime").await;
    text.parse::<f64>().expect("seconds") * 1000.0
}

#[tokio::test]
async fn a_killed_daemon_is_not_noticed_by_the_guest() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    let before = {
        let vm = host.boot(&tiny("t")).await;
        let mut shell = vm.shell().await;
        shell.run(": >/run/ticks; guestload tick /run/ticks 100 & sleep 1").await;
        vm.show().await
    };
    let mut shell = host.vm("t").serial().await;
    let (host_clock, guest_clock) = (Instant::now(), uptime_ms(&mut shell).await);
    drop(shell);
    let traces = host.traces();
    host.kill9();
    assert_eq!(host.traces(), traces, "nothing of the machine went with the daemon");
    host.restart().await;
    let vm = host.vm("t");
    vm.wait_phase(Phase::Running).await;
    let after = vm.show().await;
    assert_eq!(after.generation, before.generation);
    assert_eq!(after.run.unwrap().pid, before.run.unwrap().pid);
    vm.wait_heartbeat().await;
    let mut shell = vm.serial().await;
    let passed = uptime_ms(&mut shell).await - guest_clock;
    let real = host_clock.elapsed().as_secs_f64() * 1000.0;
    // The guest's clock stands when it is stopped; asking over the console takes a moment.
    assert!((real - passed).abs() < 2_000.0, "{passed} ms in the guest, {real} ms outside");
    let lost =
        "awk '{ if (NR > 1 && $2 != last + 1) n++; last = $2 } END { print n + 0 }' /run/ticks";
    assert_eq!(shell.run(lost).await, "0", "the clock line has no gap");
    assert_eq!(host.traces(), traces);
}

#[tokio::test]
async fn an_adopted_machine_can_be_used_as_before() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    host.boot(&tiny("a")).await;
    host.kill9();
    host.restart().await;
    let vm = host.vm("a");
    vm.wait_phase(Phase::Running).await;
    let size = Some(Bytes::mib(40));
    host.op::<ep::DiskAdd>(&["a"], &DiskAddBody { size, ..DiskAddBody::default() }).await;
    let mut shell = vm.serial().await;
    let seen = "grep -lx 81920 /sys/block/*/size | wc -l";
    eventually("the new disk is seen", GUEST, async || {
        (shell.run(seen).await == "1").then_some(())
    })
    .await;
    vm.verb::<ep::VmPause>().await;
    host.kill9();
    host.restart().await;
    let vm = host.vm("a");
    assert_eq!(vm.wait_phase(Phase::Paused).await.power, Power::Paused);
    vm.verb::<ep::VmResume>().await;
    vm.wait_heartbeat().await;
    vm.shutdown().await;
}

#[tokio::test]
async fn a_guest_that_shut_down_without_a_daemon_is_off_afterwards() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    let address = {
        let vm = host.boot(&tiny("x")).await;
        let mut shell = vm.shell().await;
        shell.send("(sleep 3; poweroff -f) & echo se\"\"en\n").await;
        shell.expect("seen", GUEST).await;
        vm.address().await
    };
    host.kill9();
    // Its network goes on without a daemon, so this shows when the guest is gone.
    eventually("the guest answers no more", GUEST, async || {
        let asked = format!("exec 3<>/dev/tcp/{address}/7777");
        (!host.netns().says_yes("timeout", &["2", "bash", "-c", &asked])).then_some(())
    })
    .await;
    host.restart().await;
    let view = host.vm("x").wait_phase(Phase::Off).await;
    assert_eq!(view.last_exit.unwrap().kind, ExitKind::GuestShutdown);
    eventually("nothing of it is left", OWN, async || {
        let traces = host.traces();
        (traces.processes.is_empty() && traces.groups.is_empty()).then_some(())
    })
    .await;
}

/// What must hold after a daemon was killed in the middle of anything: each operation ends in a
/// named state, and each machine has exactly the traces that belong to its phase.
async fn sound(host: &Host) {
    host.quiet().await;
    let query = OpListQuery { all: true };
    let ops = host.client().call::<ep::OpList>(&[], &query, &Nothing {}).await.unwrap();
    for op in ops {
        assert!(!op.is_running(), "{op:?}");
        if let OpState::Failed { failure, .. } = &op.state {
            assert!(!failure.code.is_empty() && !failure.hint.is_empty(), "{op:?}");
        }
    }
    let query = VmListQuery::default();
    let vms = host.client().call::<ep::VmList>(&[], &query, &Nothing {}).await.unwrap();
    // Looked at together: a machine that the dead daemon had not yet ended is ended first.
    eventually("each machine has the traces of its phase and no more", OWN, async || {
        let mut running = Vec::new();
        for vm in &vms {
            let view = host.vm(vm.name.as_str()).show().await;
            match view.phase {
                Phase::Running | Phase::Paused => running.push(view),
                Phase::Off | Phase::Saved => {}
                _ => return None,
            }
        }
        let adapters: usize = running.iter().map(|view| view.nics.len()).sum();
        let Traces { processes, links, groups, files } = host.traces();
        let taps = links.iter().filter(|name| name.starts_with('m')).count();
        let runs = files.iter().filter(|name| name.starts_with("run/vms/"));
        let runs = runs.filter(|name| name.matches('/').count() == 2).count();
        let as_wanted = [processes.len(), groups.len(), runs] == [running.len(); 3];
        (as_wanted && taps == adapters).then_some(())
    })
    .await;
    // Files: a directory for each machine that is known, a file for each of its disks.
    let mut deleted = host
        .client()
        .call::<ep::VmList>(&[], &VmListQuery { deleted: true, tag: None }, &Nothing {})
        .await
        .unwrap();
    deleted.extend(vms);
    eventually("no file is left over", OWN, async || {
        let dirs = std::fs::read_dir(host.data_dir().join("vms")).unwrap().count();
        let parts = host.traces().files.into_iter().filter(|name| name.contains(".part")).count();
        (dirs == deleted.len() && parts == 0).then_some(())
    })
    .await;
}

/// Does `act` again and again, each time with the daemon killed a little later in it.
async fn kill_in_the_middle(
    host: &mut Host,
    delays_ms: impl IntoIterator<Item = u64>,
    prepare: impl AsyncFn(&Vm<'_>),
    act: impl AsyncFn(&Vm<'_>),
) {
    for delay in delays_ms {
        {
            let vm = host.vm("k");
            prepare(&vm).await;
            // The daemon's death is what ends this; the connection breaks with it.
            let limit = Duration::from_millis(delay);
            let _ = tokio::time::timeout(limit, act(&vm)).await;
        }
        host.kill9();
        host.restart().await;
        sound(host).await;
    }
}

async fn exists(vm: &Vm<'_>) -> bool {
    vm.host().client().get::<ep::VmShow>(&[vm.name()]).await.is_ok()
}

async fn begin<E>(vm: &Vm<'_>)
where
    E: api::endpoint::Endpoint<Reply = api::types::OpView, Body = Nothing>,
{
    let op = vm.host().client().get::<E>(&[vm.name()]).await;
    if let Ok(op) = op {
        let query = api::types::OpWaitQuery { timeout_ms: 60_000 };
        let id = op.id.to_string();
        let _ = vm.host().client().call::<ep::OpWait>(&[&id], &query, &Nothing {}).await;
    }
}

fn machine() -> VmCreateBody {
    tiny("k")
}

#[tokio::test]
async fn the_daemon_may_die_at_any_moment_of_a_creation() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    let prepare = async |vm: &Vm<'_>| {
        if exists(vm).await {
            vm.purge().await;
        }
    };
    let act = async |vm: &Vm<'_>| {
        let _ = vm.host().try_op::<ep::VmCreate>(&[], &machine()).await;
    };
    kill_in_the_middle(&mut host, (0..100).step_by(9), prepare, act).await;
}

#[tokio::test]
async fn the_daemon_may_die_at_any_moment_of_a_start() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    host.create(&machine()).await;
    let prepare = async |vm: &Vm<'_>| {
        if vm.show().await.power != Power::Off {
            vm.off().await;
        }
    };
    let act = async |vm: &Vm<'_>| begin::<ep::VmStart>(vm).await;
    kill_in_the_middle(&mut host, (0..900).step_by(60), prepare, act).await;
}

#[tokio::test]
async fn the_daemon_may_die_at_any_moment_of_a_hot_add_and_removal() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    host.boot(&machine()).await;
    let prepare = async |vm: &Vm<'_>| {
        // Whatever an earlier round has left is taken away by the way that users have.
        for disk in vm.show().await.disks.iter().skip(1) {
            vm.host().op::<ep::DiskRemove>(&["k", disk.name.as_str()], &Nothing {}).await;
        }
    };
    let act = async |vm: &Vm<'_>| {
        let name = Some("hot".parse().unwrap());
        let size = Some(Bytes::mib(40));
        let body = DiskAddBody { name, size, ..DiskAddBody::default() };
        let _ = vm.host().try_op::<ep::DiskAdd>(&["k"], &body).await;
        let _ = vm.host().try_op::<ep::DiskRemove>(&["k", "hot"], &Nothing {}).await;
    };
    kill_in_the_middle(&mut host, (0..700).step_by(60), prepare, act).await;
    let files = host.traces().files;
    let disks = host.vm("k").show().await.disks.len();
    let on_disk = files.iter().filter(|it| it.contains("/disks/")).count();
    assert_eq!(on_disk, disks, "{files:?}");
    host.vm("k").wait_heartbeat().await;
}

#[tokio::test]
async fn the_daemon_may_die_at_any_moment_of_a_save() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    host.boot(&machine()).await;
    let prepare = async |vm: &Vm<'_>| {
        if vm.show().await.power != Power::Running {
            vm.start().await;
        }
        vm.wait_heartbeat().await;
    };
    let act = async |vm: &Vm<'_>| begin::<ep::VmSave>(vm).await;
    kill_in_the_middle(&mut host, (0..1800).step_by(150), prepare, act).await;
    let vm = host.vm("k");
    vm.off().await;
    eventually("no saved memory is left", OWN, async || {
        (!host.traces().files.iter().any(|it| it.contains("memory"))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_daemon_may_die_at_any_moment_of_a_deletion() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    let prepare = async |vm: &Vm<'_>| {
        if !exists(vm).await {
            vm.host().create(&machine()).await;
        }
    };
    let act = async |vm: &Vm<'_>| vm.purge().await;
    kill_in_the_middle(&mut host, (0..120).step_by(10), prepare, act).await;
}
