//! Whether a VM can be migrated, before a byte moves: yes, or no with every reason.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use api::migrate::CheckView;
use model::Bytes;
use model::ClusterState;
use model::Name;
use model::NodeId;
use model::Power;
use model::StorageTarget;
use model::UnixMillis;
use model::VmId;
use model::VmPlace;
use model::VmRecord;
use model::VolumeId;
use model::Way;
use model::machine_version;
use peer::Method;
use serde::Deserialize;
use serde::Serialize;
use vm::engine::Ability;
use vm::engine::Accel;
use vm::engine::EngineError;

use super::ASK_MAX;
use super::Answer;
use super::Question;
use super::along;
use crate::app::App;
use crate::app::now;
use crate::dataplane::words;
use crate::platform;

/// How far the clocks of two nodes may be apart (FEATURES.md D1), beside what the question took.
const CLOCKS_MAX_MS: u64 = 100;

/// What a target says of itself.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    checks: Vec<CheckView>,
    /// What carries processors out there.
    accel: Option<Accel>,
    /// Its clock.
    now: UnixMillis,
}

pub(super) fn check(what: &str, result: Result<String, (String, &str)>) -> CheckView {
    let (ok, detail, hint) = match result {
        Ok(detail) => (true, detail, String::new()),
        Err((detail, hint)) => (false, detail, hint.to_owned()),
    };
    CheckView { what: what.to_owned(), ok, detail, hint }
}

/// Every reason for and against a migration of a VM, asked of whoever can tell.
pub(crate) async fn plan(
    app: &App,
    vm: &VmRecord,
    to: NodeId,
    storage: Option<VmPlace>,
) -> Vec<CheckView> {
    if vm.owner == app.node {
        return as_owner(app, vm.id, to, storage).await;
    }
    let question = Question::Plan { vm: vm.id, to, storage };
    match app.peers.ask(vm.owner, Method::MIGRATE, &question, ASK_MAX * 2).await {
        Ok(Answer::Planned { checks }) => checks,
        Ok(_) => vec![not_understood("its node")],
        Err(error) => {
            vec![check("source", Err((error.to_string(), "see: muster cluster status")))]
        }
    }
}

pub(super) fn not_understood(who: &str) -> CheckView {
    let hint = "give all nodes the same version of Muster";
    check("version", Err((format!("{who} does not understand"), hint)))
}

/// The same for a VM that this node owns.
pub(super) async fn as_owner(
    app: &App,
    vm: VmId,
    to: NodeId,
    place: Option<VmPlace>,
) -> Vec<CheckView> {
    let state = app.truth.state();
    let Some(vm) = state.vms.get(&vm) else {
        let missing = ("its node does not know it".to_owned(), "try it again");
        return vec![check("source", Err(missing))];
    };
    let mut checks =
        vec![machine(app, vm, place.is_some()).await, way(&state.migration_ways(app.node, to))];
    let storage = match place {
        Some(place) => match along::as_owner(app, &state, vm, to, place).await {
            (found, Some(storage)) => {
                checks.push(found);
                Some(storage)
            }
            (found, None) => {
                checks.push(found);
                return checks;
            }
        },
        None => None,
    };
    let asked = Instant::now();
    let question = Question::Check { vm: vm.id, storage };
    let answer = app.peers.ask(to, Method::MIGRATE, &question, ASK_MAX).await;
    let name = state.nodes.get(&to).map_or_else(|| to.to_string(), |node| node.name.to_string());
    match answer {
        Ok(Answer::Found { found }) => {
            checks.push(clocks(&found, asked.elapsed()));
            if !is_still(vm, place.is_some()) {
                checks.push(accelerator(app, vm, &found));
            }
            checks.extend(found.checks);
        }
        Ok(_) => checks.push(not_understood(&name)),
        Err(error) => checks.push(check(
            "target",
            Err((
                format!("{name} does not answer: {}", error.problem()),
                "see the nodes: muster cluster status",
            )),
        )),
    }
    checks
}

/// Whether it goes as files, without a process.
fn is_still(vm: &VmRecord, with_files: bool) -> bool {
    with_files && matches!(vm.power, Power::Off | Power::Saved)
}

async fn machine(app: &App, vm: &VmRecord, with_files: bool) -> CheckView {
    if is_still(vm, with_files) {
        return check("machine", Ok("it does not run, and goes as it is".to_owned()));
    }
    let off = "start it, or move it as it is: muster vm move";
    let Some(machine) = app.hub.machine(vm.id) else {
        return check("machine", Err((format!("{} does not run", vm.name), off)));
    };
    let blockers = match machine.migrate_blockers().await {
        Ok(blockers) => blockers,
        Err(error) => vec![error.to_string()],
    };
    match blockers.is_empty() {
        true => check("machine", Ok("nothing in it keeps it here".to_owned())),
        false => {
            let hint = "take away what is named, or move it saved: muster vm move";
            check("machine", Err((blockers.join("; "), hint)))
        }
    }
}

/// Which network it would go over.
fn way(ways: &[Way]) -> CheckView {
    match ways.first() {
        Some(Way { address, network: Some(name) }) => {
            check("way", Ok(format!("over {name} ({})", address.ip())))
        }
        Some(Way { address, network: None }) => check("way", Ok(format!("over {}", address.ip()))),
        None => check(
            "way",
            Err((
                "no network with the migration role leads there, and no other may be used"
                    .to_owned(),
                "see them: muster cluster network list; let others be used: muster cluster network \
                 strict off",
            )),
        ),
    }
}

fn clocks(found: &Found, took: Duration) -> CheckView {
    let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let apart = now().get().abs_diff(found.now.get());
    match apart <= CLOCKS_MAX_MS.saturating_add(took) {
        true => check("clocks", Ok(format!("at most {apart} ms apart"))),
        false => check(
            "clocks",
            Err((format!("{apart} ms apart"), "let both hosts keep time (chrony, ntpd)")),
        ),
    }
}

fn accelerator(app: &App, vm: &VmRecord, found: &Found) -> CheckView {
    let ours = app.hub.status(vm.id).and_then(|status| status.run).map(|run| run.info.accel);
    match (ours, found.accel) {
        (Some(ours), Some(theirs)) if ours == theirs => {
            check("accelerator", Ok(format!("{ours:?} on both").to_lowercase()))
        }
        (ours, theirs) => check(
            "accelerator",
            Err((
                format!("here {ours:?}, there {theirs:?}").to_lowercase(),
                "move it off or saved, or mend KVM on one of them: muster node show",
            )),
        ),
    }
}

/// What this node says as the target.
pub(super) async fn as_target(
    app: &App,
    vm: VmId,
    storage: Option<(StorageTarget, Bytes)>,
) -> Found {
    // What the source knows may not have come here yet; a check that is a moment old is one.
    let _ = app.truth.barrier().await;
    let state = app.truth.state();
    let Some(vm) = state.vms.get(&vm) else {
        let missing = ("the target does not know it".to_owned(), "try it again");
        return Found { checks: vec![check("target", Err(missing))], accel: None, now: now() };
    };
    let ability = app.engine.ability().await;
    let engine = match &ability {
        Ok(ability) => {
            machine_type(&vm.pinned.machine_type, &ability.machine_virtio, &ability.engine)
        }
        Err(error) => check("engine", Err((error.to_string(), "see: muster node show"))),
    };
    let mut checks = vec![engine];
    if !is_still(vm, storage.is_some()) {
        checks.push(place(&state, app.node, vm));
    }
    // One that is off finds its processors anew.
    if vm.power != Power::Off {
        checks.push(processors(&ability, vm));
    }
    match storage {
        Some((target, needed)) => checks.extend(along::as_target(app, vm, &target, needed).await),
        None => checks.push(volume(app, vm).await),
    }
    checks.push(networks(app, &state, vm));
    Found { checks, accel: ability.ok().map(|ability| ability.accel), now: now() }
}

/// Room, rules, mode: what the planner says of this node alone.
fn place(state: &ClusterState, node: NodeId, vm: &Arc<VmRecord>) -> CheckView {
    match placement::choose(state, &BTreeSet::from([node]), vm) {
        Ok(_) => check("place", Ok("room, rules and mode allow it".to_owned())),
        Err(problem) => {
            let hint = "see what nodes have: muster node list";
            check("place", Err((problem.words().to_owned(), hint)))
        }
    }
}

fn machine_type(wanted: &str, newest: &str, engine: &str) -> CheckView {
    let fits = machine_version(wanted)
        .zip(machine_version(newest))
        .is_some_and(|(ours, theirs)| ours <= theirs);
    match fits {
        true => check("engine", Ok(format!("{engine} knows {wanted}"))),
        false => check(
            "engine",
            Err((format!("{engine} does not know {wanted}"), "give that node a newer QEMU")),
        ),
    }
}

/// Whether this host can give the guest what it has found in its processors. What is not known is
/// left to QEMU, which does not start with processors that it cannot give.
fn processors(ability: &Result<Ability, EngineError>, vm: &VmRecord) -> CheckView {
    let platform = ability.as_ref().ok().and_then(platform::of);
    let (Some(platform), Some(cpu)) = (platform, vm.cpu.as_ref()) else {
        return check("processors", Ok("not known; QEMU refuses what it cannot give".to_owned()));
    };
    match platform.fits(cpu) {
        Ok(()) => {
            let count = cpu.features.len();
            check("processors", Ok(format!("{} and {count} features are there", cpu.base)))
        }
        Err(why) => {
            let hint =
                "turn the VM off and on: it gets what all nodes have; see: muster cluster cpu";
            check("processors", Err((format!("it {why}"), hint)))
        }
    }
}

async fn volume(app: &App, vm: &VmRecord) -> CheckView {
    match (vm.volume, app.volumes.ready(vm)) {
        (None, _) => check(
            "volume",
            Err((
                "it lies on its node's own disks".to_owned(),
                "let them come with it: muster vm migrate --with-storage",
            )),
        ),
        (Some(volume), Ok(())) if on_lun(app, volume) => on_its_lun(app, volume).await,
        (Some(_), Ok(())) => check("volume", Ok("its volume is there".to_owned())),
        (Some(_), Err(error)) => {
            check("volume", Err((error.to_string(), "see on that node: muster volume list")))
        }
    }
}

/// How this node reaches a volume on a LUN. One that has it through the coordinator only may receive
/// machines; whoever asks is told that they will be slower.
async fn on_its_lun(app: &App, volume: VolumeId) -> CheckView {
    let told = app.luns.told().await.into_iter().find(|it| it.volume == volume);
    let shown = told.and_then(|it| it.shown).filter(|it| it.mounted);
    match shown.map(|it| it.way) {
        Some(words::Way::Direct | words::Way::FileRedirected) => {
            check("volume", Ok("its volume is there, on a path of its own to the LUN".to_owned()))
        }
        Some(words::Way::NoPath | words::Way::NoKey) => {
            let warning = "its volume is there, but through its coordinator only (warning: slower); \
                         see: muster volume show";
            check("volume", Ok(warning.to_owned()))
        }
        Some(words::Way::Waiting) => check(
            "volume",
            Err((
                "its volume has no coordinator just now".to_owned(),
                "wait a moment and try it again; see: muster volume show",
            )),
        ),
        None => check(
            "volume",
            Err((
                "its volume is not mounted on that node".to_owned(),
                "see why: muster volume show",
            )),
        ),
    }
}

fn on_lun(app: &App, volume: VolumeId) -> bool {
    app.truth.state().volumes.get(&volume).is_some_and(|it| it.coordination.is_some())
}

fn networks(app: &App, state: &ClusterState, vm: &VmRecord) -> CheckView {
    let problem = |name: &Name| {
        let network = state.find_network(name.as_str()).ok()?;
        app.ports.problem(network.id).map(|problem| format!("{name}: {problem}"))
    };
    let problems: Vec<String> =
        vm.spec.nics.iter().filter_map(|nic| problem(&nic.network)).collect();
    match problems.is_empty() {
        true => check("networks", Ok("its networks are there".to_owned())),
        false => {
            check("networks", Err((problems.join("; "), "see on that node: muster network list")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_machine_type_fits_a_newer_engine_only() {
        assert!(machine_type("pc-q35-9.2", "pc-q35-10.0", "QEMU 10.0.2").ok);
        assert!(machine_type("pc-q35-10.0", "pc-q35-10.0", "QEMU 10.0.2").ok);
        let newer = machine_type("pc-q35-10.1", "pc-q35-10.0", "QEMU 10.0.2");
        assert!(!newer.ok && !newer.hint.is_empty());
        assert!(!machine_type("nonsense", "pc-q35-10.0", "QEMU 10.0.2").ok);
    }
}
