//! The state of the cluster in sentences, each that asks for something with a next step. Pure.

use api::cluster::ClusterHealth;
use api::cluster::ClusterNodeView;
use api::cluster::ClusterPart;
use api::witness::WitnessView;
use model::Gone;

/// What there is to say something about.
pub(crate) struct Picture<'a> {
    pub(crate) name: Option<String>,
    pub(crate) me: String,
    pub(crate) leader: Option<String>,
    pub(crate) term: u64,
    pub(crate) voters: usize,
    /// Voters that answer now.
    pub(crate) answering: usize,
    pub(crate) nodes: &'a [ClusterNodeView],
    pub(crate) witness: Option<&'a WitnessView>,
    /// This node is out, and how, if that is known.
    pub(crate) gone: Option<Option<Gone>>,
}

/// Changes that a node may lack without a word: it has them in the next moment.
const BEHIND_UNSAID: u64 = 50;

pub(crate) fn say(picture: &Picture<'_>) -> (ClusterHealth, Vec<String>) {
    let Some(name) = &picture.name else {
        let words = vec![
            format!("{} is a host by itself: if it is lost, nothing takes its place.", picture.me),
            "Make a cluster of it (muster cluster create NAME), or let it join one (muster cluster \
             join TOKEN)."
                .to_owned(),
        ];
        return (ClusterHealth::Single, words);
    };
    if let Some(how) = picture.gone {
        let how = match how {
            Some(Gone::Evicted) => "was evicted from",
            Some(Gone::Left) => "has left",
            None => "is no longer a member of",
        };
        let words = vec![
            format!("{} {how} the cluster {name}: nothing can be changed here.", picture.me),
            "To use this host again: muster cluster leave --force, then join with a new token."
                .to_owned(),
        ];
        return (ClusterHealth::Gone, words);
    }
    let mut words = Vec::new();
    let majority = picture.voters / 2 + 1;
    let quorum = picture.leader.is_some() && picture.answering >= majority;
    match &picture.leader {
        Some(leader) => words.push(format!("{leader} leads, since election {}.", picture.term)),
        None => words.push("Nobody leads now.".to_owned()),
    }
    words.push(votes(picture, majority));
    if quorum {
        words.push(may_lose(picture, majority));
    } else {
        words.push(format!(
            "{} VMs that run go on; nothing can be changed or moved. {}{}",
            if picture.answering >= majority {
                "The voters have not agreed on a leader yet."
            } else {
                "That is no majority."
            },
            bring_back(picture),
            if picture.answering >= majority {
                ""
            } else {
                " If they are lost for good, and only then: muster cluster force-quorum."
            }
        ));
    }
    words.extend(picture.nodes.iter().filter_map(about));
    words.extend(picture.witness.and_then(about_witness));
    let witness_well = picture.witness.is_none_or(|it| it.reachable && !it.retired);
    let all_well = witness_well
        && picture.nodes.iter().all(|node| {
            node.reachable
                && node.problem.is_none()
                && matches!(
                    node.part,
                    ClusterPart::Leader | ClusterPart::Voter | ClusterPart::Learner
                )
        });
    let health = match (quorum, all_well, picture.nodes.len()) {
        (false, _, _) => ClusterHealth::NoQuorum,
        (true, true, 1) => ClusterHealth::Single,
        (true, true, _) => ClusterHealth::Healthy,
        (true, false, _) => ClusterHealth::Degraded,
    };
    (health, words)
}

fn votes(picture: &Picture<'_>, majority: usize) -> String {
    if picture.voters == 1 {
        return "One node votes and decides alone.".to_owned();
    }
    let names: Vec<_> = picture
        .nodes
        .iter()
        .filter(|node| matches!(node.part, ClusterPart::Leader | ClusterPart::Voter))
        .map(|node| node.name.as_str())
        .collect();
    let (who, names) = match picture.witness.filter(|witness| witness.votes) {
        Some(_) => (
            format!("{} nodes and the witness vote", picture.voters.saturating_sub(1)),
            format!("{}, witness", names.join(", ")),
        ),
        None => (format!("{} nodes vote", picture.voters), names.join(", ")),
    };
    format!(
        "{who} ({names}), {} of them answer; {majority} must agree to a change.",
        picture.answering
    )
}

fn may_lose(picture: &Picture<'_>, majority: usize) -> String {
    match picture.answering - majority {
        0 if picture.nodes.len() == 1 => {
            "If it is lost, nothing takes its place: let others join (muster cluster token)."
                .to_owned()
        }
        0 if picture.voters == 2 => "If either voter is lost, nothing can be changed until it is \
                                     back: let a third node join (muster cluster token), or let \
                                     the cluster have a witness (muster cluster witness set)."
            .to_owned(),
        0 => format!("No further voter may be lost. {}", bring_back(picture)),
        1 => "One more voter may be lost.".to_owned(),
        more => format!("{more} more voters may be lost, whichever they are."),
    }
}

fn bring_back(picture: &Picture<'_>) -> String {
    let missing: Vec<_> = picture
        .nodes
        .iter()
        .filter(|node| !node.reachable && node.part != ClusterPart::Lost)
        .map(|node| node.name.as_str())
        .chain(picture.witness.filter(|it| it.votes && !it.reachable).map(|_| "the witness"))
        .collect();
    if missing.is_empty() {
        return "Let more nodes join (muster cluster token).".to_owned();
    }
    let missing = missing.join(", ");
    format!(
        "Bring {missing} back (start the daemon, mend the network), or if a host is lost for good \
         and a majority is there: muster cluster evict NODE."
    )
}

fn about(node: &ClusterNodeView) -> Option<String> {
    let name = &node.name;
    let problem = node.problem.as_deref().unwrap_or("it does not answer");
    match (node.part, node.reachable, node.behind) {
        (ClusterPart::Lost, _, _) => Some(format!(
            "{name} was given up when the quorum was forced; when its VMs have gone elsewhere: \
             muster cluster evict {name}, and let the host join again as a new node."
        )),
        (ClusterPart::Damaged, _, _) => Some(format!(
            "{name} is damaged: {problem}. It does not vote and gets a new log from the others by \
             itself; look at its disk, and if this stays: journalctl -u muster there."
        )),
        (_, false, _) => Some(format!("{name} does not answer: {problem}.")),
        (ClusterPart::Leaving, _, _) => Some(format!("{name} is leaving.")),
        (ClusterPart::Joining, _, _) => Some(format!("{name} has joined and is being brought in.")),
        (_, _, Some(behind)) if behind > BEHIND_UNSAID => {
            Some(format!("{name} is {behind} changes behind and catches up."))
        }
        _ => node.problem.as_ref().map(|problem| format!("{name} answers, but {problem}.")),
    }
}

fn about_witness(witness: &WitnessView) -> Option<String> {
    let problem = witness.problem.as_deref().unwrap_or("it does not answer");
    match (witness.retired, witness.reachable) {
        (true, _) => Some("The witness is being removed.".to_owned()),
        (false, false) => Some(format!("The witness is not in use here: {problem}.")),
        (false, true) if !witness.votes => Some(
            "The witness is ready; it votes while the number of nodes that vote is even."
                .to_owned(),
        ),
        (false, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use api::witness::WitnessPlaceView;
    use model::NodeId;
    use model::UnixMillis;
    use uuid::Uuid;

    use super::*;

    fn node(n: u128, part: ClusterPart, reachable: bool) -> ClusterNodeView {
        ClusterNodeView {
            id: NodeId::new(Uuid::from_u128(n)),
            name: format!("h{n}").parse().unwrap(),
            part,
            reachable,
            behind: reachable.then_some(0),
            addresses: Vec::new(),
            version: "0.1.0".to_owned(),
            certificate_ends: None,
            problem: None,
        }
    }

    fn picture<'a>(nodes: &'a [ClusterNodeView], leader: Option<&str>) -> Picture<'a> {
        let votes =
            |node: &&ClusterNodeView| matches!(node.part, ClusterPart::Leader | ClusterPart::Voter);
        Picture {
            name: Some("lab".to_owned()),
            me: "h1".to_owned(),
            leader: leader.map(str::to_owned),
            term: 4,
            voters: nodes.iter().filter(votes).count(),
            answering: nodes.iter().filter(votes).filter(|node| node.reachable).count(),
            nodes,
            witness: None,
            gone: None,
        }
    }

    use ClusterPart::Leader;
    use ClusterPart::Voter;

    #[test]
    fn three_nodes_that_are_well() {
        let nodes = [node(1, Leader, true), node(2, Voter, true), node(3, Voter, true)];
        let (health, words) = say(&picture(&nodes, Some("h1")));
        assert_eq!(health, ClusterHealth::Healthy);
        assert_eq!(
            words,
            [
                "h1 leads, since election 4.",
                "3 nodes vote (h1, h2, h3), 3 of them answer; 2 must agree to a change.",
                "One more voter may be lost.",
            ]
        );
    }

    #[test]
    fn one_of_three_is_away() {
        let nodes = [node(1, Leader, true), node(2, Voter, true), node(3, Voter, false)];
        let (health, words) = say(&picture(&nodes, Some("h1")));
        assert_eq!(health, ClusterHealth::Degraded);
        assert!(words[2].starts_with("No further voter may be lost. Bring h3 back"), "{words:?}");
        assert_eq!(words[3], "h3 does not answer: it does not answer.");
    }

    #[test]
    fn a_node_that_answers_and_takes_no_vms_is_not_called_well() {
        let mut nodes = [node(1, Leader, true), node(2, Voter, true), node(3, Voter, true)];
        nodes[2].problem = Some("it was fenced".to_owned());
        let (health, words) = say(&picture(&nodes, Some("h1")));
        assert_eq!(health, ClusterHealth::Degraded);
        assert_eq!(words[3], "h3 answers, but it was fenced.");
    }

    #[test]
    fn no_majority_says_what_goes_on_and_what_to_do() {
        let nodes = [node(1, Voter, true), node(2, Voter, false), node(3, Voter, false)];
        let (health, words) = say(&picture(&nodes, None));
        assert_eq!(health, ClusterHealth::NoQuorum);
        assert!(words[2].contains("VMs that run go on"), "{words:?}");
        assert!(words[2].contains("Bring h2, h3 back"), "{words:?}");
    }

    #[test]
    fn two_nodes_are_warned_of_what_two_means() {
        let nodes = [node(1, Leader, true), node(2, Voter, true)];
        let (health, words) = say(&picture(&nodes, Some("h1")));
        assert_eq!(health, ClusterHealth::Healthy);
        assert!(words[2].contains("let a third node join"), "{words:?}");
    }

    fn witness(votes: bool, reachable: bool) -> WitnessView {
        WitnessView {
            id: NodeId::new(Uuid::from_u128(9)),
            place: WitnessPlaceView::Directory { path: "/srv/witness".to_owned() },
            since: UnixMillis::new(0),
            by: "root".to_owned(),
            votes,
            retired: false,
            reachable,
            problem: (!reachable).then(|| "no answer".to_owned()),
        }
    }

    #[test]
    fn two_nodes_with_a_witness() {
        let nodes = [node(1, Leader, true), node(2, Voter, true)];
        let well = witness(true, true);
        let three = Picture {
            witness: Some(&well),
            voters: 3,
            answering: 3,
            ..picture(&nodes, Some("h1"))
        };
        let (health, words) = say(&three);
        assert_eq!(health, ClusterHealth::Healthy);
        assert_eq!(
            words[1..],
            [
                "2 nodes and the witness vote (h1, h2, witness), 3 of them answer; 2 must agree to \
                 a change.",
                "One more voter may be lost.",
            ]
        );
        let away = witness(true, false);
        let lost = Picture { witness: Some(&away), answering: 2, ..three };
        let (health, words) = say(&lost);
        assert_eq!(health, ClusterHealth::Degraded);
        assert!(words[2].contains("Bring the witness back"), "{words:?}");
        assert!(words[3].contains("not in use here: no answer"), "{words:?}");
        let idle = witness(false, true);
        let ready = Picture { witness: Some(&idle), ..picture(&nodes, Some("h1")) };
        assert!(say(&ready).1[3].contains("is ready"));
    }

    #[test]
    fn a_host_by_itself_and_one_that_is_out() {
        let mut alone = picture(&[], None);
        alone.name = None;
        assert_eq!(say(&alone).0, ClusterHealth::Single);
        let nodes = [node(1, Voter, true)];
        let mut out = picture(&nodes, None);
        out.gone = Some(Some(Gone::Evicted));
        let (health, words) = say(&out);
        assert_eq!(health, ClusterHealth::Gone);
        assert!(words[0].contains("was evicted from the cluster lab"), "{words:?}");
        assert!(words[1].contains("leave --force"), "{words:?}");
    }
}
