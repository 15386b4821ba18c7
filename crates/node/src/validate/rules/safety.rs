//! Rules on what keeps a machine from running twice, and the cluster able to decide: leases, guards,
//! fence devices, the witness.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::validate::Check;
use api::validate::FindingView;
use api::validate::Subject;
use api::validate::Verdict;
use cluster::lease::Certainty;
use model::FenceDeviceId;
use model::NodeId;

use super::NodePicture;
use super::Picture;
use super::With;
use super::finding;
use super::node;
use super::shown_ms;
use super::some_of;
use super::unsaid;
use crate::validate::facts::FenceSays;

pub(super) fn fencing(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Fencing;
    let mut found = unsaid(picture, check, |it| &it.fence);
    if picture.nodes.len() < 2 {
        return found;
    }
    for it in &picture.nodes {
        found.extend(certainty(it));
    }
    for (it, host) in picture.hosts() {
        let guard = &host.guard;
        if guard.alone {
            continue;
        }
        if !guard.answers {
            let text = "its guard does not answer: it can start no machines";
            found.push(
                finding(check, Verdict::Fail, node(it), text)
                    .advice("start it there: systemctl start muster-guard"),
            );
        } else if let Some(why) = &guard.problem {
            let text = format!("its guard is not as it should be: {why}");
            found.push(
                finding(check, Verdict::Warn, node(it), text)
                    .advice(format!("see: muster node fencing {}", it.name)),
            );
        }
    }
    found.extend(devices(picture));
    found
}

/// What makes sure of the end of a node's machines.
fn certainty(it: &NodePicture) -> Option<FindingView> {
    let check = Check::Fencing;
    let device = "a fence device makes takeover faster: muster fence device add --help";
    Some(match it.certainty? {
        Certainty::Alone => return None,
        Certainty::Proof => {
            finding(check, Verdict::Pass, node(it), "a fence device switches it off")
        }
        Certainty::SelfFencing { watchdog: true, takeover_ms } => {
            let text = format!(
                "no fence device; its guard and a watchdog end its machines, takeover waits {}",
                shown_ms(takeover_ms)
            );
            finding(check, Verdict::Pass, node(it), text).advice(device)
        }
        Certainty::SelfFencing { watchdog: false, takeover_ms } => {
            let text = format!(
                "no fence device and no watchdog: its guard alone ends its machines, takeover waits \
                 {}",
                shown_ms(takeover_ms)
            );
            finding(check, Verdict::Warn, node(it), text)
                .advice(format!("load a watchdog there (modprobe iTCO_wdt, or softdog); {device}"))
        }
        Certainty::None => {
            let text = "nothing makes sure that its machines end: only an administrator's word";
            finding(check, Verdict::Fail, node(it), text).advice(format!(
                "just after a start, wait ten seconds; see what its guard says: muster node fencing {}; \
                 {device}",
                it.name
            ))
        }
    })
}

/// Who said what of a device and a node.
#[derive(Default)]
struct Said<'a> {
    on: Vec<&'a str>,
    off: Vec<&'a str>,
    failed: Vec<(&'a str, &'a str)>,
}

fn devices(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Fencing;
    let mut all: BTreeMap<(FenceDeviceId, NodeId), Said<'_>> = BTreeMap::new();
    for (id, device) in &picture.devices {
        for node in &device.nodes {
            all.insert((*id, *node), Said::default());
        }
    }
    let mut asked = false;
    for it in &picture.nodes {
        let Some(Ok(answers)) = &it.fence else { continue };
        asked = true;
        for answer in answers {
            // What is no longer, or not yet, in the state is of no interest.
            let Some(said) = all.get_mut(&(answer.device, answer.node)) else { continue };
            match &answer.says {
                FenceSays::On => said.on.push(&it.name),
                FenceSays::Off => said.off.push(&it.name),
                FenceSays::Failed(why) => said.failed.push((&it.name, why)),
            }
        }
    }
    let mut found = Vec::new();
    for ((device, node), said) in all.into_iter().filter(|_| asked) {
        let name = picture.devices.get(&device).map_or_else(String::new, |it| it.name.clone());
        let subject = Subject::Device { device: name.clone(), node: picture.name(node) };
        let answers =
            picture.nodes.iter().any(|it| it.id == node && matches!(it.host, Some(Ok(_))));
        let test = format!("try it by hand: muster fence device test {name}");
        let before = found.len();
        if let Some((_, why)) = said.failed.first() {
            let who = some_of(said.failed.iter().map(|(who, _)| *who), 5);
            let text = format!("it could not be asked from {who}: {why}");
            found.push(finding(check, Verdict::Fail, subject.clone(), text).advice(format!(
                "see its power, cable, address and password, and that fence-agents is installed; \
                 {test}"
            )));
        }
        if answers && !said.off.is_empty() {
            let text = "it says that this node is off, but the node answers: a wrong plug, or a \
                        device that lies";
            found.push(finding(check, Verdict::Fail, subject.clone(), text).advice(format!(
                "correct the node's plug, or take the device away: muster fence device show {name}"
            )));
        }
        if found.len() > before {
            continue;
        }
        let who: Vec<&str> = said.on.iter().chain(&said.off).copied().collect();
        found.push(match who.is_empty() {
            true => finding(check, Verdict::Warn, subject, "no node has asked it").advice(test),
            false => {
                let power = if said.off.is_empty() { "on" } else { "off" };
                let text =
                    format!("it says that the node is {power}, asked from {}", some_of(who, 5));
                finding(check, Verdict::Pass, subject, text)
            }
        });
    }
    found
}

pub(super) fn witness(picture: &Picture) -> Vec<FindingView> {
    let check = Check::Witness;
    let nodes = picture.nodes.len();
    let Some(witness) = &picture.witness else {
        return match nodes {
            0 | 1 => Vec::new(),
            even if even % 2 == 0 => {
                let text = format!(
                    "{even} nodes and no witness: if they are cut into two halves, neither can go on"
                );
                vec![
                    finding(check, Verdict::Warn, Subject::Cluster, text)
                        .advice("set one: muster cluster witness set --help"),
                ]
            }
            odd => {
                let text = format!("{odd} nodes need no witness");
                vec![finding(check, Verdict::Pass, Subject::Cluster, text)]
            }
        };
    };
    let mut found = unsaid(picture, check, |it| &it.witness);
    let mut well = Vec::new();
    for it in &picture.nodes {
        match &it.witness {
            Some(Ok(None)) => well.push(it.name.as_str()),
            Some(Ok(Some(why))) => {
                let text = format!("the witness ({}) does not serve it: {why}", witness.place);
                found.push(finding(check, Verdict::Fail, node(it), text).advice(
                    "bring the witness or the way to it back: muster cluster witness show; if it \
                     broke its word, remove it and set another",
                ));
            }
            Some(Err(_)) | None => {}
        }
    }
    if !well.is_empty() {
        let text =
            format!("the witness ({}) keeps its word with {}", witness.place, some_of(well, 8));
        found.push(finding(check, Verdict::Pass, Subject::Cluster, text));
    }
    let together = "put it where no node can take it along: another machine, another power line";
    let dependent =
        |address: IpAddr| picture.nodes.iter().find(|it| it.addresses.contains(&address));
    if let Some(it) = witness.host.and_then(dependent) {
        let text = "the witness runs on this node: both are lost together";
        found.push(finding(check, Verdict::Warn, node(it), text).advice(together));
    }
    let below = |top: &str| {
        let path = witness.path.as_deref().map(std::path::Path::new);
        path.is_some_and(|path| path.starts_with(top))
    };
    if let Some(volume) = picture.volumes.values().find(|volume| below(&volume.path)) {
        let text = format!(
            "the witness lies on volume {}: who loses the one loses the other, and machines with it",
            volume.name
        );
        found.push(finding(check, Verdict::Warn, Subject::Cluster, text).advice(together));
    }
    found
}
