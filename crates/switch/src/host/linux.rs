//! The real host: rtnetlink for devices, addresses and routes, nft for rules, /proc for settings.
//!
//! Everything happens in the network namespace of the thread that makes and drives this value.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use futures::TryStreamExt;
use model::MacAddr;
use rtnetlink::Handle;
use rtnetlink::LinkBridge;
use rtnetlink::LinkUnspec;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::link::LinkInfo;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourAddress;
use rtnetlink::packet_route::neighbour::NeighbourAttribute;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteAddress;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::route::RouteHeader;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::route::RouteType;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;
use tokio::net::TcpListener;
use tokio::net::UdpSocket;

use crate::action::Action;
use crate::host::Announced;
use crate::host::DnsSockets;
use crate::host::Host;
use crate::host::HostError;
use crate::host::Neighbour;
use crate::host::ServiceSockets;
use crate::host::nft;
use crate::host::nft::Tables;
use crate::host::tun;
use crate::plan::Actual;
use crate::plan::Counters;
use crate::plan::HostRoute;
use crate::plan::Link;
use crate::plan::LinkKind;
use crate::rules;
use crate::rules::RulesId;
use crate::tag::InstanceTag;
use crate::tag::LinkName;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const DHCP_SERVER_PORT: u16 = 67;
const DNS_PORT: u16 = 53;
/// Connections waiting to be accepted by our DNS; more than the resolver serves at once.
const DNS_BACKLOG: i32 = 64;

/// The kernel of this network namespace.
pub struct LinuxHost {
    netlink: Handle,
}

impl LinuxHost {
    /// Opens the netlink socket. Must be called inside a tokio runtime.
    pub fn new() -> Result<Self, HostError> {
        let (connection, netlink, _) = rtnetlink::new_connection()
            .map_err(|source| HostError::Setting { path: "a netlink socket".to_owned(), source })?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    async fn links(
        &self,
        tag: &InstanceTag,
    ) -> Result<(BTreeMap<u32, LinkName>, BTreeMap<LinkName, Link>), HostError> {
        let failed = |error| netlink("list the devices", error);
        let messages: Vec<LinkMessage> =
            self.netlink.link().get().execute().try_collect().await.map_err(failed)?;
        let names: BTreeMap<u32, LinkName> =
            messages.iter().filter_map(|m| Some((m.header.index, link_name(m)?))).collect();
        let ours = [tag.tap_prefix(), tag.bridge_prefix()];
        let mut links = BTreeMap::new();
        for message in &messages {
            let Some(name) = names.get(&message.header.index) else { continue };
            let is_ours = ours.iter().any(|prefix| name.as_str().starts_with(prefix));
            let ipv6 = is_ours && speaks_ipv6(name);
            links.insert(name.clone(), link(message, &names, ipv6));
        }
        Ok((names, links))
    }

    async fn index(&self, name: &LinkName) -> Result<u32, HostError> {
        let found: Result<Vec<LinkMessage>, _> =
            self.netlink.link().get().match_name(name.to_string()).execute().try_collect().await;
        match found {
            Ok(messages) => {
                messages.first().map(|m| m.header.index).ok_or(HostError::NoLink(name.clone()))
            }
            Err(error) if is_no_device(&error) => Err(HostError::NoLink(name.clone())),
            Err(error) => Err(netlink("look up a device", error)),
        }
    }

    async fn change(
        &self,
        name: &LinkName,
        what: &str,
        build: impl FnOnce(LinkBuilder) -> LinkBuilder + Send,
    ) -> Result<(), HostError> {
        let index = self.index(name).await?;
        let message = build(LinkUnspec::new_with_index(index)).build();
        let done = self.netlink.link().set(message).execute().await;
        done.map_err(|error| gone_or(name, &format!("{what} {name}"), error))
    }

    async fn create_bridge(
        &self,
        name: &LinkName,
        mac: [u8; 6],
        alias: &str,
    ) -> Result<(), HostError> {
        let message = LinkBridge::new(name.as_str()).address(mac.to_vec()).build();
        let what = format!("make the bridge {name}");
        let done = self.netlink.link().add(message).execute().await;
        done.map_err(|error| netlink(&what, error))?;
        // The alias helps people only; a kernel that refuses it is no reason to stop.
        let _ = self.change(name, "name", |link| link.alias(alias)).await;
        Ok(())
    }

    async fn remove_address(
        &self,
        link: &LinkName,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), HostError> {
        let index = self.index(link).await?;
        let what = format!("remove {address}/{prefix} from {link}");
        let mut found =
            Box::pin(self.netlink.address().get().set_link_index_filter(index).execute());
        while let Some(message) = found.try_next().await.map_err(|error| netlink(&what, error))? {
            if message.header.prefix_len == prefix && ipv4_of(&message.attributes) == Some(address)
            {
                let done = self.netlink.address().del(message).execute().await;
                done.map_err(|error| netlink(&what, error))?;
            }
        }
        Ok(())
    }
}

type LinkBuilder = rtnetlink::LinkMessageBuilder<LinkUnspec>;

#[async_trait]
impl Host for LinuxHost {
    async fn observe(
        &self,
        tag: &InstanceTag,
        expected: Option<&RulesId>,
    ) -> Result<Actual, HostError> {
        let (names, mut links) = self.links(tag).await?;
        let mut addresses = Box::pin(self.netlink.address().get().execute());
        let failed = |error| netlink("list the addresses", error);
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            let name = names.get(&message.header.index);
            if let Some(link) = name.and_then(|name| links.get_mut(name))
                && let Some(address) = ipv4_of(&message.attributes)
            {
                link.addresses.push((address, message.header.prefix_len));
            }
        }
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> = self
            .netlink
            .route()
            .get(filter)
            .execute()
            .try_collect()
            .await
            .map_err(|error| netlink("list the routes", error))?;
        let routes = routes.iter().filter_map(|message| host_route(message, &names)).collect();
        let Tables { rules, tables, learning } = match expected {
            Some(rules) if nft::is_loaded(tag, rules).await? => {
                Tables { rules: Some(rules.clone()), tables: true, learning: true }
            }
            _ => nft::observe(tag).await?,
        };
        let forwarding = read_setting(IP_FORWARD)?.trim() == "1";
        Ok(Actual { links, rules, tables, learning, forwarding, routes })
    }

    async fn perform(&self, tag: &InstanceTag, action: &Action) -> Result<(), HostError> {
        match action {
            Action::DeleteLink(name) => {
                let index = self.index(name).await?;
                let done = self.netlink.link().del(index).execute().await;
                done.map_err(|error| gone_or(name, &format!("delete {name}"), error))
            }
            Action::CreateBridge { name, mac, alias } => {
                self.create_bridge(name, *mac, alias).await
            }
            Action::SilenceIpv6(name) => silence_ipv6(name),
            Action::SetMtu { link, mtu } => {
                self.change(link, "set the MTU of", |link| link.mtu(*mtu)).await
            }
            Action::AddAddress { link, address, prefix } => {
                let index = self.index(link).await?;
                let address = IpAddr::V4(*address);
                let done = self.netlink.address().add(index, address, *prefix).execute().await;
                done.map_err(|error| netlink(&format!("give {address}/{prefix} to {link}"), error))
            }
            Action::RemoveAddress { link, address, prefix } => {
                self.remove_address(link, *address, *prefix).await
            }
            Action::LoadRules(ruleset) => nft::load(&ruleset.json).await,
            Action::LearnAddresses => nft::load(&rules::learning(tag)).await,
            Action::RemoveRules => nft::load(&rules::removal(tag)).await,
            Action::EnableForwarding => write_setting(IP_FORWARD, "1"),
            Action::SetUp(name) => self.change(name, "set up", LinkBuilder::up).await,
            Action::Attach { tap, bridge } => {
                let controller = self.index(bridge).await?;
                self.change(tap, "attach", |link| link.controller(controller)).await
            }
        }
    }

    async fn open_tap(&self, name: &LinkName) -> Result<OwnedFd, HostError> {
        tun::open_tap(name)
    }

    async fn neighbours(&self) -> Result<Vec<Neighbour>, HostError> {
        let messages: Vec<NeighbourMessage> = self
            .netlink
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| netlink("list the neighbours", error))?;
        Ok(messages.iter().filter_map(neighbour).collect())
    }

    async fn announced(&self, tag: &InstanceTag) -> Result<Vec<Announced>, HostError> {
        nft::announced(tag).await
    }

    async fn serve(
        &self,
        bridge: &LinkName,
        gateway: Ipv4Addr,
    ) -> Result<ServiceSockets, HostError> {
        let failed = |what: &'static str, port: u16| {
            move |source: io::Error| HostError::Port { what, bridge: bridge.clone(), port, source }
        };
        Ok(ServiceSockets {
            dhcp: dhcp_socket(bridge).map_err(failed("DHCP", DHCP_SERVER_PORT))?,
            dns: dns_sockets(gateway).map_err(failed("DNS", DNS_PORT)),
        })
    }
}

/// Bound to the bridge first: then other DHCP servers on other devices are no conflict.
fn dhcp_socket(bridge: &LinkName) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(bridge.as_str().as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DHCP_SERVER_PORT).into())?;
    UdpSocket::from_std(socket.into())
}

fn dns_sockets(gateway: Ipv4Addr) -> io::Result<DnsSockets> {
    Ok(DnsSockets { udp: dns_udp(gateway)?, tcp: dns_tcp(gateway)? })
}

fn dns_udp(gateway: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(gateway, DNS_PORT).into())?;
    UdpSocket::from_std(socket.into())
}

fn dns_tcp(gateway: Ipv4Addr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // A restarted daemon finds old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(gateway, DNS_PORT).into())?;
    socket.listen(DNS_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn link_name(message: &LinkMessage) -> Option<LinkName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(LinkName::new(name.as_str())),
        _ => None,
    })
}

fn link(message: &LinkMessage, names: &BTreeMap<u32, LinkName>, ipv6: bool) -> Link {
    let mut link = Link {
        index: message.header.index,
        kind: LinkKind::Other,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        master: None,
        addresses: Vec::new(),
        ipv6,
        counters: Counters::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            LinkAttribute::Stats64(stats) => {
                // What the tap receives is what the guest sent.
                link.counters = Counters {
                    rx_bytes: stats.tx_bytes,
                    rx_packets: stats.tx_packets,
                    tx_bytes: stats.rx_bytes,
                    tx_packets: stats.rx_packets,
                };
            }
            _ => {}
        }
    }
    link
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    infos
        .iter()
        .find_map(|info| match info {
            LinkInfo::Kind(InfoKind::Bridge) => Some(LinkKind::Bridge),
            LinkInfo::Kind(InfoKind::Tun) => Some(LinkKind::Tap),
            _ => None,
        })
        .unwrap_or(LinkKind::Other)
}

fn ipv4_of(attributes: &[AddressAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

fn host_route(message: &RouteMessage, names: &BTreeMap<u32, LinkName>) -> Option<HostRoute> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let base = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(base)) => Some(*base),
        _ => None,
    })?;
    let link = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => names.get(index).cloned(),
        _ => None,
    });
    Some(HostRoute { base, prefix: header.destination_prefix_length, link })
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    // Not answered, or never asked: nobody was seen there.
    let seen = !matches!(
        message.header.state,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::Noarp
    );
    let mut mac = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr::from_bytes);
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(*ip));
            }
            _ => {}
        }
    }
    let link_index = message.header.ifindex;
    seen.then_some(())?;
    Some(Neighbour { link_index, mac: mac?, address: address? })
}

fn ipv6_setting(name: &LinkName) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
}

/// A host without IPv6 has no such setting and nothing to silence.
fn speaks_ipv6(name: &LinkName) -> bool {
    read_setting(&ipv6_setting(name)).is_ok_and(|text| text.trim() == "0")
}

fn silence_ipv6(name: &LinkName) -> Result<(), HostError> {
    match write_setting(&ipv6_setting(name), "1") {
        Err(HostError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

fn read_setting(path: &str) -> Result<String, HostError> {
    std::fs::read_to_string(path)
        .map_err(|source| HostError::Setting { path: path.to_owned(), source })
}

fn write_setting(path: &str, value: &str) -> Result<(), HostError> {
    std::fs::write(path, value)
        .map_err(|source| HostError::Setting { path: path.to_owned(), source })
}

fn netlink(what: &str, error: rtnetlink::Error) -> HostError {
    let message = match &error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    HostError::Netlink { what: what.to_owned(), message }
}

fn gone_or(name: &LinkName, what: &str, error: rtnetlink::Error) -> HostError {
    if is_no_device(&error) { HostError::NoLink(name.clone()) } else { netlink(what, error) }
}

fn is_no_device(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    raw_code(message) == -libc::ENODEV
}

fn raw_code(message: &ErrorMessage) -> i32 {
    message.raw_code()
}
