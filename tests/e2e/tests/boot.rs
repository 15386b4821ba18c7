//! Guests come up: firmware, device families, console, network, screen, facts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use api::model::Bytes;
use api::model::CloudInit;
use api::model::DeviceProfile;
use api::model::Firmware;
use api::types::Accelerator;
use api::types::VmCreateBody;
use e2e::GUEST;
use e2e::Host;
use e2e::eventually;
use e2e::tiny;

/// What `guestload answer` in the guest says to whoever connects from the host.
async fn answer(host: &Host, address: &str) -> String {
    let address = format!("{address}:7777").parse().unwrap();
    eventually("the guest can be reached from the host", GUEST, async || {
        let asked = host.netns().inside(move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        });
        tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn a_bios_guest_boots_tells_its_facts_and_is_reached_from_the_host() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.create(&tiny("alpha")).await;
    vm.start().await;
    let mut shell = vm.shell().await;
    vm.wait_heartbeat().await;
    let view = vm
        .wait("facts and the host's name arrive", |view| {
            view.guest.os.is_some() && view.guest.hostname.is_some()
        })
        .await;
    assert!(view.guest.os.unwrap().contains("Muster tiny guest"));
    assert!(view.guest.kernel.is_some() && view.guest.agent.is_some());
    let run = view.run.unwrap();
    assert!(!run.accelerator_reason.is_empty());
    assert!(matches!(run.accelerator, Accelerator::Kvm | Accelerator::Tcg));
    assert!(run.qemu.contains("10."), "{}", run.qemu);
    let address = vm.address().await;
    assert_eq!(view.nics[0].reserved_address.as_deref(), Some(address.as_str()));
    assert!(shell.run("ip -4 addr show").await.contains(&address));
    assert!(!answer(&host, &address).await.is_empty());
}

#[tokio::test]
async fn a_guest_finds_another_one_by_name() {
    let host = Host::start().await;
    host.import_tiny().await;
    let seeded = |name| VmCreateBody { cloud_init: Some(CloudInit::default()), ..tiny(name) };
    let first = host.boot(&seeded("first")).await;
    let address = first.address().await;
    let second = host.boot(&tiny("second")).await;
    second.address().await;
    let mut shell = second.shell().await;
    eventually("the name is known", GUEST, async || {
        let (code, said) =
            shell.try_run("nslookup first $(sed -n 's/^nameserver //p' /etc/resolv.conf)").await;
        (code == 0 && said.contains(&address)).then_some(())
    })
    .await;
    assert!(answer(&host, &address).await.starts_with("first "));
    shell.run(&format!("ping -c1 -W5 {address}")).await;
}

#[tokio::test]
async fn a_uefi_guest_boots() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host
        .boot(&VmCreateBody {
            firmware: Firmware::Uefi,
            memory: Some(Bytes::mib(256)),
            ..tiny("uefi")
        })
        .await;
    let mut shell = vm.shell().await;
    assert_eq!(shell.run("ls /sys/firmware/efi/fw_platform_size | wc -l").await, "1");
}

#[tokio::test]
async fn a_guest_without_virtio_drivers_boots_on_legacy_devices() {
    let host = Host::start().await;
    host.import_tiny().await;
    let body = VmCreateBody { profile: DeviceProfile::Legacy, ..tiny("old") };
    let vm = host.create(&body).await;
    vm.start().await;
    let mut shell = vm.shell().await;
    assert_eq!(shell.run("ls /sys/bus/virtio/devices 2>/dev/null | wc -l").await, "0");
    assert_eq!(shell.run("ls -d /sys/block/sda | wc -l").await, "1");
    vm.wait_heartbeat().await;
    vm.off().await;
}

#[tokio::test]
async fn host_name_and_ssh_key_reach_the_guest() {
    let host = Host::start().await;
    host.import_tiny().await;
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHj6mZ1cQ0aW5nC5rLr0iXbYw1n8Gf0kqkZ2oQm1Vd3r anna@desk";
    let seed = CloudInit {
        hostname: Some("web-1".parse().unwrap()),
        user: Some("anna".parse().unwrap()),
        ssh_keys: vec![key.to_owned()],
        ..CloudInit::default()
    };
    let vm = host.boot(&VmCreateBody { cloud_init: Some(seed), ..tiny("seeded") }).await;
    let mut shell = vm.shell().await;
    assert_eq!(shell.run("hostname").await, "web-1");
    assert_eq!(shell.run("cat /home/anna/.ssh/authorized_keys").await, key);
    vm.wait("the host name is shown", |view| view.guest.hostname.as_deref() == Some("web-1")).await;
}
