//! Rules on the networks between nodes: who is on them, how fast they are, how large a packet fits.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::validate::Check;
use api::validate::FindingView;
use api::validate::Subject;
use api::validate::Unit;
use api::validate::Verdict;

use super::LinkFacts;
use super::NodePicture;
use super::Picture;
use super::With;
use super::finding;
use super::node;
use super::shown;
use super::some_of;
use super::unsaid;
use crate::ha::pulse::shares_prefix;
use crate::validate::measure::tried;

/// A round trip of this size is felt in each change, which needs one besides a flush. A local
/// network has a tenth of it.
const ROUND_TRIP_WARN_US: u64 = 10_000;

/// The leader speaks every 200 ms: if half of its words need longer, it is never sure of its lead.
const ROUND_TRIP_FAIL_US: u64 = 200_000;

/// One in a hundred may take this long: the time between two heartbeats.
const SLOWEST_WARN_US: u64 = 200_000;

/// Round trips that vary by so much point to a queue that fills: before losses, this is what is seen.
const JITTER_WARN_US: u64 = 20_000;

/// Of so many lost messages in a hundred, heartbeats alone cannot tell a bad line from a dead node.
const LOSS_FAIL_PERCENT: u32 = 50;

/// The network of an address.
pub(in crate::validate) fn subnet(address: IpAddr, prefix: u8) -> String {
    match address {
        IpAddr::V4(address) => {
            let prefix = prefix.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let prefix = prefix.min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            format!("{}/{prefix}", std::net::Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

/// The network of a way: `routed` if the two ends are not in the same one.
pub(in crate::validate) fn network_of(link: &LinkFacts) -> String {
    match shares_prefix(link.from_address, link.to_address, link.prefix) {
        true => subnet(link.from_address, link.prefix),
        false => "routed".to_owned(),
    }
}

pub(super) fn networks(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Networks;
    if picture.nodes.len() < 2 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let hosts = picture.hosts();
    let mut on: BTreeMap<String, Vec<(&NodePicture, &str)>> = BTreeMap::new();
    for (it, host) in &hosts {
        for address in &host.addresses {
            let (Some(device), Some(prefix)) = (&address.device, address.prefix) else {
                let text = format!("no device has its address {}", address.address.ip());
                found.push(finding(check, Verdict::Fail, node(it), text).advice(
                    "give a device this address, or change cluster_addresses in \
                     /etc/muster/config.toml there",
                ));
                continue;
            };
            let network = on.entry(subnet(address.address.ip(), prefix)).or_default();
            if !network.iter().any(|(there, _)| there.id == it.id) {
                network.push((it, device));
            }
        }
    }
    for (network, there) in &on {
        let missing: Vec<_> = hosts
            .iter()
            .filter(|(it, _)| !there.iter().any(|(other, _)| other.id == it.id))
            .map(|(it, _)| *it)
            .collect();
        for it in &missing {
            let text = format!("it has no address on {network}, where others are");
            let advice = "give it one, and name it in cluster_addresses in /etc/muster/config.toml";
            found.push(finding(check, Verdict::Warn, node(it), text).advice(advice));
        }
        if missing.is_empty() {
            let devices = there.iter().map(|(it, device)| format!("{} ({device})", it.name));
            let text = format!("all nodes are on it: {}", some_of(devices, 8));
            let subject = Subject::Network { network: network.clone() };
            found.push(finding(check, Verdict::Pass, subject, text));
        }
    }
    let common = on.values().filter(|there| there.len() == hosts.len()).count();
    if common < 2 && hosts.len() > 1 {
        let text = format!(
            "{common} networks join all nodes: a switch or cable can cut the cluster apart"
        );
        found.push(
            finding(check, Verdict::Warn, Subject::Cluster, text)
                .advice(
                    "lay a second network, on another switch, and name an address on each in \
                     cluster_addresses in /etc/muster/config.toml",
                )
                .measured(common as u64, Unit::Count),
        );
    } else if hosts.len() > 1 {
        let text = format!("{common} networks join all nodes");
        found.push(
            finding(check, Verdict::Pass, Subject::Cluster, text)
                .measured(common as u64, Unit::Count),
        );
    }
    found.extend(doubles(picture));
    found
}

/// Addresses that two nodes have, by their own words or by who answers.
fn doubles(picture: &Picture) -> Vec<FindingView> {
    let mut found = Vec::new();
    let advice = "give each host addresses of its own; then end whatever else has this one";
    for (n, one) in picture.nodes.iter().enumerate() {
        for other in picture.nodes.iter().skip(n + 1) {
            for address in one.addresses.iter().filter(|it| other.addresses.contains(it)) {
                let subject =
                    Subject::Pair { from: one.name.clone(), to: other.name.clone(), network: None };
                let text = format!("both say that {address} is theirs");
                found.push(finding(Check::Networks, Verdict::Fail, subject, text).advice(advice));
            }
        }
    }
    for (it, link) in links(picture) {
        if let Some(stranger) = link.stranger {
            let text = format!(
                "at its address {} it is {} that answers: the address is in use twice",
                link.to_address,
                picture.name(stranger)
            );
            let subject = pair(picture, it, link);
            found.push(finding(Check::Networks, Verdict::Fail, subject, text).advice(advice));
        }
    }
    found
}

fn links(picture: &Picture) -> impl Iterator<Item = (&NodePicture, &LinkFacts)> {
    picture.nodes.iter().flat_map(|it| {
        let links = it.links.as_ref().and_then(|links| links.as_ref().ok());
        links.into_iter().flatten().map(move |link| (it, link))
    })
}

fn pair(picture: &Picture, from: &NodePicture, link: &LinkFacts) -> Subject {
    Subject::Pair {
        from: from.name.clone(),
        to: picture.name(link.to),
        network: Some(network_of(link)),
    }
}

/// Ways between nodes that answer, of which nothing was said.
fn unmeasured(picture: &Picture, check: Check) -> Vec<FindingView> {
    let mut found = unsaid(picture, check, |it| &it.links);
    for it in &picture.nodes {
        let Some(Ok(links)) = &it.links else { continue };
        let others = picture.hosts();
        let others = others.iter().filter(|(other, _)| other.id != it.id);
        for (other, _) in others.filter(|(other, _)| !links.iter().any(|it| it.to == other.id)) {
            let subject =
                Subject::Pair { from: it.name.clone(), to: other.name.clone(), network: None };
            let text = "this way was not measured: there was no time left, or no address to try";
            let advice = "validate again, with --node for fewer at once";
            found.push(finding(check, Verdict::Warn, subject, text).advice(advice));
        }
    }
    found
}

pub(super) fn latency(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Latency;
    let mut found = unmeasured(picture, check);
    let mut good: BTreeMap<String, Vec<&LinkFacts>> = BTreeMap::new();
    for (it, link) in links(picture) {
        match judge(link) {
            None => good.entry(network_of(link)).or_default().push(link),
            Some((verdict, text, advice)) => found.push(
                finding(check, verdict, pair(picture, it, link), text)
                    .advice(advice)
                    .measured(link.median_us, Unit::Microseconds),
            ),
        }
    }
    for (network, links) in good {
        let most = |of: fn(&LinkFacts) -> u64| links.iter().map(|link| of(link)).max().unwrap_or(0);
        let median = most(|link| link.median_us);
        let text = format!(
            "round trips of {} ways: half within {}, 99 of 100 within {}, jitter up to {}, none lost",
            links.len(),
            shown(median),
            shown(most(|link| link.p99_us)),
            shown(most(|link| link.jitter_us)),
        );
        found.push(
            finding(check, Verdict::Pass, Subject::Network { network }, text)
                .measured(median, Unit::Microseconds),
        );
    }
    found
}

/// What is wrong with round trips, if anything.
fn judge(link: &LinkFacts) -> Option<(Verdict, String, &'static str)> {
    let lost = link.sent.saturating_sub(link.answered);
    if link.answered == 0 {
        let why = link.problem.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
        return Some((
            Verdict::Fail,
            format!("no message was answered{why}"),
            "see cable, switch and VLAN, and let UDP and TCP pass on the peer port in every firewall",
        ));
    }
    let cable =
        "look at the counters of errors: ip -s link; then try another cable and switch port";
    if lost.saturating_mul(100) >= link.sent.saturating_mul(LOSS_FAIL_PERCENT) {
        return Some((Verdict::Fail, format!("{lost} of {} messages were lost", link.sent), cable));
    }
    let busy = "see what fills this network; keep backups and guests off it";
    if link.median_us >= ROUND_TRIP_FAIL_US {
        let text = format!(
            "half of the round trips take {} or more, longer than the leader may be silent",
            shown(link.median_us)
        );
        return Some((Verdict::Fail, text, "put the nodes of a cluster into one place"));
    }
    if lost > 0 {
        return Some((Verdict::Warn, format!("{lost} of {} messages were lost", link.sent), cable));
    }
    if link.median_us >= ROUND_TRIP_WARN_US {
        let text = format!(
            "half of the round trips take {} or more; each change waits for one",
            shown(link.median_us)
        );
        return Some((Verdict::Warn, text, busy));
    }
    if link.p99_us >= SLOWEST_WARN_US || link.jitter_us >= JITTER_WARN_US {
        let text = format!(
            "round trips vary: half within {}, but 99 of 100 only within {}, jitter {}",
            shown(link.median_us),
            shown(link.p99_us),
            shown(link.jitter_us)
        );
        return Some((Verdict::Warn, text, busy));
    }
    None
}

pub(super) fn mtu(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Mtu;
    let mut found = unsaid(picture, check, |it| &it.links);
    let mut good: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (it, link) in links(picture) {
        let Some(passed) = link.passed else { continue };
        let wanted = tried(link.mtu, link.from_address.is_ipv4());
        if passed >= wanted {
            good.entry(network_of(link)).or_default().push(passed);
            continue;
        }
        let text = format!(
            "packets of {wanted} bytes, as the sender's device makes them, do not arrive; the \
             largest that did had {passed}"
        );
        found.push(
            finding(check, Verdict::Fail, pair(picture, it, link), text)
                .advice(
                    "set one MTU on the devices of both nodes and on every switch between them: ip \
                     link set DEVICE mtu N, and the same in the host's configuration",
                )
                .measured(u64::from(passed), Unit::Bytes),
        );
    }
    found.extend(odd_devices(picture));
    for (network, passed) in good {
        let least = passed.iter().min().copied().unwrap_or_default();
        let text = format!("packets of {least} bytes arrive in one piece on {} ways", passed.len());
        found.push(
            finding(check, Verdict::Pass, Subject::Network { network }, text)
                .measured(u64::from(least), Unit::Bytes),
        );
    }
    found
}

/// Nodes whose device on a network takes packets of another size than most do.
fn odd_devices(picture: &Picture) -> Vec<FindingView> {
    let mut devices: BTreeMap<String, BTreeMap<&str, u32>> = BTreeMap::new();
    for (it, link) in links(picture).filter(|(_, link)| link.mtu > 0) {
        devices.entry(network_of(link)).or_default().insert(&it.name, link.mtu);
    }
    let mut found = Vec::new();
    for (network, of) in devices {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for mtu in of.values() {
            *counts.entry(*mtu).or_default() += 1;
        }
        // Of equally many, the larger one: it is what was meant.
        let Some((most, _)) = counts.into_iter().max_by_key(|(mtu, count)| (*count, *mtu)) else {
            continue;
        };
        for (name, mtu) in of.into_iter().filter(|(_, mtu)| *mtu != most) {
            let text = format!(
                "its device on {network} has an MTU of {mtu}, that of most others is {most}"
            );
            found.push(
                finding(Check::Mtu, Verdict::Warn, Subject::Node { node: name.to_owned() }, text)
                    .advice(format!("set it there: ip link set DEVICE mtu {most}"))
                    .measured(u64::from(mtu), Unit::Bytes),
            );
        }
    }
    found
}
