//! The packet rules of one instance, as one nft transaction. Pure.
//!
//! ```text
//!   guest -> tap -> [bridge prerouting] -> bridge -> other taps, or the host itself
//!                     | port known: jump to its chain; not known but ours: drop
//!                     v
//!            source MAC is the NIC's, source IP is the reserved one, chaddr in DHCP is the NIC's,
//!            no VLAN tags, no DHCP replies, no router advertisements
//!
//!   host: bridge -> [ip forward] -> uplink -> [ip postrouting: masquerade] -> outside
//!           replies come back by connection tracking; nothing else from outside reaches a guest
//! ```
//!
//! Both tables are replaced as a whole in one transaction, so no packet ever sees half a rule set.
//! An empty set named after a digest of the rules stands in each table: comparing it (and the
//! number of rules) tells whether the kernel has what we want without understanding its listing.
//! A tap of ours that the rules do not know is mute (last rule of `guard`): the gap between making
//! a tap and loading its rules is closed by default.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::Ipv4Subnet;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

use crate::desired::PortSpec;
use crate::tag::InstanceTag;
use crate::tag::LinkName;
use crate::tag::hex;

/// Before every other bridge filter: the priority that nft calls dstnat in the bridge family.
const GUARD_PRIORITY: i32 = -300;
/// Hexadecimal digits of the digest in a set's name; nft names have at most 255 characters.
const DIGEST_CHARS: usize = 16;
/// Name prefix of the set that carries the digest.
pub(crate) const DIGEST_SET_PREFIX: &str = "rules_";
/// Where the client hardware address stands, in bits from the UDP header: 8 + 28 bytes.
const DHCP_CHADDR_BITS: u32 = (8 + 28) * 8;
/// Tagged frames, 802.1Q and 802.1ad: they would carry a guest past every rule that reads inside.
const TAGGED: [u16; 2] = [0x8100, 0x88a8];

/// The sets of learnt addresses: pairs of tap and address, IPv4 and IPv6.
pub(crate) const LEARNT_SETS: [&str; 2] = ["ipv4", "ipv6"];
/// How long an address is remembered after it was last announced. Guests that talk at all announce
/// theirs every few minutes.
const LEARNT_SECONDS: u32 = 1_800;
/// Addresses noted per instance and family: some for each of hundreds of guests. A guest that
/// announces thousands can keep others' from being noted; it harms nothing but this view.
const LEARNT_MAX: u32 = 4_096;

/// What the kernel has, or shall have, of our rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesId {
    /// Digest of the transaction that made them.
    pub digest: String,
    /// Rules in both tables together: notices a rule that somebody took out by hand.
    pub rules: usize,
}

/// A rule set ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// What it will be known by.
    pub id: RulesId,
    /// The transaction, in the JSON schema of libnftables.
    pub json: Value,
}

/// A NAT network as the rules need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NatRules {
    pub(crate) bridge: LinkName,
    pub(crate) subnet: Ipv4Subnet,
}

/// Builds the transaction that replaces whatever the instance has.
pub(crate) fn ruleset(tag: &InstanceTag, nats: &[NatRules], ports: &[PortRules]) -> Ruleset {
    let table = tag.table();
    let mut body = Vec::new();
    nat_table(&table, nats, &mut body);
    guard_table(tag, &table, ports, &mut body);
    let rules = body.iter().filter(|command| command["add"].get("rule").is_some()).count();
    let text = Value::Array(body.clone()).to_string();
    let digest = hex(&Sha256::digest(text.as_bytes()), DIGEST_CHARS);

    let mut commands = Vec::new();
    for family in FAMILIES {
        let this = json!({"family": family, "name": table});
        // "add" first, because "delete" fails where there is no table.
        commands.push(json!({"add": {"table": this}}));
        commands.push(json!({"delete": {"table": this}}));
        commands.push(json!({"add": {"table": this}}));
        commands.push(json!({"add": {"set": {
            "family": family, "table": table, "name": format!("{DIGEST_SET_PREFIX}{digest}"),
            "type": "mark",
        }}}));
    }
    commands.append(&mut body);
    Ruleset { id: RulesId { digest, rules }, json: json!({"nftables": commands}) }
}

/// The transaction that makes the table in which addresses of guests are noted.
///
/// It stands apart from the rules, because these are replaced as a whole and what was learnt would
/// go with them. Its chain comes after the guard: only what a guest may truthfully say is noted.
pub(crate) fn learning(tag: &InstanceTag) -> Value {
    let table = tag.learning_table();
    let this = json!({"family": "bridge", "name": table});
    let set = |name: &str, kind: &str| {
        json!({"add": {"set": {
            "family": "bridge", "table": table, "name": name, "type": ["ifname", kind],
            "flags": ["timeout"], "timeout": LEARNT_SECONDS, "size": LEARNT_MAX,
        }}})
    };
    let rule = |expr: Vec<Value>| {
        json!({"add": {"rule": {
            "family": "bridge", "table": table, "chain": "learn", "expr": expr,
        }}})
    };
    let ours = || is(meta("iifname"), json!(format!("{}*", tag.tap_prefix())));
    let note = |address: Value, set: &str| {
        let pair = json!({"concat": [meta("iifname"), address]});
        json!({"set": {"op": "update", "elem": pair, "set": format!("@{set}")}})
    };
    let sender = || field("arp", "saddr ip");
    let discovery = json!({"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]});
    json!({"nftables": [
        {"add": {"table": this}},
        {"delete": {"table": this}},
        {"add": {"table": this}},
        set(LEARNT_SETS[0], "ipv4_addr"),
        set(LEARNT_SETS[1], "ipv6_addr"),
        {"add": {"chain": {
            "family": "bridge", "table": table, "name": "learn", "type": "filter",
            "hook": "prerouting", "prio": GUARD_PRIORITY + 1, "policy": "accept",
        }}},
        rule(vec![ours(), is_not(sender(), json!("0.0.0.0")), note(sender(), LEARNT_SETS[0])]),
        rule(vec![
            ours(),
            is(field("icmpv6", "type"), discovery),
            is_not(field("ip6", "saddr"), json!("::")),
            note(field("ip6", "saddr"), LEARNT_SETS[1]),
        ]),
    ]})
}

/// The transaction that removes everything of the instance.
pub(crate) fn removal(tag: &InstanceTag) -> Value {
    let tables = FAMILIES.map(|family| (family, tag.table()));
    let mut commands = Vec::new();
    for (family, name) in tables.into_iter().chain([("bridge", tag.learning_table())]) {
        let this = json!({"family": family, "name": name});
        commands.push(json!({"add": {"table": this}}));
        commands.push(json!({"delete": {"table": this}}));
    }
    json!({"nftables": commands})
}

/// The nft families in which an instance has a table.
pub(crate) const FAMILIES: [&str; 2] = ["ip", "bridge"];

/// A port as the rules need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortRules {
    pub(crate) tap: LinkName,
    pub(crate) spec: PortSpec,
    /// On a NAT network only IPv4 and ARP exist; on a bridged one the guest may speak anything.
    pub(crate) nat: bool,
}

fn nat_table(table: &str, nats: &[NatRules], out: &mut Vec<Value>) {
    let chain = |name: &str, kind: &str, hook: &str, priority: i32| {
        json!({"add": {"chain": {
            "family": "ip", "table": table, "name": name, "type": kind, "hook": hook,
            "prio": priority, "policy": "accept",
        }}})
    };
    out.push(chain("forward", "filter", "forward", 0));
    out.push(chain("postrouting", "nat", "postrouting", 100));
    let mut rule = |chain: &str, expr: Vec<Value>| {
        out.push(json!({"add": {"rule": {
            "family": "ip", "table": table, "chain": chain, "expr": expr,
        }}}));
    };
    for NatRules { bridge, subnet } in nats {
        let from = || is(meta("iifname"), json!(bridge.as_str()));
        let to = || is(meta("oifname"), json!(bridge.as_str()));
        // Between guests of one network: bridged frames come here too where br_netfilter is on.
        rule("forward", vec![from(), to(), accept()]);
        rule("forward", vec![from(), is_not(field("ip", "saddr"), prefix(*subnet)), drop()]);
        let states = json!(["established", "related"]);
        let tracked = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}},
            "right": states}});
        rule("forward", vec![to(), tracked, accept()]);
        rule("forward", vec![to(), drop()]);
        rule(
            "postrouting",
            vec![
                is(field("ip", "saddr"), prefix(*subnet)),
                is_not(meta("oifname"), json!(bridge.as_str())),
                json!({"masquerade": null}),
            ],
        );
    }
}

fn guard_table(tag: &InstanceTag, table: &str, ports: &[PortRules], out: &mut Vec<Value>) {
    out.push(json!({"add": {"chain": {
        "family": "bridge", "table": table, "name": "guard", "type": "filter",
        "hook": "prerouting", "prio": GUARD_PRIORITY, "policy": "accept",
    }}}));
    let ports: BTreeMap<&LinkName, &PortRules> = ports.iter().map(|p| (&p.tap, p)).collect();
    for (tap, port) in &ports {
        out.push(json!({"add": {"chain": {
            "family": "bridge", "table": table, "name": tap.as_str(),
        }}}));
        for expr in port_rules(port) {
            out.push(json!({"add": {"rule": {
                "family": "bridge", "table": table, "chain": tap.as_str(), "expr": expr,
            }}}));
        }
    }
    let mut rule = |expr: Vec<Value>| {
        out.push(json!({"add": {"rule": {
            "family": "bridge", "table": table, "chain": "guard", "expr": expr,
        }}}));
    };
    if !ports.is_empty() {
        let jumps: Vec<Value> = ports
            .keys()
            .map(|tap| json!([tap.as_str(), {"jump": {"target": tap.as_str()}}]))
            .collect();
        rule(vec![json!({"vmap": {"key": meta("iifname"), "data": {"set": jumps}}})]);
    }
    rule(vec![is(meta("iifname"), json!(format!("{}*", tag.tap_prefix()))), drop()]);
}

fn port_rules(port: &PortRules) -> Vec<Vec<Value>> {
    let mac = port.spec.mac.to_string();
    let bytes = port.spec.mac.bytes();
    let chaddr = format!("0x{}", hex(&bytes, 2 * bytes.len()));
    let udp = |name: &str, port: u16| is(field("udp", name), json!(port));
    let mut rules = vec![
        vec![is_not(field("ether", "saddr"), json!(mac)), drop()],
        vec![is(field("ether", "type"), json!({"set": TAGGED})), drop()],
        vec![is_not(field("arp", "saddr ether"), json!(mac)), drop()],
        vec![udp("sport", 67), drop()],
        vec![udp("sport", 547), drop()],
        vec![is(field("icmpv6", "type"), json!("nd-router-advert")), drop()],
        vec![
            udp("dport", 67),
            is_not(
                json!({"payload": {"base": "th", "offset": DHCP_CHADDR_BITS, "len": 48}}),
                json!(chaddr),
            ),
            drop(),
        ],
    ];
    if port.nat {
        let known = json!({"set": ["ip", "arp"]});
        rules.push(vec![is_not(field("ether", "type"), known), drop()]);
    }
    if let Some(address) = port.spec.address {
        let none = Ipv4Addr::UNSPECIFIED.to_string();
        let own = address.to_string();
        // 0.0.0.0 in ARP is a probe (RFC 5227); in IP it is a DHCP client without an address.
        let probe_or_own = json!({"set": [none, own]});
        rules.push(vec![is_not(field("arp", "saddr ip"), probe_or_own), drop()]);
        rules.push(vec![
            is(field("ip", "saddr"), json!(none)),
            udp("sport", 68),
            udp("dport", 67),
            accept(),
        ]);
        rules.push(vec![is_not(field("ip", "saddr"), json!(own)), drop()]);
    }
    rules.push(vec![accept()]);
    rules
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn prefix(subnet: Ipv4Subnet) -> Value {
    json!({"prefix": {"addr": subnet.base().to_string(), "len": subnet.prefix()}})
}

fn is(left: Value, right: Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn is_not(left: Value, right: Value) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop() -> Value {
    json!({"drop": null})
}
