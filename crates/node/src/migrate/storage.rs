//! Whether a VM's storage can be moved, before a byte is copied: yes, or no with every reason.

use api::migrate::CheckView;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::Millis;
use model::OpId;
use model::OpRequest;
use model::Proposal;
use model::VmId;
use model::VmPlace;
use model::VmRecord;
use peer::Method;
use vm::lifecycle::VmFiles;
use vm::lifecycle::in_place;
use vm::lifecycle::room_for_move;

use super::ASK_MAX;
use super::Answer;
use super::Question;
use super::check::check;
use super::check::not_understood;
use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;

/// Every reason for and against a move of a VM's storage, asked of its owner.
pub(crate) async fn plan(app: &App, vm: &VmRecord, to: VmPlace) -> Vec<CheckView> {
    if vm.owner == app.node {
        return as_owner(app, vm.id, to).await;
    }
    let question = Question::Storage { vm: vm.id, to };
    match app.peers.ask(vm.owner, Method::MIGRATE, &question, ASK_MAX).await {
        Ok(Answer::Planned { checks }) => checks,
        Ok(_) => vec![not_understood("its node")],
        Err(error) => {
            vec![check("node", Err((error.to_string(), "see: muster cluster status")))]
        }
    }
}

/// The same for a VM that this node owns.
pub(super) async fn as_owner(app: &App, vm: VmId, to: VmPlace) -> Vec<CheckView> {
    let state = app.truth.state();
    let Some(vm) = state.vms.get(&vm).cloned() else {
        let missing = ("its node does not know it".to_owned(), "try it again");
        return vec![check("node", Err(missing))];
    };
    let mut checks = vec![admitted(&state, &vm, to)];
    let Some(there) = in_place(&vm, to) else { return checks };
    let volumes = app.volumes.clone();
    // Storage that hangs must not keep others waiting.
    let looked = tokio::task::spawn_blocking(move || look(&volumes, &vm, &there)).await;
    match looked {
        Ok(more) => checks.extend(more),
        Err(error) => checks.push(check("volume", Err((error.to_string(), "try it again")))),
    }
    checks
}

/// Whether the state would let it begin.
fn admitted(state: &ClusterState, vm: &VmRecord, to: VmPlace) -> CheckView {
    let command = Command::BeginOp {
        op: OpId::new(new_uuid()),
        request: Box::new(OpRequest::VmMoveStorage { vm: vm.id, to }),
        limit: Millis::from_secs(1),
    };
    let proposal = Proposal { at: now(), actor: Actor::new("check"), command };
    // On a copy of it, which shares all that does not change.
    match state.clone().apply(&proposal) {
        Ok(_) => check("machine", Ok("nothing keeps it where it is".to_owned())),
        Err(refused) => check("machine", Err((refused.to_string(), &refused.hint()))),
    }
}

fn look(volumes: &crate::volumes::Volumes, vm: &VmRecord, there: &VmRecord) -> Vec<CheckView> {
    let mut checks = Vec::new();
    for (what, record) in [("source", vm), ("volume", there)] {
        checks.push(match volumes.ready(record) {
            Ok(()) => check(what, Ok("it is there".to_owned())),
            Err(error) => {
                check(what, Err((error.to_string(), "see on its node: muster volume list")))
            }
        });
    }
    if checks.iter().all(|check| check.ok) {
        let from = VmFiles::new(&volumes.vms_dir(vm), vm.id);
        let room = room_for_move(&from, &volumes.vms_dir(there));
        checks.push(match room {
            Ok(needed) => check("room", Ok(format!("its files take {needed}"))),
            Err(why) => check("room", Err((why, "free space there, or choose another volume"))),
        });
    }
    checks
}
