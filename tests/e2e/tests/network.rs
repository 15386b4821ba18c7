//! Guests and the world: out through address translation, and in the host's own network by a
//! bridge.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::NetworkKind;
use api::types::NetworkCreateBody;
use api::types::NicAddBody;
use api::types::VmCreateBody;
use e2e::GUEST;
use e2e::Host;
use e2e::Netns;
use e2e::OWN;
use e2e::eventually;
use e2e::failure;
use e2e::tiny;

/// How long servers of a test wait between two looks whether they are still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// The address that a guest on the bridge is lent, and who lends it.
const LENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const LENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A server on a thread of its own, ended with the test.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(place: &Netns, serve: impl Fn(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        Self { stop, thread: Some(place.inside(move || serve(&seen))) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A failure shows in the test itself: nobody got an answer.
            let _ = thread.join();
        }
    }
}

/// Tells everybody who connects which address they come from.
fn mirror(stop: &AtomicBool) {
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, from)) => {
                let _ = writeln!(stream, "you are {}", from.ip());
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// A DHCP server with one address, for whoever asks.
fn lend(stop: &AtomicBool) {
    const REPLY: u8 = 2;
    const MAGIC: [u8; 4] = [99, 130, 83, 99];
    const DISCOVER: u8 = 1;
    const OFFER: u8 = 2;
    const ACK: u8 = 5;
    let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let mut question = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut question) else { continue };
        if length < 243 || question[236..240] != MAGIC {
            continue;
        }
        // The first option of every client that we know is the kind of the message.
        let kind = if question[242] == DISCOVER { OFFER } else { ACK };
        let mut answer = question[..236].to_vec();
        answer[0] = REPLY;
        answer[16..20].copy_from_slice(&LENT.octets());
        answer[20..24].copy_from_slice(&LENDER.octets());
        answer.extend(MAGIC);
        answer.extend([53, 1, kind, 51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0, 54, 4]);
        answer.extend(LENDER.octets());
        answer.extend([3, 4]);
        answer.extend(LENDER.octets());
        answer.push(255);
        answer.resize(300, 0);
        let _ = socket.send_to(&answer, "192.0.2.255:68");
    }
}

/// What the guest says to whoever connects, from a place in some network.
async fn answer(place: &Netns, address: Ipv4Addr) -> String {
    eventually("the guest answers on TCP", GUEST, async || {
        let asked = place.inside(move || {
            let address = SocketAddr::from((address, 7777));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text).filter(|text| !text.is_empty())
        });
        tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn a_guest_reaches_the_world_and_the_world_does_not_see_its_address() {
    let host = Host::start().await;
    let world = host.world();
    host.netns().sh("ip address add 198.51.100.1/24 dev wan0");
    world.sh("ip address add 198.51.100.2/24 dev eth0");
    let _mirror = Server::new(&world, mirror);
    host.import_tiny().await;
    let vm = host.boot(&tiny("out")).await;
    let address: Ipv4Addr = vm.address().await.parse().unwrap();
    let mut shell = vm.shell().await;
    eventually("the world answers a ping", GUEST, async || {
        (shell.try_run("ping -c1 -W5 198.51.100.2").await.0 == 0).then_some(())
    })
    .await;
    let said = shell.run("nc -w 20 198.51.100.2 8080 </dev/null").await;
    assert_eq!(said, "you are 198.51.100.1");
    // The host reaches the guest; the world knows no way to it.
    assert!(answer(host.netns(), address).await.starts_with("tiny "));
    assert!(!world.says_yes("ip", &["route", "get", &address.to_string()]));
    // The host's name service answers for guests.
    let server = shell.run("sed -n 's/^nameserver //p' /etc/resolv.conf").await;
    eventually("the guest finds itself by name", GUEST, async || {
        let (code, said) = shell.try_run(&format!("nslookup out {server}")).await;
        (code == 0 && said.contains(&address.to_string())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_bridged_guest_is_a_member_of_the_hosts_network() {
    let host = Host::start().await;
    let world = host.world();
    host.netns().sh("ip link add br0 type bridge");
    host.netns().sh("ip link set br0 up");
    host.netns().sh("ip link set wan0 master br0");
    world.sh(&format!("ip address add {LENDER}/24 dev eth0"));
    let _lender = Server::new(&world, lend);
    host.import_tiny().await;
    let kind = NetworkKind::Bridge { bridge: "br0".to_owned() };
    let body = NetworkCreateBody { name: "lan".parse().unwrap(), kind };
    host.client().send::<ep::NetworkCreate>(&[], &body).await.unwrap();
    let nic = NicAddBody { network: Some("lan".parse().unwrap()), ..NicAddBody::default() };
    let vm = host.boot(&VmCreateBody { nics: vec![nic], ..tiny("member") }).await;
    let links = host.netns().links();
    // The address comes from the network's own server, and is known by the agent.
    assert_eq!(vm.address().await, LENT.to_string());
    assert_eq!(vm.show().await.nics[0].reserved_address, None);
    assert!(answer(&world, LENT).await.starts_with("tiny "));
    let mut shell = vm.shell().await;
    shell.run(&format!("ping -c1 -W5 {LENDER}")).await;
    // It may only speak with its own Ethernet address.
    shell.run("ip link set eth0 address 52:54:00:99:99:99").await;
    let (code, _) = shell.try_run(&format!("ping -c1 -W2 {LENDER}")).await;
    assert_ne!(code, 0, "a forged Ethernet address got through");

    let error = host.client().get::<ep::NetworkDelete>(&["lan"]).await.unwrap_err();
    assert!(!error.hint.is_empty(), "{error:?}");
    vm.off().await;
    eventually("its port is gone, the bridge is not", OWN, async || {
        let now = host.netns().links();
        (now.len() == links.len() - 1 && now.contains(&"br0".to_owned())).then_some(())
    })
    .await;
    vm.purge().await;
    host.client().call::<ep::NetworkDelete>(&["lan"], &Nothing {}, &Nothing {}).await.unwrap();
    assert!(host.netns().links().contains(&"br0".to_owned()), "the bridge is the host's");
}

#[tokio::test]
async fn a_bridge_that_is_not_there_is_named_and_waited_for() {
    let host = Host::start().await;
    host.import_tiny().await;
    let kind = NetworkKind::Bridge { bridge: "br9".to_owned() };
    let body = NetworkCreateBody { name: "lan".parse().unwrap(), kind };
    host.client().send::<ep::NetworkCreate>(&[], &body).await.unwrap();
    let nic = NicAddBody { network: Some("lan".parse().unwrap()), ..NicAddBody::default() };
    let vm = host.create(&VmCreateBody { nics: vec![nic], ..tiny("alone") }).await;
    let op = vm.try_verb::<ep::VmStart>().await.unwrap();
    assert!(failure(&op).message.contains("br9"), "{op:?}");
    assert!(host.traces().processes.is_empty());
    host.netns().sh("ip link add br9 type bridge");
    host.netns().sh("ip link set br9 up");
    vm.start().await;
    vm.off().await;
}
