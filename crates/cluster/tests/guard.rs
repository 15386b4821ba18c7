//! The guard as a process, with real control groups and real processes in them. Needs root and a
//! cgroup v2 mount.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "what a helper cannot do fails the test")]

#[path = "guard/rig.rs"]
mod rig;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use cluster::guard::boot_time;
use cluster::guard::wire::Ask;
use cluster::lease::EndAll;
use cluster::lease::Mode;
use cluster::lease::Stage;

use rig::LEASE;
use rig::Rig;
use rig::SOON_FROZEN;
use rig::SOON_KILLED;
use rig::ago;
use rig::grant;
use rig::wait_for;

/// What takeover allows a guard (the default setting).
const MARGIN: Duration = Duration::from_secs(10);

/// The freeze comes at 2/3 of the lease, the kill at its end; what starts late is caught; a renewal
/// opens again.
#[tokio::test]
async fn freeze_at_two_thirds_kill_at_the_end_late_starter_caught() {
    let mut rig = Rig::new();
    rig.start();
    let first = rig.ask(Ask::Status).await;
    assert_eq!(first.status.stage, Stage::Blocked);
    assert!(rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, boot_time()))).await.ok);
    let machine = rig.machine("a");
    wait_for("it runs", || machine.works());
    let sent = ago(SOON_FROZEN);
    assert!(rig.ask(Ask::Grant(grant(2, 0, Mode::SelfFence, sent))).await.ok);
    wait_for("it is frozen", || rig.frozen());
    let at = boot_time().since(sent);
    assert!(at >= LEASE * 2 / 3 && at < LEASE, "frozen after {at:?}");
    assert!(machine.alive(), "frozen, not killed");
    assert!(!machine.works());
    let late = rig.machine("late");
    assert!(!late.works(), "it must not run even once");
    wait_for("both are killed", || !machine.alive() && !late.alive());
    let at = boot_time().since(sent);
    assert!(at >= LEASE && at < LEASE + MARGIN, "killed after {at:?}");
    let later = rig.machine("later");
    wait_for("it is killed, too", || !later.alive());
    let again = rig.ask(Ask::Grant(grant(3, 0, Mode::SelfFence, boot_time()))).await;
    assert!(again.ok, "{again:?}");
    let machine = rig.machine("b");
    wait_for("the next lease lets it run", || machine.works());
}

#[tokio::test]
async fn a_renewal_in_the_freeze_lets_machines_go_on() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, ago(SOON_FROZEN)))).await;
    let machine = rig.machine("a");
    wait_for("it is frozen", || rig.frozen());
    let reply = rig.ask(Ask::Grant(grant(2, 0, Mode::SelfFence, boot_time()))).await;
    assert_eq!(reply.status.stage, Stage::Open);
    wait_for("it goes on", || machine.works());
    assert!(machine.alive());
}

/// The clock of the lease is read before the request was sent: a reply that took long is worth less.
#[tokio::test]
async fn the_lease_counts_from_before_the_request_was_sent() {
    let mut rig = Rig::new();
    rig.start();
    let over = rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, ago(LEASE)))).await;
    assert!(!over.ok && over.status.stage == Stage::Blocked, "{over:?}");
    let future = boot_time().plus(Duration::from_secs(600));
    assert!(!rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, future))).await.ok);
    let late = grant(1, 0, Mode::SelfFence, ago(LEASE * 3 / 4));
    let frozen = rig.ask(Ask::Grant(late)).await;
    assert!(frozen.ok);
    assert_eq!(frozen.status.stage, Stage::Frozen, "three quarters of it are over");
}

#[tokio::test]
async fn killed_in_the_middle_and_started_again_it_goes_on() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 4, Mode::SelfFence, boot_time()))).await;
    let machine = rig.machine("a");
    wait_for("it runs", || machine.works());
    let sent = ago(SOON_FROZEN);
    rig.ask(Ask::Grant(grant(2, 4, Mode::SelfFence, sent))).await;
    rig.kill_guard();
    wait_for("the freeze is due, with nobody to do it", || boot_time().since(sent) > LEASE * 2 / 3);
    rig.start();
    wait_for("the next guard freezes it", || rig.frozen());
    let at = boot_time().since(sent);
    assert!(at < LEASE, "frozen after {at:?}");
    assert!(machine.alive());
    let status = rig.ask(Ask::Status).await.status;
    assert_eq!((status.epoch, status.mode), (Some(4), Some(Mode::SelfFence)));
    rig.kill_guard();
    wait_for("the end is past", || boot_time().since(sent) > LEASE);
    assert!(machine.alive() && !machine.works(), "it stands still with no guard at all");
    rig.start();
    wait_for("the next guard kills it", || !machine.alive());
}

/// Nothing but grants comes from the daemon: its death changes nothing.
#[tokio::test]
async fn without_a_daemon_proof_goes_on_and_self_fencing_ends() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 0, Mode::Proof, ago(SOON_KILLED)))).await;
    let machine = rig.machine("a");
    rig.disconnect();
    let now = boot_time();
    wait_for("the lease is over", || boot_time().since(now) > (LEASE - SOON_KILLED) * 2);
    assert!(machine.works(), "nobody starts it elsewhere without proof");
    let status = rig.ask(Ask::Status).await.status;
    assert_eq!(status.stage, Stage::Open);
    assert!(status.start_until.unwrap() < boot_time(), "but nothing may be started");
    rig.ask(Ask::Grant(grant(2, 0, Mode::SelfFence, ago(SOON_KILLED)))).await;
    rig.disconnect();
    wait_for("it is killed", || !machine.alive());
}

#[tokio::test]
async fn a_fenced_node_ends_its_machines_before_the_new_epoch() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 0, Mode::Proof, boot_time()))).await;
    let machine = rig.machine("a");
    let refused = rig.ask(Ask::Grant(grant(2, 1, Mode::Proof, boot_time()))).await;
    assert_eq!((refused.ok, refused.end_first), (false, Some(1)));
    assert!(machine.works());
    rig.ask(Ask::EndAll { epoch: 1 }).await;
    wait_for("it is killed", || !machine.alive());
    let mut done = rig.ask(Ask::EndAll { epoch: 1 }).await;
    let begun = boot_time();
    while done.ended != Some(EndAll::Done) {
        assert!(boot_time().since(begun) < Duration::from_secs(60), "{done:?}");
        done = rig.ask(Ask::EndAll { epoch: 1 }).await;
    }
    assert_eq!((done.status.stage, done.status.epoch), (Stage::Blocked, Some(1)));
    let late = rig.machine("late");
    assert!(!late.works(), "blocked until there is a grant");
    drop(late);
    assert!(rig.ask(Ask::Grant(grant(3, 1, Mode::Proof, boot_time()))).await.ok);
}

/// Under systemd the group of all machines is made below one that comes later and goes earlier.
#[tokio::test]
async fn a_group_that_is_not_there_holds_nobody_and_is_found_when_it_comes() {
    let mut rig = Rig::below_nothing();
    rig.start();
    let status = rig.ask(Ask::Status).await.status;
    assert_eq!((status.populated, status.problem), (false, None));
    assert_eq!(status.group, rig.group());
    std::fs::create_dir(rig.parent()).unwrap();
    let status = rig.ask(Ask::Status).await.status;
    assert!(rig.group().exists(), "{status:?}");
    wait_for("nothing runs without a lease", || rig.frozen());
    assert!(rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, boot_time()))).await.ok);
    let machine = rig.machine("a");
    wait_for("it runs", || machine.works());
    drop(machine);
    wait_for("all is gone", || {
        let anchor = std::fs::remove_dir(rig.group().join("guard"));
        let _ = std::fs::remove_dir(rig.group());
        drop(anchor);
        std::fs::remove_dir(rig.parent()).is_ok()
    });
    rig.signal_guard(nix::sys::signal::Signal::SIGTERM);
    wait_for("it ends: nobody needs it", || !rig.guard_runs());
}

#[tokio::test]
async fn it_ends_on_request_only_when_nobody_needs_it() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, boot_time()))).await;
    let machine = rig.machine("a");
    rig.signal_guard(nix::sys::signal::Signal::SIGTERM);
    // The signal was seen before this is answered: both wake the same loop, signals first.
    assert!(rig.ask(Ask::Grant(grant(2, 0, Mode::SelfFence, ago(SOON_KILLED)))).await.ok);
    wait_for("it goes on, and kills", || !machine.alive());
    wait_for("all of it", || rig.empty());
    drop(machine);
    assert!(rig.guard_runs());
    rig.signal_guard(nix::sys::signal::Signal::SIGTERM);
    wait_for("now it ends", || !rig.guard_runs());
    assert!(!rig.group().exists(), "and leaves nothing");
}

/// An update: the same process, a new program, the same lease.
#[tokio::test]
async fn started_anew_in_place_it_knows_its_lease() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(7, 2, Mode::Proof, boot_time()))).await;
    let before = rig.ask(Ask::Status).await.status;
    rig.signal_guard(nix::sys::signal::Signal::SIGHUP);
    let status = rig.status_after_restart().await;
    assert_eq!(status.pid, before.pid);
    assert_eq!((status.epoch, status.key), (Some(2), before.key));
    assert_eq!(status.stage, Stage::Open);
}

#[tokio::test]
async fn damaged_state_freezes_and_kills_nothing() {
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 0, Mode::Unlimited, boot_time()))).await;
    let machine = rig.machine("a");
    wait_for("it runs", || machine.works());
    rig.kill_guard();
    std::fs::write(rig.run_dir().join("guard.state"), "{\"version\":1,").unwrap();
    rig.start();
    wait_for("frozen until somebody knows", || rig.frozen());
    assert_eq!(rig.ask(Ask::Status).await.status.stage, Stage::Blocked);
    assert!(machine.alive());
    assert!(rig.ask(Ask::Grant(grant(2, 0, Mode::Unlimited, boot_time()))).await.ok);
    wait_for("it goes on", || machine.works());
}

#[tokio::test]
async fn a_watchdog_is_told_while_the_lease_allows_and_not_after() {
    let mut rig = Rig::with_watchdog();
    rig.start();
    let status = rig.ask(Ask::Status).await.status;
    assert_eq!((status.watchdog_ms, status.watchdog_armed), (2_000, false));
    rig.ask(Ask::Grant(grant(1, 0, Mode::SelfFence, boot_time()))).await;
    wait_for("it is set and told", || rig.pretend().starts_with("arm 2\n.."));
    // Processes that do not die are what a watchdog is for; ones that died need none.
    rig.ask(Ask::Grant(grant(2, 0, Mode::Proof, boot_time()))).await;
    wait_for("closed with the magic letter", || rig.pretend().ends_with('V'));
    rig.ask(Ask::Grant(grant(3, 0, Mode::SelfFence, boot_time()))).await;
    wait_for("set again", || rig.pretend().contains("Varm 2\n."));
    rig.kill_guard();
    assert!(!rig.pretend().ends_with('V'), "left running for the next guard");
    rig.start();
    wait_for("which takes it over", || rig.pretend().matches("arm 2\n").count() == 3);
}

#[tokio::test]
async fn garbage_on_the_socket_changes_nothing() {
    use std::io::Read;
    use std::io::Write;
    let mut rig = Rig::new();
    rig.start();
    rig.ask(Ask::Grant(grant(1, 0, Mode::Unlimited, boot_time()))).await;
    let connect = || UnixStream::connect(rig.run_dir().join("guard.sock")).unwrap();
    for line in [
        "{}\n",
        "\n",
        "\u{0}\n",
        "{\"v\":2,\"ask\":\"status\"}\n",
        "[1,2\n",
        "{\"v\":1,\"ask\":\"end_all\",\"epoch\":-1}\n",
    ] {
        let mut stream = connect();
        stream.write_all(line.as_bytes()).unwrap();
        let mut reply = [0; 4096];
        let length = stream.read(&mut reply).unwrap();
        let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
        assert!(reply.starts_with("{\"v\":1,\"ok\":false,\"why\":"), "{line:?}: {reply}");
    }
    let mut endless = connect();
    // The guard hangs up in the middle.
    let _ = endless.write_all(&[b'x'; 100_000]);
    let mut silent: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    rig.disconnect();
    let status = rig.ask(Ask::Status).await.status;
    assert_eq!((status.stage, status.mode), (Stage::Open, Some(Mode::Unlimited)));
    silent.clear();
}

#[tokio::test]
async fn a_second_guard_is_refused() {
    let mut rig = Rig::new();
    rig.start();
    let error = rig.start_another();
    assert!(error.contains("another guard"), "{error}");
    assert!(rig.ask(Ask::Status).await.ok);
}
