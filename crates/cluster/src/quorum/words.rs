//! The quorum in words: who votes, what may still be lost, and why it stopped.

use std::collections::BTreeSet;

use model::NodeId;

use super::Presence;
use super::View;

/// Explains the quorum in a few sentences. `name` gives the name of a node; the witness is called
/// the witness. The view may also be that of a node that does not lead and knows no leader: then
/// its `leader` is that node itself, and who is here is what it can reach.
pub fn words(view: &View, name: &dyn Fn(NodeId) -> String) -> String {
    let speaker = Speaker { view, name };
    let mut sentences = vec![speaker.who_votes()];
    if view.members.voters.is_empty() {
        return "This node belongs to no cluster yet, nobody votes.".to_owned();
    }
    if view.decides() {
        sentences.extend(speaker.lost());
        sentences.push(speaker.what_may_be_lost());
    } else {
        sentences.push(speaker.why_it_stopped());
    }
    sentences.join(" ")
}

struct Speaker<'a> {
    view: &'a View,
    name: &'a dyn Fn(NodeId) -> String,
}

/// "one", "two", ... as far as there are voters.
fn number(n: usize) -> String {
    const WORDS: [&str; 10] =
        ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    WORDS.get(n).map_or_else(|| n.to_string(), |word| (*word).to_owned())
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// "a", "a and b", "a, b and c".
fn list(names: &[String]) -> String {
    match names {
        [] => "nobody".to_owned(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

impl Speaker<'_> {
    fn called(&self, id: NodeId) -> String {
        if self.view.is_witness(id) { "the witness".to_owned() } else { (self.name)(id) }
    }

    /// Nodes by name, the witness last.
    fn names(&self, set: &BTreeSet<NodeId>) -> Vec<String> {
        let (witness, nodes): (Vec<_>, Vec<_>) =
            set.iter().copied().partition(|id| self.view.is_witness(*id));
        let mut names: Vec<String> = nodes.into_iter().map(|id| self.called(id)).collect();
        names.sort();
        names.extend(witness.into_iter().map(|id| self.called(id)));
        names
    }

    fn who_votes(&self) -> String {
        let present = self.view.present();
        let nodes = present.iter().filter(|id| !self.view.is_witness(**id)).count();
        let votes = if present.len() == 1 { "votes" } else { "vote" };
        let kind = if nodes == 1 { "node" } else { "nodes" };
        let who = match (nodes, present.len() > nodes) {
            (n, true) => format!("{} {kind} and the witness vote", number(n)),
            (n, false) => format!("{} {kind} {votes}", number(n)),
        };
        let nodes: BTreeSet<NodeId> =
            present.iter().copied().filter(|id| !self.view.is_witness(*id)).collect();
        let changing = match self.view.members.voters.as_slice() {
            [before, _] => format!(" (the voters are changing from {})", list(&self.names(before))),
            _ => String::new(),
        };
        capital(&format!("{who}: {}{changing}.", list(&self.names(&nodes))))
    }

    /// Who is away, and what that means for its vote.
    fn lost(&self) -> Option<String> {
        let voters = self.view.members.all_voters();
        let away: BTreeSet<NodeId> = voters
            .iter()
            .copied()
            .filter(|id| !self.view.answers(*id) && !self.view.is_witness(*id))
            .collect();
        let out: BTreeSet<NodeId> = self
            .view
            .seats
            .iter()
            .filter(|(id, seat)| seat.presence == Presence::Lost && !voters.contains(id))
            .map(|(id, _)| *id)
            .collect();
        let mut words = Vec::new();
        if !away.is_empty() {
            let (verb, vote) = if away.len() == 1 {
                ("does", "its vote is taken away")
            } else {
                ("do", "their votes are taken away")
            };
            let who = list(&self.names(&away));
            words.push(format!("{who} {verb} not answer; when the loss is confirmed, {vote}."));
        }
        if !out.is_empty() {
            let (verb, vote, back) = if out.len() == 1 {
                ("is", "gets its vote back", "it returns")
            } else {
                ("are", "get their votes back", "they return")
            };
            let who = list(&self.names(&out));
            words.push(format!("{who} {verb} lost and {vote} when {back}."));
        }
        if let Some(witness) = self.view.witness
            && !witness.healthy
        {
            words.push("The witness cannot be reached.".to_owned());
        }
        (!words.is_empty()).then(|| words.join(" "))
    }

    /// How many voters that answer can go at once, whichever they are.
    fn spare(&self) -> usize {
        let spare = |set: &BTreeSet<NodeId>| {
            let here = set.iter().filter(|id| self.view.answers(**id)).count();
            here.saturating_sub(set.len() / 2 + 1)
        };
        self.view.members.voters.iter().map(spare).min().unwrap_or(0)
    }

    fn what_may_be_lost(&self) -> String {
        let voters = self.view.members.all_voters();
        let here: BTreeSet<NodeId> =
            voters.iter().copied().filter(|id| self.view.answers(*id)).collect();
        match self.spare() {
            0 if here.len() == 1 => {
                format!("If {} is lost, the cluster stops.", list(&self.names(&here)))
            }
            0 => {
                let names = self.names(&here);
                let who = match names.as_slice() {
                    [a, b] => format!("Neither {a} nor {b}"),
                    _ => format!("None of {}", list(&names)),
                };
                format!("{who} may be lost now, or the cluster stops{}.", self.advice())
            }
            1 => format!("Any one of them may be lost now{}.", self.later()),
            n => format!("Any {} of them may be lost at once{}.", number(n), self.later()),
        }
    }

    fn advice(&self) -> &'static str {
        let voters = self.view.present();
        if self.view.witness.is_none() && voters.len() == 2 {
            "; a witness would let it go on with one of them"
        } else {
            ""
        }
    }

    fn later(&self) -> &'static str {
        if self.view.witness.is_some_and(|witness| witness.healthy) {
            ", and when that is confirmed the next one, down to the last node"
        } else {
            ", and when that is confirmed the next one, down to two nodes"
        }
    }

    fn why_it_stopped(&self) -> String {
        let Some(set) = self.view.members.voters.iter().find(|set| !self.view.majority_of(set))
        else {
            return String::new();
        };
        let (here, away): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            set.iter().copied().partition(|id| self.view.answers(*id));
        let answer = if here.len() == 1 { "answers" } else { "answer" };
        let missing = set.len() / 2 + 1 - here.len();
        let back = if missing == 1 && away.len() == 1 {
            "Bring it back".to_owned()
        } else {
            format!("Bring {} of them back", number(missing))
        };
        format!(
            "The cluster has stopped: {} of the {} votes are needed, and only {} {answer}, {} not. \
             {back}; running machines are not touched while they may run.",
            number(set.len() / 2 + 1),
            number(set.len()),
            list(&self.names(&here)),
            list(&self.names(&away)),
        )
    }
}
