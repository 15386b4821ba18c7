//! The host as the switch sees it: look, act, and three things that give back handles.
//!
//! Two implementations pass the same conformance suite (`tests/conformance`): [`LinuxHost`] is the
//! kernel of the namespace it was made in, [`FakeHost`] keeps everything in memory.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use model::MacAddr;
use tokio::net::TcpListener;
use tokio::net::UdpSocket;

use crate::action::Action;
use crate::plan::Actual;
use crate::rules::RulesId;
use crate::tag::InstanceTag;
use crate::tag::LinkName;

mod fake;
mod linux;
mod nft;
mod tun;

pub use fake::FakeHost;
pub use linux::LinuxHost;

/// The operations the switch needs from a host.
#[async_trait]
pub trait Host: Send + Sync {
    /// Reads what is there. Reading the rules back takes long where there are many ports; where
    /// the rules to be expected are given, their presence is enough.
    async fn observe(
        &self,
        tag: &InstanceTag,
        expected: Option<&RulesId>,
    ) -> Result<Actual, HostError>;

    /// Makes one change. Making a change that is already made is either harmless or an error that
    /// the next pass does not meet again.
    async fn perform(&self, tag: &InstanceTag, action: &Action) -> Result<(), HostError>;

    /// Makes a tap, down and on no bridge. It exists until the last copy of the descriptor closes.
    async fn open_tap(&self, name: &LinkName) -> Result<OwnedFd, HostError>;

    /// Addresses that the host has seen on its devices.
    async fn neighbours(&self) -> Result<Vec<Neighbour>, HostError>;

    /// Addresses that guests have announced on their ports, the latest announcement first.
    async fn announced(&self, tag: &InstanceTag) -> Result<Vec<Announced>, HostError>;

    /// Opens the sockets on which a NAT network's guests are served.
    async fn serve(
        &self,
        bridge: &LinkName,
        gateway: Ipv4Addr,
    ) -> Result<ServiceSockets, HostError>;
}

/// An entry of the host's neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The device it was seen on.
    pub link_index: u32,
    /// Whose it is.
    pub mac: MacAddr,
    /// The address.
    pub address: IpAddr,
}

/// An address that a guest has announced by ARP or IPv6 neighbour discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The tap it came in by.
    pub tap: LinkName,
    /// The address.
    pub address: IpAddr,
}

/// Sockets of one NAT network.
#[derive(Debug)]
pub struct ServiceSockets {
    /// DHCP server port, bound to the bridge, may broadcast.
    pub dhcp: UdpSocket,
    /// DNS on the gateway address. Another server may have the port; DHCP is served all the same.
    pub dns: Result<DnsSockets, HostError>,
}

/// Sockets of a NAT network's resolver.
#[derive(Debug)]
pub struct DnsSockets {
    /// For questions that fit a datagram.
    pub udp: UdpSocket,
    /// For the others.
    pub tcp: TcpListener,
}

/// The host could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused a netlink request.
    #[error("cannot {what}: {message}; run 'ip -d link' and see what stands in the way")]
    Netlink {
        /// What was tried.
        what: String,
        /// The kernel's words.
        message: String,
    },
    /// The device has gone.
    #[error("there is no device {0}; if it was a tap, its machine has ended")]
    NoLink(LinkName),
    /// The tap exists and another process holds it.
    #[error("the tap {0} is in use; the machine it belongs to is still running, stop it first")]
    TapBusy(LinkName),
    /// A tap could not be made.
    #[error("cannot make the tap {name}: {source}; check that /dev/net/tun exists (modprobe tun)")]
    Tap {
        /// Its name.
        name: LinkName,
        /// Why.
        source: io::Error,
    },
    /// The nft program is missing or does not answer.
    #[error("cannot run nft: {source}; install it (apt install nftables)")]
    NftMissing {
        /// Why.
        source: io::Error,
    },
    /// nft refused our rules.
    #[error("nft refused the rules: {stderr}; see 'nft list ruleset', and check nft --version")]
    Nft {
        /// Its words, cut to 2,000 characters.
        stderr: String,
    },
    /// A kernel setting could not be written or read.
    #[error("cannot access {path}: {source}; run the daemon as root")]
    Setting {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A server port is taken.
    #[error(
        "cannot open {what} on {bridge}: {source}; see who has the port: ss -lnp 'sport = :{port}'"
    )]
    Port {
        /// DHCP or DNS.
        what: &'static str,
        /// The bridge.
        bridge: LinkName,
        /// The port number.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// A fault asked for by a test.
    #[error("injected fault")]
    Injected,
}
