//! The host's network for guests: bridges, taps, address translation, packet rules, DHCP and DNS.
//!
//! ```text
//!                        desired networks and ports (from the cluster's state)
//!                                        |
//!   Switch::apply --> observe the host --+--> plan (pure) --> actions, in order --> Report
//!                                                                 |
//!        +------------------------- the host ---------------------+
//!        |
//!   QEMU -fd- tap m<tag>.. --[guard: MAC, IP, DHCP, RA, VLAN]--> bridge n<tag>.. -- gateway address
//!                                                                  |       |          |
//!                                                            other taps   DHCP, DNS   ip forward,
//!                                                                        (this crate) masquerade
//!                                                                                       |
//!                                                                                     uplink
//! ```
//!
//! A NAT network is a bridge of ours with all of this; a bridged network is the administrator's
//! own bridge, on which we only guard our ports.
//!
//! Level-triggered: every pass looks at the host anew and does what is missing, so it does not
//! matter where the last one ended, or whether the daemon was killed between two actions. Taps
//! belong to the machine's process (the descriptor is handed over); a restarted daemon finds the
//! living ones by name and puts them back on their bridge.
//!
//! One task owns the host's network ([`Switch`] is a handle to it); packets are moved by the kernel.
//! Only this crate speaks netlink and nft.
//!
//! Trust boundaries: frames from guests (judged by the kernel's rules), DHCP and DNS messages from
//! guests and DNS replies from outside (parsed here, refused as typed errors, rate-limited logs).

use std::time::Duration;

mod action;
mod desired;
mod dhcp;
mod dns;
mod host;
mod limit;
mod owner;
mod plan;
mod refused;
mod rules;
mod service;
mod switch;
mod tag;

pub use action::Action;
pub use desired::Desired;
pub use desired::MTU_DEFAULT;
pub use desired::NetworkSpec;
pub use desired::PortSpec;
pub use dhcp::Answer as DhcpAnswer;
pub use dhcp::DhcpError;
pub use dhcp::Lease;
pub use dhcp::LeaseEvent;
pub use dhcp::Leases;
pub use dhcp::Reply as DhcpReply;
pub use dhcp::answer as answer_dhcp;
pub use dns::DOMAIN;
pub use dns::Verdict as DnsVerdict;
pub use dns::Zone;
pub use dns::answer as answer_dns;
pub use host::Announced;
pub use host::DnsSockets;
pub use host::FakeHost;
pub use host::Host;
pub use host::HostError;
pub use host::LinuxHost;
pub use host::Neighbour;
pub use host::ServiceSockets;
pub use plan::Actual;
pub use plan::Counters;
pub use plan::HostRoute;
pub use plan::Link;
pub use plan::LinkKind;
pub use plan::Plan;
pub use plan::plan;
pub use refused::Refused;
pub use rules::RulesId;
pub use rules::Ruleset;
pub use switch::ActionFailure;
pub use switch::AddressSource;
pub use switch::PortError;
pub use switch::PortObservation;
pub use switch::PortState;
pub use switch::Report;
pub use switch::SeenAddress;
pub use switch::Stopped;
pub use switch::Switch;
pub use switch::SwitchConfig;
pub use tag::BadTag;
pub use tag::InstanceTag;
pub use tag::LINK_NAME_CHARS_MAX;
pub use tag::LinkName;
pub use tag::TAG_CHARS;

/// Pause after an error of a server socket: such errors may come back at once and without end.
pub(crate) const SOCKET_ERROR_PAUSE: Duration = Duration::from_millis(100);
