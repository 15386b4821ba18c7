//! Tells the state which guests have answered, of those VMs that others are started after: the leader
//! waits for them before it starts the others elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::ClusterState;
use model::Command;
use model::Generation;
use model::NodeId;
use model::Power;
use model::VmId;
use tokio::time::MissedTickBehavior;
use vm::guest::Heartbeat;

use crate::hub::Hub;
use crate::ledger::NodeLedger;

/// How often the guests are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks at this node's guests as long as the daemon runs.
pub(crate) async fn note(ledger: Arc<NodeLedger>, hub: Hub) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = ledger.truth.state();
    let mut awaited = of(&state, ledger.node);
    loop {
        ticks.tick().await;
        let now = ledger.truth.state();
        // Thousands of VMs are looked through only when something has changed.
        if !Arc::ptr_eq(&state, &now) {
            awaited = of(&now, ledger.node);
            state = now;
        }
        for (vm, generation) in awaited.iter().copied() {
            let Some(guest) = hub.guest(vm) else { continue };
            let run = hub.status(vm).and_then(|status| status.run);
            if guest.status().borrow().heartbeat != Heartbeat::Ok
                || run.is_none_or(|run| run.info.generation != generation)
            {
                continue;
            }
            let command = Command::VmAnswered { vm, generation, by: ledger.speaker() };
            if let Err(error) = ledger.propose(command).await {
                tracing::debug!(%error, "it is told again");
            }
        }
    }
}

/// The VMs of a node whose guests are waited for, and in which run.
fn of(state: &ClusterState, node: NodeId) -> Vec<(VmId, Generation)> {
    let needed: BTreeSet<String> =
        state.vms.values().flat_map(|vm| &vm.spec.ha.after).map(model::Name::key).collect();
    let awaited = state.vms.values().filter(|vm| {
        vm.owner == node
            && vm.power == Power::Running
            && vm.answered != Some(vm.generation)
            && needed.contains(&vm.name.key())
    });
    awaited.map(|vm| (vm.id, vm.generation)).collect()
}

#[cfg(test)]
mod tests {
    use model::HaSpec;
    use model::Speaker;

    use super::*;
    use crate::ha::world::World;
    use crate::ha::world::name;
    use crate::ha::world::node;
    use crate::ha::world::vm;

    #[test]
    fn only_guests_that_others_wait_for_are_told_of_and_each_run_once() {
        let mut world = World::new(2);
        let after = |n: u128| HaSpec { after: vec![name(&format!("v{n}"))], ..HaSpec::default() };
        world.add(1, node(1), HaSpec::default());
        world.add(2, node(1), after(1));
        world.add(3, node(2), after(1));
        let run = world.vm(1).generation;
        assert_eq!(of(&world.state, node(1)), [(vm(1), run)]);
        assert_eq!(of(&world.state, node(2)), []);
        let told = |node| Command::VmAnswered {
            vm: vm(1),
            generation: run,
            by: Speaker { node, epoch: 0 },
        };
        world.propose(told(node(2))).expect_err("it is not its VM");
        world.ok(told(node(1)));
        assert_eq!(of(&world.state, node(1)), []);
    }
}
