//! Real packets: guests get leases, resolve names, reach each other, the host and the outside, and
//! cannot pretend to be somebody else.
//!
//! ```text
//!   vm1 eth0 == tap --+                              +-- outside 198.51.100.2
//!                     +-- bridge 10.77.0.1 -- host --+   (does not know 10.77.0.0/24)
//!   vm2 eth0 == tap --+                  198.51.100.1
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use dhcproto::Decodable;
use dhcproto::Decoder;
use dhcproto::Encodable;
use dhcproto::Encoder;
use dhcproto::v4::DhcpOption;
use dhcproto::v4::Message;
use dhcproto::v4::MessageType;
use hickory_proto::op::Query;
use hickory_proto::rr::RecordType;
use switch::AddressSource;
use switch::Desired;
use switch::Host;
use switch::InstanceTag;
use switch::LinuxHost;
use switch::SeenAddress;
use switch::Switch;
use switch::SwitchConfig;

use crate::bridged;
use crate::frame;
use crate::nat;
use crate::nic;
use crate::ns::DEADLINE;
use crate::ns::Guest;
use crate::ns::Ns;
use crate::ns::call_in;
use crate::ns::run_in;
use crate::ns::wait_for;
use crate::port;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const VM1: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
const VM2: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 6);
const MAC1: &str = "52:54:00:00:00:01";
const MAC2: &str = "52:54:00:00:00:02";
const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// What the resolver outside answers to every question.
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// What udhcpc runs when it has a lease: configure the card, write down what was offered.
const LEASE_SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" broadcast "$broadcast" dev "$interface"
ip route replace default via "$router"
env > "$LEASE_FILE"
"#;

fn start(resolv_conf: PathBuf) -> (Arc<LinuxHost>, Switch) {
    let host = Arc::new(LinuxHost::new().unwrap());
    let config = SwitchConfig { tag: InstanceTag::new("test").unwrap(), resolv_conf };
    let switch = Switch::start(config, Arc::clone(&host) as Arc<dyn Host>);
    (host, switch)
}

fn two_vms() -> Desired {
    Desired {
        networks: vec![nat(1, "10.77.0.0/24")],
        ports: vec![port(1, 1, Some(VM1)), port(2, 1, Some(VM2))],
    }
}

async fn apply(switch: &Switch, desired: Desired) {
    let report = switch.apply(desired).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

async fn plug(switch: &Switch, n: u8, mac: &'static str) -> Guest {
    let tap = switch.open_port(nic(n.into())).await.unwrap();
    tokio::task::spawn_blocking(move || Guest::plug(tap, mac)).await.unwrap()
}

/// The namespace outside, joined to the host's; without a route back to the guests.
fn outside_of(host: &Ns) -> Arc<Ns> {
    let outside = Ns::new();
    host.run(&format!(
        "ip link add uplink type veth peer name eth0 netns {} && ip link set uplink up && \
         ip addr add {HOST_OUTSIDE}/24 dev uplink && ip route add default via {OUTSIDE}",
        outside.path()
    ));
    outside.run(&format!("ip link set eth0 up && ip addr add {OUTSIDE}/24 dev eth0"));
    outside
}

/// A resolver that knows one answer, by UDP and TCP. Its threads end with the test's process.
fn resolver(ns: &Ns) {
    let udp = ns.enter(|| UdpSocket::bind((OUTSIDE, 53)).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 2_000];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&world_reply(&buffer[..length]), from);
        }
    });
    let tcp = ns.enter(|| TcpListener::bind((OUTSIDE, 53)).unwrap());
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            let reply = world_reply(&question);
            let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
            stream.write_all(&[length.as_slice(), &reply].concat()).unwrap();
        }
    });
}

fn world_reply(question: &[u8]) -> Vec<u8> {
    let request = hickory_proto::op::Message::from_vec(question).unwrap();
    let query: Query = request.queries[0].clone();
    let mut reply =
        hickory_proto::op::Message::response(request.metadata.id, request.metadata.op_code);
    reply.add_query(query.clone());
    if query.query_type() == RecordType::A {
        let address = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A(WORLD));
        reply.add_answer(hickory_proto::rr::Record::from_rdata(query.name().clone(), 60, address));
    }
    reply.to_vec().unwrap()
}

/// Runs a real DHCP client in the guest. `None`: it got no lease.
async fn lease(guest: &Guest, folder: &Path, tries: u8) -> Option<BTreeMap<String, String>> {
    use std::os::unix::fs::PermissionsExt;
    let (script, file) = (folder.join("script"), folder.join("lease"));
    let _ = std::fs::remove_file(&file);
    std::fs::write(&script, LEASE_SCRIPT).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let client = format!(
        "LEASE_FILE={} busybox udhcpc -i eth0 -f -q -n -t {tries} -T 1 -O mtu -O broadcast -s {}",
        file.display(),
        script.display()
    );
    let (good, said) = run_in(&guest.ns, &client).await;
    if !good {
        assert!(said.contains("no lease"), "{said}");
        return None;
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    Some(text.lines().filter_map(pair).collect())
}

async fn must(ns: &Arc<Ns>, command: &str) -> String {
    let (good, said) = run_in(ns, command).await;
    assert!(good, "{command}: {said}");
    said
}

#[test]
fn guests_get_leases_names_and_a_way_out() {
    let host_ns = Ns::new();
    let outside = outside_of(&host_ns);
    resolver(&outside);
    let folder = tempfile::tempdir().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {OUTSIDE}\n")).unwrap();
    let ns = Arc::clone(&host_ns);
    host_ns.block_on(async move || {
        let (_, switch) = start(resolv_conf.clone());
        apply(&switch, two_vms()).await;
        let vm1 = plug(&switch, 1, MAC1).await;
        let vm2 = plug(&switch, 2, MAC2).await;

        let got = lease(&vm1, folder.path(), 10).await.unwrap();
        let expected = [
            ("ip", "10.77.0.5"),
            ("mask", "24"),
            ("router", "10.77.0.1"),
            ("dns", "10.77.0.1"),
            ("serverid", "10.77.0.1"),
            ("domain", "muster.internal"),
            ("hostname", "vm1"),
            ("mtu", "1500"),
            ("lease", "3600"),
        ];
        for (key, value) in expected {
            assert_eq!(got.get(key).map(String::as_str), Some(value), "{key}: {got:?}");
        }
        assert_eq!(lease(&vm2, folder.path(), 10).await.unwrap()["ip"], "10.77.0.6");
        must(&vm1.ns, &format!("busybox ping -c 1 -W 10 {GATEWAY}")).await;
        must(&vm1.ns, &format!("busybox ping -c 1 -W 10 {VM2}")).await;
        must(&ns, &format!("busybox ping -c 1 -W 10 {VM1}")).await;

        names_resolve(&vm1).await;
        a_renewal_is_answered(&vm1).await;
        the_way_out_is_one_way(&vm1, &outside).await;
        the_resolvers_file_is_read_again(&vm1, &resolv_conf).await;

        let seen = switch.observe().await.unwrap();
        let vm1_seen = &seen[0];
        assert_eq!(vm1_seen.addresses[0].address, IpAddr::V4(VM1));
        assert_eq!(vm1_seen.addresses[0].source, AddressSource::Lease);
        assert!(vm1_seen.counters.tx_bytes > 0 && vm1_seen.counters.rx_bytes > 0);
        drop((vm1, vm2));
        assert!(switch.observe().await.unwrap()[0].addresses.is_empty(), "a machine that is off");
        assert!(switch.remove_all().await.unwrap().is_clean());
    });
}

async fn names_resolve(vm1: &Guest) {
    let ask = |name: &str| format!("busybox nslookup {name} {GATEWAY}");
    for (name, answer) in [
        ("vm2.muster.internal", "10.77.0.6"),
        ("VM2.Muster.Internal", "10.77.0.6"),
        ("10.77.0.6", "vm2.muster.internal"),
        ("www.example.org", "203.0.113.7"),
    ] {
        let said = must(&vm1.ns, &ask(name)).await;
        assert!(said.contains(answer), "{name}: {said}");
    }
    for name in ["vm3.muster.internal", "10.77.0.99"] {
        let (good, said) = run_in(&vm1.ns, &ask(name)).await;
        assert!(!good && said.contains("NXDOMAIN"), "{name}: {said}");
    }
    for (name, address) in [("vm2", VM2), ("www.example.org", WORLD)] {
        let reply = call_in(&vm1.ns, move || ask_by_tcp(name)).await;
        assert!(reply.windows(4).any(|window| window == address.octets()), "{name}: {reply:?}");
    }
}

fn ask_by_tcp(name: &str) -> Vec<u8> {
    let name = hickory_proto::rr::Name::from_ascii(format!("{name}.")).unwrap();
    let mut question = hickory_proto::op::Message::new(
        7,
        hickory_proto::op::MessageType::Query,
        hickory_proto::op::OpCode::Query,
    );
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, RecordType::A));
    let question = question.to_vec().unwrap();
    let mut stream = TcpStream::connect((GATEWAY, 53)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    stream.write_all(&[length.as_slice(), &question].concat()).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    let mut reply = vec![0; 2_000];
    let length = stream.read(&mut reply).unwrap();
    reply.truncate(length);
    reply
}

/// A client that has its address asks the server itself, and is answered there.
async fn a_renewal_is_answered(vm1: &Guest) {
    let kind = call_in(&vm1.ns, || {
        let socket = UdpSocket::bind((VM1, 68)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut request = Message::default();
        request.set_chaddr(&[0x52, 0x54, 0, 0, 0, 1]).set_ciaddr(VM1);
        request.opts_mut().insert(DhcpOption::MessageType(MessageType::Request));
        let mut bytes = Vec::new();
        request.encode(&mut Encoder::new(&mut bytes)).unwrap();
        socket.send_to(&bytes, (GATEWAY, 67)).unwrap();
        let mut reply = [0; 1_500];
        let (length, from) = socket.recv_from(&mut reply).unwrap();
        assert_eq!(from.ip(), IpAddr::V4(GATEWAY));
        Message::decode(&mut Decoder::new(&reply[..length])).unwrap().opts().msg_type()
    });
    assert_eq!(kind.await, Some(MessageType::Ack));
}

async fn the_way_out_is_one_way(vm1: &Guest, outside: &Arc<Ns>) {
    let listener = call_in(outside, || TcpListener::bind((OUTSIDE, 7777)).unwrap()).await;
    let server = thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        from.ip()
    });
    let said = call_in(&vm1.ns, || {
        let mut stream = TcpStream::connect_timeout(&(OUTSIDE, 7777).into(), DEADLINE).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    });
    assert_eq!(said.await, "hello");
    assert_eq!(server.join().unwrap(), IpAddr::V4(HOST_OUTSIDE), "seen as the host");

    // Somebody outside who knows the way still does not get in, and cannot use our resolver.
    must(outside, &format!("ip route add 10.77.0.0/24 via {HOST_OUTSIDE}")).await;
    must(outside, &format!("busybox ping -c 1 -W 10 {HOST_OUTSIDE}")).await;
    let (reached, said) = run_in(outside, &format!("busybox ping -c 1 -W 1 {VM1}")).await;
    assert!(!reached, "{said}");
    let ask = format!("busybox timeout 2 busybox nslookup vm1.muster.internal {GATEWAY}");
    let (_, said) = run_in(outside, &ask).await;
    assert!(!said.contains("10.77.0.5"), "an open resolver: {said}");
}

async fn the_resolvers_file_is_read_again(vm1: &Guest, file: &Path) {
    let ask = format!("busybox nslookup www.example.org {GATEWAY}");
    std::fs::write(file, "# nobody\n").unwrap();
    let (_, said) = run_in(&vm1.ns, &ask).await;
    assert!(said.contains("SERVFAIL"), "{said}");
    std::fs::write(file, format!("# somebody\nnameserver {OUTSIDE}\n")).unwrap();
    must(&vm1.ns, &ask).await;
}

#[test]
fn a_stranger_gets_no_lease_and_a_reserved_guest_gets_it_later() {
    let host_ns = Ns::new();
    let folder = tempfile::tempdir().unwrap();
    host_ns.block_on(async move || {
        let (_, switch) = start(folder.path().join("resolv.conf"));
        let mut desired = two_vms();
        desired.ports[0].address = None;
        apply(&switch, desired).await;
        let vm1 = plug(&switch, 1, MAC1).await;
        assert_eq!(lease(&vm1, folder.path(), 2).await, None);
        // The reservation comes while the machine runs.
        apply(&switch, two_vms()).await;
        assert_eq!(lease(&vm1, folder.path(), 10).await.unwrap()["ip"], "10.77.0.5");

        // A restarted daemon serves again; the old one's sockets go with its task.
        drop(switch);
        let (_, switch) = start(folder.path().join("resolv.conf"));
        let end = std::time::Instant::now() + DEADLINE;
        while !switch.apply(two_vms()).await.unwrap().is_clean() {
            assert!(std::time::Instant::now() < end, "DHCP and DNS did not come back");
        }
        must(&vm1.ns, "ip addr flush dev eth0").await;
        assert_eq!(lease(&vm1, folder.path(), 10).await.unwrap()["ip"], "10.77.0.5");
    });
}

#[test]
fn a_guest_cannot_pretend_to_be_another() {
    let host_ns = Ns::new();
    host_ns.block_on(async || {
        let (_, switch) = start(PathBuf::from("/nonexistent"));
        apply(&switch, two_vms()).await;
        let vm1 = plug(&switch, 1, MAC1).await;
        let vm2 = plug(&switch, 2, MAC2).await;
        let (mac1, mac2) = ([0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]);
        let udp = |source, ports, text: &[u8]| frame::udp(source, Ipv4Addr::BROADCAST, ports, text);
        let forged = [
            ("another's MAC", frame::ethernet(mac2, 0x0800, &udp(VM1, (9, 9), b"forged-1"))),
            ("another's IP", frame::ethernet(mac1, 0x0800, &udp(VM2, (9, 9), b"forged-2"))),
            ("no IP", frame::ethernet(mac1, 0x0800, &udp([0; 4].into(), (9, 9), b"forged-3"))),
            ("ARP for another", frame::ethernet(mac1, 0x0806, &frame::arp(mac1, VM2, "forged-4"))),
            ("ARP by another", frame::ethernet(mac1, 0x0806, &frame::arp(mac2, VM1, "forged-5"))),
            ("DHCP reply", frame::ethernet(mac1, 0x0800, &udp(VM1, (67, 68), b"forged-6"))),
            ("VLAN tag", frame::tagged(mac1, 7, 0x0800, &udp(VM2, (9, 9), b"forged-7"))),
            ("IPv6", frame::ethernet(mac1, 0x86dd, &frame::router_advertisement("forged-8"))),
            ("gateway's IP", frame::ethernet(mac1, 0x0800, &udp(GATEWAY, (53, 53), b"forged-9"))),
            ("spanning tree", frame::ethernet(mac1, 0x0026, b"forged-0")),
            (
                "DHCP request for another",
                frame::ethernet(
                    mac1,
                    0x0800,
                    &udp([0; 4].into(), (68, 67), &frame::bootp(mac2, "forged-a")),
                ),
            ),
        ];
        for (_, frame) in &forged {
            vm1.inject(frame);
        }
        vm1.inject(&frame::ethernet(mac1, 0x0806, &frame::arp(mac1, VM1, "honest-arp")));
        vm1.inject(&frame::ethernet(mac1, 0x0800, &udp(VM1, (9, 9), b"honest-udp")));
        wait_for("the honest frames", || {
            vm2.has_received(b"honest-arp") && vm2.has_received(b"honest-udp")
        })
        .await;
        for (what, frame) in &forged {
            let mark = &frame[frame.windows(7).position(|w| w == b"forged-").unwrap()..][..8];
            assert!(!vm2.has_received(mark), "{what} passed");
        }
        let seen = switch.observe().await.unwrap().remove(0).addresses;
        let announced = SeenAddress { address: VM1.into(), source: AddressSource::Announced };
        assert_eq!(seen, [announced], "only what is true is noted");
    });
}

#[test]
fn a_tap_without_rules_is_mute() {
    let host_ns = Ns::new();
    let ns = Arc::clone(&host_ns);
    host_ns.block_on(async move || {
        let (host, switch) = start(PathBuf::from("/nonexistent"));
        apply(&switch, two_vms()).await;
        let vm2 = plug(&switch, 2, MAC2).await;
        let tag = InstanceTag::new("test").unwrap();
        let (stray, bridge) = (tag.tap(nic(9)), tag.bridge(crate::network(1)));
        let tap = host.open_tap(&stray).await.unwrap();
        must(&ns, &format!("ip link set {stray} master {bridge} up")).await;
        let stray = tokio::task::spawn_blocking(|| Guest::plug(tap, MAC1)).await.unwrap();
        let packet = |text| frame::udp(VM1, Ipv4Addr::BROADCAST, (9, 9), text);
        let mac1 = [0x52, 0x54, 0, 0, 0, 1];
        stray.inject(&frame::ethernet(mac1, 0x0800, &packet("stray")));
        let vm1 = plug(&switch, 1, MAC1).await;
        vm1.inject(&frame::ethernet(mac1, 0x0800, &packet("known")));
        wait_for("the known port's frame", || vm2.has_received(b"known")).await;
        assert!(!vm2.has_received(b"stray"));
    });
}

#[test]
fn a_bridged_guest_stands_in_the_hosts_own_network() {
    let host_ns = Ns::new();
    let lan = Ns::new();
    host_ns.run(&format!(
        "ip link add br0 type bridge && ip link set br0 up && \
         ip link add cable type veth peer name eth0 netns {} && \
         ip link set cable master br0 up",
        lan.path()
    ));
    lan.run("ip link set eth0 up && ip addr add 192.0.2.1/24 dev eth0");
    host_ns.block_on(async move || {
        let (_, switch) = start(PathBuf::from("/nonexistent"));
        let desired = Desired {
            networks: vec![bridged(1, "br0")],
            ports: vec![port(1, 1, None), port(2, 1, None)],
        };
        apply(&switch, desired).await;
        let vm1 = plug(&switch, 1, MAC1).await;
        let vm2 = plug(&switch, 2, MAC2).await;
        must(&vm1.ns, "ip addr add 192.0.2.5/24 dev eth0").await;
        must(&vm1.ns, "busybox ping -c 1 -W 10 192.0.2.1").await;

        let mac1 = [0x52, 0x54, 0, 0, 0, 1];
        let v6 = |packet: Vec<u8>| frame::ethernet(mac1, 0x86dd, &packet);
        vm1.inject(&v6(frame::router_advertisement("rogue-router")));
        vm1.inject(&v6(frame::dhcpv6_reply("rogue-dhcpv6")));
        vm1.inject(&v6(frame::neighbour_solicitation("honest-ipv6")));
        wait_for("honest IPv6", || vm2.has_received(b"honest-ipv6")).await;
        assert!(!vm2.has_received(b"rogue-router") && !vm2.has_received(b"rogue-dhcpv6"));

        let seen = switch.observe().await.unwrap().remove(0).addresses;
        let v6: IpAddr = "fe80::5054:ff:fe00:1".parse().unwrap();
        for address in [IpAddr::from([192, 0, 2, 5]), v6] {
            let announced = SeenAddress { address, source: AddressSource::Announced };
            assert!(seen.contains(&announced), "{seen:?}");
        }

        must(&vm1.ns, "ip link set eth0 address 52:54:00:66:66:66").await;
        let (reached, said) = run_in(&vm1.ns, "busybox ping -c 1 -W 1 192.0.2.1").await;
        assert!(!reached, "a forged MAC passed: {said}");
    });
}
