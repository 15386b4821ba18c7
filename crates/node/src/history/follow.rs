//! The task that measures each second, and brings what it measured to disk now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use model::VmId;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use vm::engine::Machine;

use super::Object;
use super::probe;
use super::probe::Look;
use super::probe::Traffic;
use crate::app::App;
use crate::app::now;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Machines that are looked at in a second; where there are more, each has its turn less often. A look
/// reads seven small files: this many cost some hundredths of a processor.
const LOOKS_MAX: usize = 512;

/// Seconds between two writes to disk, and between two questions to guests for what they need.
const FLUSH_S: u64 = 10;

/// Seconds between two looks for histories of machines that are no more.
const TIDY_S: u64 = 3_600;

/// How long an engine may take to say what its guest needs.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Engines that are asked at once.
const ASKS_MAX: usize = 16;

/// Work that goes on beside: one piece at a time, so that a disk or an engine that hangs holds up no
/// measuring and piles up nothing.
#[derive(Default)]
struct Beside<T>(Option<JoinHandle<T>>);

impl<T: Send + 'static> Beside<T> {
    fn is_free(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn blocking(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        if self.is_free() {
            self.0 = Some(tokio::task::spawn_blocking(work));
        }
    }

    /// What was done, once.
    async fn done(&mut self) -> Option<T> {
        if self.0.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.0.take()?.await.ok();
        }
        None
    }
}

/// Measures until the daemon ends.
pub(crate) async fn follow(app: Arc<App>) {
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut disk: Beside<()> = Beside::default();
    let mut asking: Beside<HashMap<VmId, u64>> = Beside::default();
    let mut demands: HashMap<VmId, u64> = HashMap::new();
    let mut before: HashMap<Object, Look> = HashMap::new();
    // The first look for what is left of others is at the start.
    let mut seconds = 0_u64;
    loop {
        timer.tick().await;
        before = look(&app, seconds, before, &demands).await;
        if let Some(told) = asking.done().await {
            demands = told;
        }
        if seconds.is_multiple_of(FLUSH_S) && asking.is_free() {
            asking.0 = Some(tokio::spawn(ask(app.clone())));
        }
        if seconds.is_multiple_of(TIDY_S) && disk.is_free() {
            let app = app.clone();
            disk.blocking(move || {
                let state = app.truth.state();
                // Before the others are heard, an empty state says nothing.
                if !state.vms.is_empty() || app.truth.metrics().borrow().leads() {
                    app.history.tidy(|vm| state.vms.contains_key(&vm));
                }
            });
        } else if seconds.is_multiple_of(FLUSH_S) {
            let app = app.clone();
            disk.blocking(move || app.history.flush());
        }
        seconds += 1;
    }
}

/// Looks at all that is due, notes what grew since the last look, and gives what was seen.
async fn look(
    app: &Arc<App>,
    turn: u64,
    mut before: HashMap<Object, Look>,
    demands: &HashMap<VmId, u64>,
) -> HashMap<Object, Look> {
    let mut running = app.hub.running();
    running.sort_unstable_by_key(|(vm, _)| *vm);
    let lives: std::collections::HashSet<VmId> = running.iter().map(|(vm, _)| *vm).collect();
    let due = due(&running, turn);
    let state = app.truth.state();
    let machines: Vec<(VmId, u32, Vec<String>, Option<u64>)> = due
        .iter()
        .map(|(vm, pid)| {
            let nics = state.vms.get(vm).map(|it| it.spec.nics.iter()).into_iter().flatten();
            let taps = nics.filter_map(|nic| app.samples.tap(nic.id)).collect();
            (*vm, *pid, taps, demands.get(vm).copied())
        })
        .collect();
    let promised = crate::views::promised(&state, app.node).get();
    let seen = tokio::task::spawn_blocking(move || {
        let traffic = Traffic::read();
        let look = |(vm, pid, taps, demand): &(VmId, u32, Vec<String>, Option<u64>)| {
            Some((Object::Vm(*vm), probe::process(*pid, taps, &traffic, *demand)?))
        };
        let mut seen: Vec<(Object, Look)> = machines.iter().filter_map(look).collect();
        seen.push((Object::Node, probe::host(&traffic, promised)));
        seen
    });
    let second = now().get() / 1_000;
    before.retain(|object, _| {
        matches!(object, Object::Vm(vm) if lives.contains(vm)) || *object == Object::Node
    });
    for (object, look) in seen.await.unwrap_or_default() {
        if let Some(last) = before.insert(object, look) {
            app.history.note(object, second, probe::values(&last, &look));
        }
    }
    before
}

/// Whose turn it is: all, or a part of a great many.
fn due(running: &[(VmId, u32)], turn: u64) -> &[(VmId, u32)] {
    let parts = running.len().div_ceil(LOOKS_MAX).max(1);
    let part = usize::try_from(turn).unwrap_or_default() % parts;
    let first = part * LOOKS_MAX;
    &running[first..running.len().min(first + LOOKS_MAX)]
}

/// Asks the guests' balloon drivers how much memory they need.
async fn ask(app: Arc<App>) -> HashMap<VmId, u64> {
    let running = app.hub.running().into_iter();
    let machines = running.filter_map(|(vm, _)| Some((vm, app.hub.machine(vm)?)));
    let asked: Vec<_> = machines.map(|(vm, machine)| demand(vm, machine)).collect();
    let told: Vec<_> = futures::stream::iter(asked).buffer_unordered(ASKS_MAX).collect().await;
    told.into_iter().flatten().collect()
}

/// What a guest says that it uses: not to be trusted, and only shown.
async fn demand(vm: VmId, machine: Arc<dyn Machine>) -> Option<(VmId, u64)> {
    let stats = tokio::time::timeout(ASK_MAX, machine.balloon_stats()).await.ok()?.ok()?;
    Some((vm, stats.total?.saturating_sub(stats.available?).get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_great_many_machines_take_turns_and_none_is_left_out() {
        let many = |count: u128| -> Vec<(VmId, u32)> {
            (0..count).map(|n| (VmId::new(uuid::Uuid::from_u128(n)), 1)).collect()
        };
        assert!(due(&[], 5).is_empty());
        assert_eq!(due(&many(512), 3).len(), 512);
        let all = many(1_300);
        let mut seen: Vec<VmId> = (7..10).flat_map(|turn| due(&all, turn)).map(|it| it.0).collect();
        seen.sort_unstable();
        assert_eq!(seen, all.iter().map(|it| it.0).collect::<Vec<_>>());
    }
}
