//! Moves machines apart that wait for each other (FEATURES.md area 5, load balancing).
//!
//! ```text
//!   each node: figures of its machines (history) --LOADS--> whoever asks: placement::balance (pure)
//!                                                                |  at most one machine of each node
//!                                                                v
//!                     its owner: what would its migration take? --Outlook--> one that does not converge stays
//!                                                                |
//!                     the leader, if it is to be done by itself: the same machine in several looks
//!                                                                v
//!                                                     VmMigrate, which gives up at its limit
//! ```
//!
//! Nothing depends on it: what it does not know (a node that does not answer, a machine that has just come)
//! it leaves alone, and in trouble it does nothing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::ha::BalanceView;
use api::ha::NodeWaitsView;
use api::ha::ReliefView;
use api::ha::UnplacedView;
use api::history::Figure;
use futures::future::join_all;
use model::Actor;
use model::AtLimit;
use model::ClusterState;
use model::MigrateForecast;
use model::MigratePolicy;
use model::Millis;
use model::Name;
use model::NodeId;
use model::OpRequest;
use model::VmId;
use peer::Method;
use placement::Load;
use placement::MachineLoad;
use placement::Relief;
use placement::Short;
use serde::Deserialize;
use serde::Serialize;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use crate::app::App;
use crate::app::now;
use crate::history::Object;
use crate::history::Slot;

/// Seconds that are looked back.
const WINDOW_S: u64 = 30;

/// Seconds of them that must have been measured, or a machine is taken for one that does not wait.
const MEASURED_MIN: usize = 5;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// In how many looks, one after the other, the same machine must be the one to move: what passes by
/// itself within two minutes needs no migration.
const LOOKS: usize = 4;

/// How long a machine stays where it is after it was moved, or could not be.
const REST: Duration = Duration::from_secs(30 * 60);

/// Machines that are tried, one after the other, where the best ones cannot be moved.
const TRIES: usize = 8;

/// How long a node is waited for.
const ASK_MAX: Duration = Duration::from_secs(3);

/// How long a migration may take; it gives up long before if its guest is too busy.
const MIGRATE_MAX: Millis = Millis::from_secs(3_600);

/// What a node tells of its machines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    processors: u32,
    machines: Vec<ToldMachine>,
}

/// In thousandths, as [`MachineLoad`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ToldMachine {
    vm: VmId,
    cpu: u32,
    cpu_waits: u32,
    memory_waits: u32,
}

impl From<Told> for Load {
    fn from(told: Told) -> Self {
        let load = |it: ToldMachine| {
            let ToldMachine { cpu, cpu_waits, memory_waits, .. } = it;
            MachineLoad { cpu, cpu_waits, memory_waits }
        };
        Self {
            processors: told.processors.max(1),
            machines: told.machines.into_iter().map(|it| (it.vm, load(it))).collect(),
        }
    }
}

/// What this node's machines did lately.
pub(crate) async fn own(app: &App) -> Told {
    let state = app.truth.state();
    let processors = state.nodes.get(&app.node).map_or(1, |node| node.capacity.cpus);
    let (history, running) = (app.history.clone(), app.hub.running());
    let second = now().get() / 1_000;
    let read = tokio::task::spawn_blocking(move || {
        let windows = second.saturating_sub(WINDOW_S)..second;
        let look = |vm: VmId| {
            let slots = history.read(Object::Vm(vm), 0, windows.clone()).unwrap_or_default();
            lately(vm, &slots)
        };
        running.into_iter().map(|(vm, _)| look(vm)).collect()
    });
    // A disk that hangs gives no figures.
    let read = tokio::time::timeout(ASK_MAX, read).await;
    Told { processors, machines: read.ok().and_then(Result::ok).unwrap_or_default() }
}

/// What one did in the seconds that were measured.
fn lately(vm: VmId, slots: &[Option<Slot>]) -> ToldMachine {
    let mean = |figure: Figure| -> (usize, u32) {
        let place = Figure::ALL.iter().position(|it| *it == figure).unwrap_or_default();
        let values: Vec<f32> = slots
            .iter()
            .filter_map(|slot| Some(slot.as_ref()?.mean[place]))
            .filter(|value| value.is_finite())
            .collect();
        let sum: f32 = values.iter().map(|value| value * 10.0).sum();
        #[expect(clippy::cast_precision_loss, reason = "a number of seconds")]
        let mean = sum / values.len().max(1) as f32;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of something larger gives the largest number"
        )]
        let mean = mean.max(0.0) as u32;
        (values.len(), mean)
    };
    let waits = |figure| match mean(figure) {
        (measured, waits) if measured >= MEASURED_MIN => waits.min(1_000),
        _ => 0,
    };
    ToldMachine {
        vm,
        cpu: mean(Figure::CpuPercent).1,
        cpu_waits: waits(Figure::CpuPressure),
        memory_waits: waits(Figure::MemoryPressure),
    }
}

/// What was drawn up: what nodes told, what to move, and what cannot be moved.
struct Drawn {
    loads: BTreeMap<NodeId, Load>,
    reliefs: Vec<(Relief, MigrateForecast)>,
    stay: Vec<(VmId, String)>,
}

/// Asks all nodes, and plans. Machines of `resting` are left alone.
async fn draw(app: &App, state: &ClusterState, resting: &BTreeSet<VmId>) -> Drawn {
    let fit = app.ha.fit(state);
    let asks = fit.iter().map(|node| async move { Some((*node, told(app, *node).await?.into())) });
    let loads: BTreeMap<NodeId, Load> = join_all(asks).await.into_iter().flatten().collect();
    let mut drawn = Drawn { loads, reliefs: Vec::new(), stay: Vec::new() };
    let mut passed: BTreeSet<VmId> = resting.clone();
    let mut known: BTreeMap<(VmId, NodeId), MigrateForecast> = BTreeMap::new();
    for _ in 0..TRIES {
        let reliefs = placement::balance(state, &fit, &drawn.loads, &passed);
        let open = reliefs.iter().filter(|it| !known.contains_key(&(it.vm, it.to)));
        let moves: Vec<_> = open.map(|it| (it.from, it.vm, it.to)).collect();
        let mut all_may_go = true;
        for (vm, outlook) in crate::migrate::expected(app, moves.clone()).await {
            let Some((_, _, to)) = moves.iter().find(|(_, moved, _)| *moved == vm) else {
                continue;
            };
            match outlook.forecast {
                Some(forecast) if forecast.converges => {
                    known.insert((vm, *to), forecast);
                    continue;
                }
                Some(_) => drawn.stay.push((vm, TOO_BUSY.to_owned())),
                None => drawn.stay.push((vm, outlook.why)),
            }
            passed.insert(vm);
            all_may_go = false;
        }
        if all_may_go {
            let forecast = |it: &Relief| known.get(&(it.vm, it.to)).copied();
            drawn.reliefs =
                reliefs.into_iter().filter_map(|it| Some((it, forecast(&it)?))).collect();
            break;
        }
    }
    drawn
}

const TOO_BUSY: &str = "it changes its memory faster than the way carries it";

async fn told(app: &App, node: NodeId) -> Option<Told> {
    if node == app.node {
        return Some(own(app).await);
    }
    app.peers.ask(node, Method::LOADS, &(), ASK_MAX).await.ok()
}

/// Where machines wait, and what would be moved for it.
pub(crate) async fn view(app: &App) -> BalanceView {
    let state = app.truth.state();
    let drawn = draw(app, &state, &BTreeSet::new()).await;
    let node = |id: NodeId| -> Option<Name> { Some(state.nodes.get(&id)?.name.clone()) };
    let vm = |id: VmId| -> Option<Name> { Some(state.vms.get(&id)?.name.clone()) };
    let mut nodes: Vec<NodeWaitsView> = state
        .nodes
        .values()
        .map(|record| node_view(record.name.clone(), drawn.loads.get(&record.id)))
        .collect();
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let steps = drawn.reliefs.iter().filter_map(|(relief, predicted)| {
        Some(ReliefView {
            id: relief.vm,
            vm: vm(relief.vm)?,
            from: node(relief.from)?,
            to: node(relief.to)?,
            why: why(relief),
            predicted: *predicted,
        })
    });
    let stay = drawn
        .stay
        .iter()
        .filter_map(|(id, why)| Some(UnplacedView { vm: vm(*id)?, why: why.clone() }));
    BalanceView { automatic: state.balance, nodes, steps: steps.collect(), stay: stay.collect() }
}

fn node_view(node: Name, load: Option<&Load>) -> NodeWaitsView {
    let of = |figure: &dyn Fn(&Load) -> u64| load.map_or(0, figure);
    NodeWaitsView {
        node,
        told: load.is_some(),
        vms: of(&|load| load.machines.len() as u64),
        cpu_percent: of(&|load| load.used() / 10),
        cpu_waits_percent: of(&|load| u64::from(load.cpu_waits() / 10)),
        memory_waits_percent: of(&|load| u64::from(load.memory_waits() / 10)),
    }
}

/// Why, in words.
fn why(relief: &Relief) -> String {
    let (what, used) = match relief.short {
        Short::Processors => ("a processor", "processors"),
        Short::Memory => ("memory", "memory"),
    };
    format!(
        "a machine there waits for {what} {} % of the time; {} % of its {used} are used, and at most {} % of \
         either node's would be then",
        relief.waits / 10,
        relief.used_now / 10,
        relief.used_then / 10
    )
}

/// What the leader has seen in its last looks.
#[derive(Debug, Default)]
struct Streak {
    /// The machine that was the first to move, and in how many looks.
    wish: Option<(VmId, usize)>,
    /// Machines that were moved, or were to be.
    rest: BTreeMap<VmId, Instant>,
}

impl Streak {
    /// Machines that stay where they are for now.
    fn resting(&mut self, now: Instant) -> BTreeSet<VmId> {
        self.rest.retain(|_, since| now.duration_since(*since) < REST);
        self.rest.keys().copied().collect()
    }

    /// Notes a look, and gives the machine that is to be moved.
    fn look(&mut self, now: Instant, reliefs: &[Relief]) -> Option<Relief> {
        let Some(first) = reliefs.first() else {
            self.wish = None;
            return None;
        };
        let seen = match self.wish {
            Some((vm, seen)) if reliefs.iter().any(|relief| relief.vm == vm) => (vm, seen + 1),
            _ => (first.vm, 1),
        };
        self.wish = Some(seen);
        if seen.1 < LOOKS {
            return None;
        }
        self.wish = None;
        self.rest.insert(seen.0, now);
        reliefs.iter().find(|relief| relief.vm == seen.0).copied()
    }
}

/// Whether all is well, and nothing is on its way.
fn is_calm(state: &ClusterState, fit: &BTreeSet<NodeId>) -> bool {
    let moves = state.vms.values().any(|vm| {
        vm.moving.is_some()
            || vm.busy().and_then(|op| state.ops.get(&op)).is_some_and(|op| {
                matches!(op.request, OpRequest::VmMigrate { .. } | OpRequest::VmMoveStorage { .. })
            })
    });
    !moves && fit.len() == state.nodes.len()
}

/// Does by itself what `muster cluster balance` does, while this node leads and it is wanted.
pub(crate) async fn follow(app: Arc<App>) {
    let metrics = app.truth.metrics();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut streak = Streak::default();
    loop {
        ticks.tick().await;
        let state = app.truth.state();
        let leads = metrics.borrow().leads();
        if !state.balance || !leads || !is_calm(&state, &app.ha.fit(&state)) {
            streak.wish = None;
            continue;
        }
        let drawn = draw(&app, &state, &streak.resting(Instant::now())).await;
        let reliefs: Vec<Relief> = drawn.reliefs.into_iter().map(|(relief, _)| relief).collect();
        if let Some(relief) = streak.look(Instant::now(), &reliefs) {
            begin(&app, &relief).await;
        }
    }
}

/// Begins a migration that gives up rather than let its guest stand.
async fn begin(app: &App, relief: &Relief) {
    let Some(vm) = app.truth.state().vms.get(&relief.vm).cloned() else { return };
    let policy = MigratePolicy { at_limit: AtLimit::Cancel, ..vm.spec.migration };
    let request = OpRequest::VmMigrate { vm: vm.id, to: relief.to, policy, storage: None };
    tracing::info!(vm = %vm.name, why = why(relief), "a machine is moved to where it does not wait");
    if let Err(error) = app.begin(&Actor::new("balance"), request, MIGRATE_MAX).await {
        tracing::info!(vm = %vm.name, %error, "it stays");
    }
}

#[cfg(test)]
mod tests {
    use model::HaSpec;

    use super::*;
    use crate::ha::world::World;
    use crate::ha::world::node;
    use crate::ha::world::vm;

    fn relief(n: u128) -> Relief {
        Relief {
            vm: vm(n),
            from: node(1),
            to: node(2),
            short: Short::Processors,
            waits: 431,
            used_now: 980,
            used_then: 520,
        }
    }

    #[tokio::test]
    async fn only_what_is_wanted_for_two_minutes_is_moved_and_then_it_rests() {
        let (mut streak, begun) = (Streak::default(), Instant::now());
        let looks = [vec![relief(1)], vec![relief(1)], vec![], vec![relief(1)], vec![relief(2)]];
        assert!(looks.iter().all(|reliefs| streak.look(begun, reliefs).is_none()));
        // Another node's machine may come first in between.
        for reliefs in [&[relief(3), relief(2)][..], &[relief(2)]] {
            assert_eq!(streak.look(begun, reliefs), None);
        }
        assert_eq!(streak.look(begun, &[relief(2)]), Some(relief(2)));
        assert_eq!(streak.resting(begun), BTreeSet::from([vm(2)]));
        assert_eq!(streak.look(begun, &[relief(3)]), None, "all begins anew");
        assert!(streak.resting(begun + REST).is_empty());
    }

    #[test]
    fn in_trouble_and_while_others_move_nothing_is_begun() {
        let mut world = World::new(2);
        world.add(1, node(1), HaSpec::default());
        let both = BTreeSet::from([node(1), node(2)]);
        assert!(is_calm(&world.state, &both));
        assert!(!is_calm(&world.state, &BTreeSet::from([node(1)])));
        let policy = MigratePolicy::default();
        world.begin(OpRequest::VmMigrate { vm: vm(1), to: node(2), policy, storage: None });
        assert!(!is_calm(&world.state, &both));
    }

    #[test]
    fn what_was_measured_of_a_machine_is_told_and_what_was_not_is_no_wait() {
        let slot = |cpu: f32, waits: f32| {
            let mut mean = [f32::NAN; crate::history::FIGURES];
            mean[0] = cpu;
            mean[7] = waits;
            Some(Slot { mean, peak: mean })
        };
        let slots = vec![None, slot(90.0, 40.0), slot(110.0, 60.0), slot(100.0, f32::NAN)];
        let few = lately(vm(1), &slots);
        assert_eq!((few.cpu, few.cpu_waits, few.memory_waits), (1_000, 0, 0), "two are too few");
        let many: Vec<_> = (0..MEASURED_MIN).map(|_| slot(100.0, 50.0)).collect();
        let many = lately(vm(1), &many);
        assert_eq!((many.cpu, many.cpu_waits, many.memory_waits), (1_000, 500, 0));
        let told = Told { processors: 0, machines: vec![many] };
        let json = serde_json::to_string(&told).unwrap();
        let load = Load::from(serde_json::from_str::<Told>(&json).unwrap());
        assert_eq!((load.processors, load.used(), load.cpu_waits()), (1, 1_000, 500));
    }

    #[test]
    fn why_is_said_in_words() {
        assert_eq!(
            why(&relief(1)),
            "a machine there waits for a processor 43 % of the time; 98 % of its processors are used, and at \
             most 52 % of either node's would be then"
        );
    }
}
