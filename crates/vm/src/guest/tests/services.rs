//! The services of a guest, with time that jumps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::Services;
use model::VmId;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::fake_agent::FakePort;
use super::fake_agent::Quirk;
use crate::guest::Clock;
use crate::guest::Consistency;
use crate::guest::Exchange;
use crate::guest::FreezeState;
use crate::guest::GuestConfig;
use crate::guest::GuestServices;
use crate::guest::GuestStatus;
use crate::guest::HOST_FILE;
use crate::guest::HOST_FILE_FALLBACK;
use crate::guest::Heartbeat;
use crate::guest::HostFacts;
use crate::guest::PartKind;
use crate::guest::Parts;
use crate::guest::ServiceError;
use crate::guest::probe::ExecRequest;

struct FixedClock;

impl Clock for FixedClock {
    fn unix_nanos(&self) -> i64 {
        1_800_000_000_000_000_000
    }
}

fn start_with(port: &FakePort, services: Services) -> GuestServices {
    let port = Arc::new(port.clone());
    GuestServices::start(port, Arc::new(FixedClock), services, GuestConfig::default())
}

fn start(port: &FakePort) -> GuestServices {
    start_with(port, Services::default())
}

fn host(key: &str) -> HostFacts {
    HostFacts {
        host: "node-1".into(),
        vm: VmId::new(Uuid::from_u128(1)),
        name: "web".parse().unwrap(),
        platform_version: "0.1.0".into(),
        keys: BTreeMap::from([("role".to_owned(), key.to_owned())]),
    }
}

/// Waits (in jumping time) until the status is as wanted; returns how long it took.
async fn until(services: &GuestServices, wanted: impl FnMut(&GuestStatus) -> bool) -> Duration {
    let begun = Instant::now();
    let mut status = services.status();
    let hour = Duration::from_secs(3600);
    tokio::time::timeout(hour, status.wait_for(wanted)).await.expect("within an hour").unwrap();
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_appears_is_seen_at_once_and_one_that_goes_in_steps() {
    let port = FakePort::new();
    port.set_up(false);
    let services = start(&port);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::NotInstalled);
    port.set_up(true);
    let seen = until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    assert!(seen < Duration::from_secs(2), "{seen:?}");

    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Ok);
    port.set_up(false);
    let missing = until(&services, |status| status.heartbeat == Heartbeat::NoContact).await;
    assert!((10..=20).contains(&missing.as_secs()), "{missing:?}");
    let lost = until(&services, |status| status.heartbeat == Heartbeat::Lost).await;
    assert_eq!(lost.as_secs(), 45, "{lost:?}");
    port.set_up(true);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_is_a_heartbeat_whatever_becomes_of_the_second() {
    let port = FakePort::new();
    port.quirk("guest-info", 1, Quirk::Silent);
    let services = start(&port);
    let seen = until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    assert!(seen < Duration::from_secs(1), "{seen:?}");
    assert_eq!(services.status().borrow().facts, None);
    until(&services, |status| status.facts.is_some()).await;
    assert_eq!(port.count("guest-info"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_only_synchronises_is_no_contact() {
    let port = FakePort::new();
    port.quirk("guest-info", 1_000, Quirk::Silent);
    // Shorter than the time after which a guest is missed: each attempt begins with an answer.
    let config = GuestConfig { patience: Duration::from_secs(1), ..GuestConfig::default() };
    let port = Arc::new(port);
    let services = GuestServices::start(port, Arc::new(FixedClock), Services::default(), config);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    until(&services, |status| status.heartbeat == Heartbeat::NoContact).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_has_just_booted_is_asked_for_its_addresses_only() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(port.count("guest-network-get-interfaces"), 3, "at once, after 2 s, after 5 more");
    assert_eq!(port.count("guest-get-osinfo"), 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(port.count("guest-get-osinfo"), 2, "when it has settled");
}

fn agent(status: &GuestStatus) -> Option<&str> {
    status.facts.as_ref()?.agent.as_deref()
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_takes_anothers_place_is_asked_what_it_can_do() {
    let port = FakePort::new();
    port.guest().blocked = vec!["guest-fsfreeze-freeze"];
    let services = start(&port);
    until(&services, |status| agent(status) == Some("8.2.0")).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(services.freeze().await.is_err());
    let asked = port.count("guest-get-osinfo");

    // Between two beats, so that no question remains without an answer.
    port.guest().version = "10.0.2";
    port.guest().blocked.clear();
    services.agent_came();
    let seen = until(&services, |status| agent(status) == Some("10.0.2")).await;
    assert!(seen <= Duration::from_secs(5), "{seen:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(port.count("guest-get-osinfo"), asked + 1, "its guest is looked at, too");
    assert!(services.freeze().await.is_ok());
    services.thaw().await.unwrap();

    // A port that does not tell who opens it.
    port.guest().version = "11.0.0";
    let seen = until(&services, |status| agent(status) == Some("11.0.0")).await;
    assert!(seen <= Duration::from_secs(65), "{seen:?}");
    assert_eq!(port.count("guest-sync-delimited"), 1, "one conversation all the time");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_opened_all_the_time_is_not_asked_all_the_time() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.facts.is_some()).await;
    for _ in 0..60 {
        services.agent_came();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = port.count("guest-info") + port.count("guest-ping");
    assert!((10..=14).contains(&asked), "{asked} beats in a minute");
}

#[tokio::test(start_paused = true)]
async fn facts_come_back_when_data_exchange_is_switched_on_again() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.facts.is_some()).await;
    services.configure(Services { exchange: false, ..Services::default() }).unwrap();
    until(&services, |status| status.facts.is_none()).await;
    services.configure(Services::default()).unwrap();
    let seen = until(&services, |status| agent(status) == Some("8.2.0")).await;
    assert!(seen <= Duration::from_secs(10), "{seen:?}");
    assert!(services.status().borrow().facts.as_ref().unwrap().os.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_neither_asked_nor_missed() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    services.set_paused(true).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = port.guest().seen.len();
    port.set_up(false);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(port.guest().seen.len(), before);
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Ok);
    port.set_up(true);
    services.set_paused(false).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Ok);
    assert!(port.guest().seen.len() > before);
}

#[tokio::test(start_paused = true)]
async fn facts_are_read_cleaned_and_kept_fresh() {
    let port = FakePort::new();
    let services = start(&port);
    let whole = |status: &GuestStatus| {
        status.facts.as_ref().is_some_and(|facts| !facts.filesystems.is_empty())
    };
    until(&services, whole).await;
    let facts = services.status().borrow().facts.clone().unwrap();
    let os = facts.os.as_ref().unwrap();
    assert_eq!(os.pretty.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    assert_eq!(os.kernel.as_deref(), Some("6.1.0-56-cloud-amd64"));
    assert_eq!(facts.agent.as_deref(), Some("8.2.0"));
    assert_eq!(facts.timezone.as_deref(), Some("CET (+01:00)"));
    assert_eq!(facts.users, ["ann", "root"]);
    assert_eq!(facts.interfaces[0].mac.as_deref(), Some("52:54:00:ab:00:01"));
    assert_eq!(facts.interfaces[0].addresses, ["10.77.0.5/24", "fe80::1"], "only addresses pass");
    assert_eq!(facts.filesystems[0].used, Some(400));

    port.guest().hostname = "x\x07".repeat(5000);
    let renamed =
        |status: &GuestStatus| status.facts.as_ref().unwrap().hostname.as_deref() != Some("debian");
    assert!(until(&services, renamed).await <= Duration::from_secs(61));
    let name = services.status().borrow().facts.clone().unwrap().hostname.clone().unwrap();
    assert!(name.chars().count() <= 256 && !name.contains('\x07'));
}

#[tokio::test(start_paused = true)]
async fn an_idle_guest_costs_few_messages_and_no_wake_ups() {
    let port = FakePort::new();
    let services = start(&port);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let before = port.guest().seen.len();
    let mut status = services.status();
    status.mark_unchanged();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!status.has_changed().unwrap(), "nothing changed, nobody is woken");
    // A ping in five seconds, eight questions a minute.
    let messages = port.guest().seen.len() - before;
    assert!((190..=210).contains(&messages), "{messages}");
}

#[tokio::test(start_paused = true)]
async fn the_hosts_facts_are_written_changed_and_written_again_after_a_boot() {
    let port = FakePort::new();
    let services = start(&port);
    services.tell(Some(host("db"))).unwrap();
    until(&services, |status| status.exchange == Exchange::Written(HOST_FILE)).await;
    let written = port.guest().files[HOST_FILE].clone();
    let value: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(value["host"]["name"], "node-1");
    assert_eq!(value["vm"]["name"], "web");
    assert_eq!(value["keys"]["role"], "db");
    assert_eq!(port.guest().directories, ["/run/muster"]);

    services.tell(Some(host("web"))).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let value: serde_json::Value = serde_json::from_str(&port.guest().files[HOST_FILE]).unwrap();
    assert_eq!(value["keys"]["role"], "web");
    assert_eq!(services.status().borrow().exchange, Exchange::Written(HOST_FILE));

    // A boot: /run is empty.
    port.guest().files.clear();
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert!(port.guest().files.contains_key(HOST_FILE));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_allows_less_still_gets_what_it_allows() {
    let port = FakePort::new();
    port.guest().blocked = vec!["guest-exec", "guest-get-users"];
    let services = start(&port);
    services.tell(Some(host("db"))).unwrap();
    until(&services, |status| status.exchange == Exchange::Written(HOST_FILE_FALLBACK)).await;
    let facts = services.status().borrow().facts.clone().unwrap();
    assert!(facts.users.is_empty() && facts.os.is_some());

    let port = FakePort::new();
    port.guest().blocked = vec!["guest-file-open"];
    let services = start(&port);
    services.tell(Some(host("db"))).unwrap();
    until(&services, |status| status.exchange == Exchange::Refused).await;
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Ok);
}

#[tokio::test(start_paused = true)]
async fn what_was_plugged_is_brought_online_and_counted() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.facts.as_ref().is_some_and(|facts| facts.memory.is_some()))
        .await;
    port.guest().processors.extend([false; 40]);
    port.guest().blocks.extend([false, false]);
    let parts = services.bring_online(PartKind::Processors).await.unwrap();
    assert_eq!(parts, Parts { online: 41, offline: 0, unit: 1 });
    let parts = services.bring_online(PartKind::Memory).await.unwrap();
    assert_eq!((parts.in_use() >> 20, parts.offline), (384, 0));
    // Nobody has to wait for the next look to see it.
    let facts = services.status().borrow().facts.clone().unwrap();
    assert_eq!((facts.processors.unwrap().online, facts.memory.unwrap().online), (41, 3));

    let parts = services.take_offline(39).await.unwrap();
    assert_eq!((parts.online, parts.offline), (39, 2));
    assert_eq!(port.guest().processors[38..], [true, false, false]);

    // A guest that refuses keeps what it has; one that stands is not asked.
    port.quirk("guest-set-vcpus", 1, Quirk::Error("GenericError"));
    let parts = services.bring_online(PartKind::Processors).await.unwrap();
    assert_eq!((parts.online, parts.offline), (39, 2));
    services.set_paused(true).unwrap();
    let paused = services.bring_online(PartKind::Processors).await;
    assert!(matches!(paused, Err(ServiceError::NoContact)), "{paused:?}");
    services.set_paused(false).unwrap();
    port.quirk("guest-get-vcpus", 1, Quirk::Returns(json!([{ "logical-id": "x" }])));
    assert!(services.bring_online(PartKind::Processors).await.is_err());
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_too_late_is_set_again() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    let late = json!(FixedClock.unix_nanos() - 3_000_000_000);
    port.quirk("guest-get-time", 1, Quirk::Returns(late.clone()));
    services.sync_time().await.unwrap();
    assert_eq!(port.count("guest-set-time"), 2);
    services.sync_time().await.unwrap();
    assert_eq!(port.count("guest-set-time"), 3);
    // A clock that cannot be held is not fought with, and a liar neither.
    for lie in [late, json!("noon"), json!(i64::MIN)] {
        port.quirk("guest-get-time", 9, Quirk::Returns(lie));
        services.sync_time().await.unwrap();
    }
    assert_eq!(port.count("guest-set-time"), 3 + 3 + 1 + 3);
}

#[tokio::test(start_paused = true)]
async fn each_service_has_its_switch() {
    let port = FakePort::new();
    let off = Services {
        shutdown: false,
        heartbeat: false,
        exchange: false,
        time_sync: false,
        backup: false,
    };
    let services = start_with(&port, off);
    services.tell(Some(host("db"))).unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(port.guest().seen.is_empty(), "an agent of which nothing is wanted is left alone");
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Off);
    for done in [services.shut_down().await, services.sync_time().await] {
        assert!(matches!(done, Err(ServiceError::Off(_))));
    }
    assert!(matches!(services.freeze().await, Err(ServiceError::Off("backup"))));

    services.configure(Services { heartbeat: true, ..off }).unwrap();
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    assert!(services.status().borrow().facts.is_none());
    services.configure(Services { exchange: true, ..off }).unwrap();
    until(&services, |status| status.exchange == Exchange::Written(HOST_FILE)).await;
    assert_eq!(services.status().borrow().heartbeat, Heartbeat::Off);
    services.configure(off).unwrap();
    until(&services, |status| status.facts.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_time_and_programs_are_asked_for() {
    let port = FakePort::new();
    let services = start(&port);
    assert!(matches!(services.shut_down().await, Err(ServiceError::NoContact)));
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    services.sync_time().await.unwrap();
    assert_eq!(port.guest().time, Some(1_800_000_000_000_000_000));
    let output = services.exec(ExecRequest::new("mkdir", &["-p", "/tmp/x"])).await.unwrap();
    assert_eq!((output.code, output.stdout.as_slice()), (Some(0), b"ok".as_slice()));
    services.shut_down().await.unwrap();
    assert_eq!(port.count("guest-shutdown"), 1);

    port.quirk("guest-shutdown", 1, Quirk::Error("GenericError"));
    let error = services.shut_down().await.unwrap_err();
    assert!(matches!(error, ServiceError::Agent(_)), "{error}");
    port.set_up(false);
    assert!(services.sync_time().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_copy_in_time_is_consistent_and_a_late_one_is_not_and_the_guest_runs_again() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    assert_eq!(services.freeze().await.unwrap().filesystems, 2);
    assert!(port.guest().frozen);
    assert_eq!(services.status().borrow().freeze, FreezeState::Frozen);
    assert!(matches!(services.freeze().await, Err(ServiceError::AlreadyFrozen)));
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(services.thaw().await.unwrap(), Consistency::Filesystem);
    assert!(!port.guest().frozen);

    services.freeze().await.unwrap();
    let held = until(&services, |status| status.freeze == FreezeState::Thawed).await;
    assert_eq!(held.as_secs(), 10);
    assert!(!port.guest().frozen);
    assert_eq!(services.thaw().await.unwrap(), Consistency::Crash);
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_with_a_freeze_the_guest_is_thawed() {
    let port = FakePort::new();
    let services = start(&port);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    // No answer to the freeze, which happened all the same.
    port.quirk("guest-fsfreeze-freeze", 1, Quirk::Silent);
    port.guest().frozen = true;
    services.freeze().await.unwrap_err();
    until(&services, |status| status.freeze == FreezeState::Thawed).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!port.guest().frozen);

    // Nothing there to freeze.
    port.quirk("guest-fsfreeze-freeze", 1, Quirk::Returns(json!(0)));
    assert!(matches!(services.freeze().await, Err(ServiceError::NothingToFreeze)));
    port.quirk("guest-fsfreeze-freeze", 1, Quirk::Returns(json!("two")));
    assert!(matches!(services.freeze().await, Err(ServiceError::Agent(_))));

    // The thaw fails some times.
    services.freeze().await.unwrap();
    port.quirk("guest-fsfreeze-thaw", 3, Quirk::Error("GenericError"));
    services.thaw().await.unwrap_err();
    assert_eq!(services.status().borrow().freeze, FreezeState::Thawing);
    until(&services, |status| status.freeze == FreezeState::Thawed).await;
    assert!(!port.guest().frozen);

    // The caller is gone, and then all handles are.
    let freezing = services.freeze();
    drop(freezing);
    services.freeze().await.unwrap();
    drop(services);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!port.guest().frozen);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_a_dead_daemon_left_frozen_is_thawed() {
    let port = FakePort::new();
    port.guest().frozen = true;
    let services = start(&port);
    until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!port.guest().frozen);
}

#[tokio::test(start_paused = true)]
async fn a_hostile_agent_keeps_its_heartbeat_and_costs_little() {
    let nonsense: [Quirk; 6] = [
        Quirk::Returns(json!(17)),
        Quirk::Returns(json!([{ "name": 1 }, [[[]]], null])),
        Quirk::Returns(json!({ "host-name": ["x"], "offset": 1e300, "id": {} })),
        Quirk::Error("GenericError"),
        Quirk::Bytes(b"{\"return\": [\n".to_vec()),
        Quirk::Endless(vec![b'['; 1 << 16]),
    ];
    for quirk in nonsense {
        let port = FakePort::new();
        for command in [
            "guest-get-osinfo",
            "guest-get-host-name",
            "guest-get-timezone",
            "guest-get-users",
            "guest-network-get-interfaces",
            "guest-get-fsinfo",
            "guest-file-open",
            "guest-fsfreeze-status",
        ] {
            port.quirk(command, u32::MAX, quirk.clone());
        }
        let services = start(&port);
        services.tell(Some(host("db"))).unwrap();
        until(&services, |status| status.heartbeat == Heartbeat::Ok).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let beat = services.status().borrow().heartbeat;
        assert!(matches!(beat, Heartbeat::Ok | Heartbeat::NoContact), "{quirk:?}: {beat:?}");
        let messages = port.guest().seen.len();
        assert!(messages < 600, "{quirk:?}: {messages} in ten minutes");
    }
}
