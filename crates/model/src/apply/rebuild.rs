//! A member whose log is lost gets a new one from the others.
//!
//! ```text
//!   member -- NodeDamaged(word) --> rebuild: word -- NodeLogCleared(word) --> rebuilt: word, count
//!      the node takes no part in the log       the log's members lack it       it begins a new log
//! ```
//!
//! The word makes each step one that can be repeated: a node that asks again for the same loss
//! changes nothing, and one that has lost its log again begins again (docs/decisions/0023).

use std::sync::Arc;

use uuid::Uuid;

use crate::ClusterState;
use crate::EventKind;
use crate::Membership;
use crate::NodeId;
use crate::NodeRecord;
use crate::Rebuild;
use crate::Rebuilt;
use crate::Refused;
use crate::Severity;
use crate::apply::Context;

/// Longest description of a damage.
const PROBLEM_CHARS_MAX: usize = 500;

pub(crate) fn damaged(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    word: Uuid,
    problem: &str,
) -> Result<(), Refused> {
    if state.cluster.is_none() {
        return Err(Refused::NoCluster);
    }
    let record = state.node(id)?.clone();
    if record.membership == Membership::Lost {
        return Err(Refused::NotMember(record.name.clone()));
    }
    if state.nodes.len() == 1 {
        return Err(Refused::LastNode(record.name.clone()));
    }
    if problem.chars().count() > PROBLEM_CHARS_MAX {
        return Err(Refused::Invalid("the description of the damage is too long".to_owned()));
    }
    let known = record.rebuild.as_ref().is_some_and(|it| it.word == word)
        || record.rebuilt.as_ref().is_some_and(|it| it.word == word);
    if known {
        return Ok(());
    }
    let text = format!("{} has lost its log ({problem}) and gets a new one", record.name);
    let subject = record.subject();
    let rebuild = Rebuild { word, since: cx.proposal.at, problem: problem.to_owned() };
    let record = NodeRecord { rebuild: Some(rebuild), ..(*record).clone() };
    state.nodes.insert(id, Arc::new(record));
    cx.event(EventKind::NodeDamaged, Severity::Error, subject, text, None);
    Ok(())
}

pub(crate) fn cleared(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    word: Uuid,
) -> Result<(), Refused> {
    let record = state.node(id)?.clone();
    if record.rebuild.as_ref().is_none_or(|it| it.word != word) {
        let problem = format!("{} does not wait for that log to be cleared", record.name);
        return Err(Refused::Invalid(problem));
    }
    let count = record.rebuilt.as_ref().map_or(0, |it| it.count).saturating_add(1);
    let text = format!("{} begins a new log and gets it from the others", record.name);
    let subject = record.subject();
    let rebuilt = Some(Rebuilt { word, count });
    let record = NodeRecord { rebuild: None, rebuilt, ..(*record).clone() };
    state.nodes.insert(id, Arc::new(record));
    cx.event(EventKind::NodeRebuilt, Severity::Warning, subject, text, None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Command;
    use crate::EventKind;
    use crate::Refused;
    use crate::apply::cluster_test::join;
    use crate::apply::cluster_test::lab;
    use crate::apply::cluster_test::node;
    use uuid::Uuid;

    fn damaged(n: u8, word: u128) -> Command {
        let word = Uuid::from_u128(word);
        Command::NodeDamaged { node: node(n), word, problem: "log/7: torn".to_owned() }
    }

    fn cleared(n: u8, word: u128) -> Command {
        Command::NodeLogCleared { node: node(n), word: Uuid::from_u128(word) }
    }

    #[test]
    fn a_loss_is_cleared_once_and_each_loss_is_counted() {
        let mut world = lab();
        assert!(matches!(world.propose(damaged(1, 7)), Err(Refused::NotFound { .. })));
        world.propose(join(1, "h2", 0)).unwrap();
        assert!(matches!(world.propose(cleared(1, 7)), Err(Refused::Invalid(_))));
        let told = world.propose(damaged(1, 7)).unwrap();
        assert_eq!(told.events[0].kind, EventKind::NodeDamaged);
        // It asks again, since the answer was lost.
        assert!(world.propose(damaged(1, 7)).unwrap().events.is_empty());
        assert!(matches!(world.propose(cleared(1, 8)), Err(Refused::Invalid(_))));
        world.propose(cleared(1, 7)).unwrap();
        assert!(matches!(world.propose(cleared(1, 7)), Err(Refused::Invalid(_))));
        // Late: that loss is over.
        assert!(world.propose(damaged(1, 7)).unwrap().events.is_empty());
        let record = world.state.nodes.get(&node(1)).unwrap().clone();
        assert_eq!((record.rebuild.clone(), record.rebuilt.clone().unwrap().count), (None, 1));
        world.propose(damaged(1, 9)).unwrap();
        world.propose(cleared(1, 9)).unwrap();
        let record = world.state.nodes.get(&node(1)).unwrap().clone();
        assert_eq!(record.rebuilt.clone().unwrap().count, 2);
    }

    #[test]
    fn what_cannot_be_rebuilt_is_refused() {
        let mut world = lab();
        assert!(matches!(
            world.propose(damaged(0, 7)),
            Err(Refused::LastNode(_) | Refused::NotFound { .. })
        ));
        world.propose(join(1, "h2", 0)).unwrap();
        let mut long = damaged(1, 7);
        if let Command::NodeDamaged { problem, .. } = &mut long {
            *problem = "x".repeat(501);
        }
        assert!(matches!(world.propose(long), Err(Refused::Invalid(_))));
        let lost = Command::QuorumForced {
            lost: [node(1)].into(),
            word: Uuid::from_u128(1),
            witness: node(200),
        };
        world.propose(lost).unwrap();
        assert!(matches!(world.propose(damaged(1, 7)), Err(Refused::NotMember(_))));
    }
}
