//! Background work, level-triggered: each pass looks at what should be and at what is, and its
//! last result is shown by `muster node show`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use api::types::ReconcilerView;
use model::ClusterState;
use model::Command;
use model::Millis;
use model::NodeId;
use model::OpId;
use model::OpRequest;
use model::UnixMillis;
use model::VmId;
use model::VmPlace;
use model::VmRecord;

use crate::app::new_uuid;
use crate::app::now;
use crate::hub::Hub;
use crate::ledger::NodeLedger;
use crate::ports::SwitchPorts;
use crate::truth::Truth;
use tokio::sync::watch;
use vm::engine::Ability;
use vm::engine::Engine;
use vm::engine::Stray;
use vm::lifecycle::Arrivals;
use vm::lifecycle::remove_copy;

/// How often the host's network is looked at when nothing changes: repairs what others broke.
const NETWORK_EVERY: Duration = Duration::from_secs(30);

/// How often the recycle bin is looked at.
const RECYCLE_EVERY: Duration = Duration::from_secs(600);

/// How often machines of no VM are looked for.
const STRAYS_EVERY: Duration = Duration::from_secs(60);

/// How often copies of other nodes' VMs are looked for.
const COPIES_EVERY: Duration = Duration::from_secs(60);

/// How often an engine that cannot be used is asked again.
const ENGINE_EVERY: Duration = Duration::from_secs(10);

/// How long a view waits for the engine's first answer: a QEMU that is well has given it by then.
const ENGINE_FIRST: Duration = Duration::from_secs(2);

/// The name of what asks the engine.
const ENGINE: &str = "engine";

/// A purge that takes longer has hung.
const PURGE_LIMIT: Millis = Millis::from_secs(300);

/// Machines that are of no VM here, by a state that is surely the newest: what this node knows may be older
/// than a machine that has come here, above all after a restart. Without a majority there are none; the
/// lease ends what has no right to run.
async fn surely_strays(
    found: Vec<Stray>,
    state: impl Fn() -> Arc<ClusterState>,
    asked: impl Future<Output = Result<(), String>>,
    ours: impl Fn(&ClusterState, VmId) -> bool,
) -> (Arc<ClusterState>, Vec<Stray>) {
    let known = state();
    if found.iter().all(|stray| ours(&known, stray.vm)) {
        return (known, Vec::new());
    }
    if let Err(error) = asked.await {
        tracing::info!(%error, "machines of no VM are left alone: nobody says whose they are");
        return (known, Vec::new());
    }
    let newest = state();
    let strays = found.into_iter().filter(|stray| !ours(&newest, stray.vm)).collect();
    (newest, strays)
}

/// Results of the last passes.
#[derive(Clone, Default)]
pub(crate) struct Reconcilers {
    results: Arc<Mutex<BTreeMap<&'static str, (UnixMillis, String)>>>,
    ability: Arc<watch::Sender<Option<Ability>>>,
}

impl Reconcilers {
    pub(crate) fn views(&self) -> Vec<ReconcilerView> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results
            .iter()
            .map(|(name, (at, result))| ReconcilerView {
                name: (*name).to_owned(),
                last_run: Some(*at),
                result: result.clone(),
            })
            .collect()
    }

    /// What the engine could do when it was asked last.
    pub(crate) fn ability(&self) -> Option<Ability> {
        self.ability.borrow().clone()
    }

    /// The same; just after the start of the daemon it waits a moment for the first answer.
    pub(crate) async fn ability_soon(&self) -> Option<Ability> {
        let asked =
            self.results.lock().unwrap_or_else(PoisonError::into_inner).contains_key(ENGINE);
        if asked {
            return self.ability();
        }
        tokio::time::timeout(ENGINE_FIRST, self.known_ability()).await.ok()?
    }

    /// The same, once the engine can do something.
    pub(crate) async fn known_ability(&self) -> Option<Ability> {
        let mut seen = self.ability.subscribe();
        seen.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Asks the engine what it can do, until it can do something: QEMU may be installed later.
    pub(crate) async fn engine(self, engine: Arc<dyn Engine>) {
        loop {
            let result = match engine.ability().await {
                Ok(ability) => {
                    self.ability.send_replace(Some(ability));
                    Ok(())
                }
                Err(error) => Err(crate::ports::chain(&error)),
            };
            self.record(ENGINE, &result);
            if result.is_ok() {
                return;
            }
            tokio::time::sleep(ENGINE_EVERY).await;
        }
    }

    pub(crate) fn record(&self, name: &'static str, result: &Result<(), String>) {
        let words = match result {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.clone(),
        };
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = results.get(name).is_none_or(|(_, old)| *old != words);
        if changed && result.is_err() {
            tracing::warn!(reconciler = name, error = words, "pass failed");
        }
        results.insert(name, (now(), words));
    }

    /// Keeps the host's network as the state says.
    pub(crate) async fn network(self, ports: Arc<SwitchPorts>, truth: Arc<dyn Truth>) {
        let mut states = truth.watch();
        let mut shape = None;
        loop {
            let state = states.borrow_and_update().clone();
            let fresh: Vec<_> = state.networks.values().cloned().collect();
            let due = shape.as_ref() != Some(&fresh);
            if due {
                shape = Some(fresh);
            }
            self.record("network", &ports.reconcile().await);
            // VMs' ports are brought up by their drivers; only networks themselves hurry.
            let quiet = tokio::time::sleep(NETWORK_EVERY);
            tokio::pin!(quiet);
            loop {
                tokio::select! {
                    () = &mut quiet => break,
                    changed = states.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let networks: Vec<_> =
                            states.borrow_and_update().networks.values().cloned().collect();
                        if shape.as_ref() != Some(&networks) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Removes VMs for good that were long enough in the recycle bin.
    pub(crate) async fn recycle(self, ledger: Arc<NodeLedger>, keep: Duration) {
        let keep = Millis::new(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        loop {
            let mut result = Ok(());
            let state = ledger.truth.state();
            for vm in state.vms.values().filter(|vm| vm.busy().is_none()) {
                if vm.deleted.is_none_or(|deleted| deleted.plus(keep) > now()) {
                    continue;
                }
                let op = OpId::new(new_uuid());
                let request = Box::new(OpRequest::VmPurge { vm: vm.id });
                let begin = Command::BeginOp { op, request, limit: PURGE_LIMIT };
                if let Err(error) = ledger.propose(begin).await {
                    result = Err(format!("{} cannot be purged: {error}", vm.name));
                }
            }
            self.record("recycle bin", &result);
            tokio::time::sleep(RECYCLE_EVERY).await;
        }
    }

    /// Removes what moves of storage have left on this node's own disks of VMs that are another
    /// node's by now; of its own, their drivers do it.
    pub(crate) async fn copies(
        self,
        ledger: Arc<NodeLedger>,
        hub: Hub,
        vms_dir: PathBuf,
        arrivals: Arc<Arrivals>,
    ) {
        let here = VmPlace::Node { node: ledger.node };
        loop {
            let mut result = Ok(());
            let left = |state: &ClusterState, vm: &VmRecord| {
                vm.owner != ledger.node
                    && vm.copies.contains(&here)
                    && !hub.has(vm.id)
                    && !state.copy_in_use(vm, here)
            };
            let mut state = ledger.truth.state();
            if state.vms.values().any(|vm| left(&state, vm)) {
                // By what this node had on its disk they may be copies that are the VM's own by now.
                if let Err(error) = ledger.truth.barrier().await {
                    self.record("copies", &Err(error.to_string()));
                    tokio::time::sleep(COPIES_EVERY).await;
                    continue;
                }
                state = ledger.truth.state();
            }
            for vm in state.vms.values().filter(|vm| left(&state, vm)) {
                // Looked at again once no machine can be made of it here: it may be coming by now.
                let Some(_kept_out) = arrivals.keep_out(vm.id) else { continue };
                let now = ledger.truth.state();
                let Some(vm) = now.vms.get(&vm.id).filter(|vm| left(&now, vm)) else { continue };
                let (dir, id, run) = (vms_dir.clone(), vm.id, vm.generation);
                let removed = tokio::task::spawn_blocking(move || remove_copy(&dir, id, run)).await;
                let removed = removed.map_err(std::io::Error::other).flatten();
                let gone = match removed.map_err(|error| error.to_string()) {
                    Ok(()) => {
                        let command = Command::VmCopyGone { vm: vm.id, place: here };
                        ledger.propose(command).await.map_err(|error| error.to_string())
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = gone {
                    result = Err(format!("an old copy of {} stays here: {error}", vm.name));
                }
            }
            self.record("copies", &result);
            tokio::time::sleep(COPIES_EVERY).await;
        }
    }

    /// Ends machines that no VM of the state stands for. One whose VM still has its directory is
    /// left alone and shown: then it is the state that was lost, and killing guests would make it
    /// worse.
    pub(crate) async fn strays(
        self,
        node: NodeId,
        engine: Arc<dyn Engine>,
        truth: Arc<dyn Truth>,
        vms_dir: PathBuf,
        arrivals: Arc<Arrivals>,
    ) {
        loop {
            let result = match engine.strays().await {
                Ok(strays) => {
                    let ours = |state: &ClusterState, vm| {
                        arrivals.has(vm) || state.vms.get(&vm).is_some_and(|vm| vm.owner == node)
                    };
                    let asked = async { truth.barrier().await.map_err(|error| error.to_string()) };
                    let (state, strays) =
                        surely_strays(strays, || truth.state(), asked, ours).await;
                    let mut result = Ok(());
                    for stray in &strays {
                        let known = state.vms.contains_key(&stray.vm);
                        if !known && vms_dir.join(stray.vm.to_string()).exists() {
                            result = Err(format!(
                                "machine {} runs and the state does not know it; its files are \
                                 there",
                                stray.vm
                            ));
                            continue;
                        }
                        tracing::warn!(vm = %stray.vm, traces = ?stray.traces, "machine of no VM");
                        if let Err(error) = engine.reap(stray.vm).await {
                            result = Err(format!("machine {} stays: {error}", stray.vm));
                        }
                    }
                    result
                }
                Err(error) => Err(error.to_string()),
            };
            self.record("strays", &result);
            tokio::time::sleep(STRAYS_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn only_the_newest_state_says_that_a_machine_is_of_no_vm() {
        let vm = |n| VmId::new(uuid::Uuid::from_u128(n));
        let stray = |n| Stray { vm: vm(n), alive: true, generation: None, traces: Vec::new() };
        let found = || vec![stray(1), stray(2)];
        // By what was on the disk neither is ours; by what a majority knows the first one is.
        let newest = Cell::new(false);
        let state = || Arc::<ClusterState>::default();
        let ours = |_: &ClusterState, it| newest.get() && it == vm(1);
        let nobody = async { Err("no majority".to_owned()) };
        assert!(surely_strays(found(), state, nobody, ours).await.1.is_empty());
        let asked = async {
            newest.set(true);
            Ok(())
        };
        let (_, strays) = surely_strays(found(), state, asked, ours).await;
        assert_eq!(strays.iter().map(|it| it.vm).collect::<Vec<_>>(), [vm(2)]);
    }
}
