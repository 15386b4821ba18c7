//! The one function that changes the state, split by what is changed.
//!
//! Rule of the house: every check comes before the first change, so that a refused command leaves
//! nothing behind.

mod begin;
mod cluster;
mod cluster_network;
#[cfg(test)]
mod cluster_test;
mod fence;
#[cfg(test)]
mod fence_tests;
mod finish;
mod forced;
mod ha;
mod history;
mod lun;
mod migrate;
mod nics;
mod platform;
mod rebuild;
mod register;
mod session;
#[cfg(test)]
mod session_tests;
mod set;
mod storage;
#[cfg(test)]
mod tests;
mod things;
mod volume;
mod witness;
#[cfg(test)]
mod witness_tests;

use std::sync::Arc;

use crate::Applied;
use crate::ClusterState;
use crate::Command;
use crate::Event;
use crate::EventKind;
use crate::ImageRecord;
use crate::OpId;
use crate::Proposal;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::VmRecord;

/// Most operations that have ended and are still kept: a screenful of history for each of some
/// hundred VMs.
const ENDED_OPS_MAX: usize = 2000;

/// What a step of `apply` needs besides the state: time, author, and where to put events.
pub(crate) struct Context<'a> {
    pub(crate) proposal: &'a Proposal,
    pub(crate) applied: Applied,
}

pub(crate) fn apply(state: &mut ClusterState, proposal: &Proposal) -> Result<Applied, Refused> {
    let mut cx = Context { proposal, applied: Applied::default() };
    let before = history::before(state, proposal);
    match &proposal.command {
        Command::NodeStarted { node, name, capacity } => {
            things::node_started(state, &mut cx, *node, name, *capacity)
        }
        Command::NodePlatform { node, platform } => {
            platform::node_platform(state, &mut cx, *node, platform.as_ref())
        }
        Command::BeginOp { op, request, limit } => {
            begin::begin(state, &mut cx, *op, request, *limit)
        }
        Command::CancelOp { op } => begin::cancel(state, &mut cx, *op),
        Command::FinishOp { op, outcome, by } => finish::finish(state, &mut cx, *op, outcome, *by),
        Command::VmExited { vm, generation, exit } => {
            finish::exited(state, &mut cx, *vm, *generation, exit)
        }
        Command::NodeQuarantineEnd { node } => ha::quarantine_end(state, &mut cx, *node),
        Command::VmAnswered { vm, generation, by } => ha::answered(state, *vm, *generation, *by),
        Command::VmUndelete { vm, name } => things::undelete(state, &mut cx, *vm, name.as_ref()),
        Command::VmUpgrade { vm } => platform::upgrade(state, &mut cx, *vm),
        Command::VmRegister { record, images } => {
            register::register(state, &mut cx, record, images)
        }
        Command::NetworkCreate { network, name, kind } => {
            things::network_create(state, &mut cx, *network, name, kind)
        }
        Command::NetworkDelete { network } => things::network_delete(state, &mut cx, *network),
        Command::TokenCreate { token, name, role, digest, expires, certificate } => {
            let record = crate::TokenRecord {
                id: *token,
                name: name.clone(),
                role: *role,
                digest: digest.clone(),
                created: proposal.at,
                expires: *expires,
                certificate: certificate.clone(),
            };
            things::token_create(state, &mut cx, record)
        }
        Command::TokenRevoke { token } => things::token_revoke(state, &mut cx, *token),
        other => apply_cluster(state, &mut cx, other),
    }?;
    if let Some(before) = before {
        history::after(state, proposal, before);
    }
    Ok(cx.applied)
}

/// Commands about sessions, nodes, volumes and where VMs run.
fn apply_cluster(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    command: &Command,
) -> Result<(), Refused> {
    match command {
        Command::SessionCreate { record } => session::create(state, cx, record),
        Command::SessionUseLink { link, digest, expires, onward } => {
            let opened = session::Opened { digest, onward: onward.as_deref() };
            session::use_link(state, cx, link, &opened, *expires)
        }
        Command::SessionGoOn { word, digest, onward } => {
            let opened = session::Opened { digest, onward: Some(onward) };
            session::go_on(state, cx, word, &opened)
        }
        Command::SessionEnd { session: id } => session::end(state, cx, *id),
        Command::VolumeCreate { volume: id, name, kind } => {
            volume::create(state, cx, *id, name, kind)
        }
        Command::VolumeDelete { volume: id } => volume::delete(state, cx, *id),
        Command::NodeLunsSet { node, luns } => lun::seen(state, *node, luns),
        Command::VolumeCreateOnLun { volume: id, name, lun, fs, uuid, adopt, by } => {
            let (fs, adopt, by) = (*fs, *adopt, *by);
            lun::create(state, cx, &lun::Plan { id: *id, name, lun, fs, uuid, adopt, by })
        }
        Command::VolumePrepared { volume: id, epoch, by } => {
            lun::prepared(state, cx, *id, *epoch, *by)
        }
        Command::VolumeGiveBack { volume: id, epoch, by } => {
            lun::give_back(state, cx, *id, *epoch, *by)
        }
        Command::VolumeClaim { volume: id, epoch, by } => lun::claim(state, cx, *id, *epoch, *by),
        Command::VolumeMove { volume: id, to } => lun::hand_to(state, *id, *to),
        Command::VolumeMaintenance { volume: id, on } => lun::maintenance(state, cx, *id, *on),
        Command::VolumeLeave { volume: id, wipe } => lun::leave(state, *id, *wipe),
        Command::VolumeGone { volume: id, epoch, by } => lun::gone(state, cx, *id, *epoch, *by),
        Command::ClusterNetworkSet { record } => cluster_network::set(state, cx, record),
        Command::ClusterNetworkForget { subnet } => cluster_network::forget(state, cx, *subnet),
        Command::MigrationStrict { strict } => {
            cluster_network::strict(state, cx, *strict);
            Ok(())
        }
        Command::BalanceSet { automatic } => {
            ha::balance_set(state, cx, *automatic);
            Ok(())
        }
        Command::RuleCreate { rule } => ha::rule_create(state, cx, rule),
        Command::RuleDelete { rule } => ha::rule_delete(state, cx, *rule),
        Command::NodeFenced { node, epoch, reign, proof } => {
            ha::node_fenced(state, cx, *node, *epoch, *reign, proof)
        }
        Command::NodeBack { node, epoch } => ha::node_back(state, cx, *node, *epoch),
        Command::NodeSetMode { node, mode, with_storage } => {
            ha::node_set_mode(state, cx, *node, *mode, *with_storage)
        }
        Command::VmTakeOver { vm, from, generation, to, start } => {
            ha::take_over(state, cx, *vm, *from, *generation, *to, *start)
        }
        Command::VmMove { vm, to, quick } => ha::vm_move(state, cx, *vm, *to, *quick),
        Command::VmHandover { op, generation, report, by } => {
            migrate::hand_over(state, cx, *op, *generation, report, *by)
        }
        Command::VmStorageMoved { op, generation, by } => {
            storage::moved(state, cx, *op, *generation, *by)
        }
        Command::VmCopyGone { vm, place } => storage::copy_gone(state, *vm, *place),
        Command::VmRehome { vm, to } => ha::rehome(state, cx, *vm, *to),
        other => apply_members(state, cx, other),
    }
}

/// As [`apply`], for the members of the cluster.
fn apply_members(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    command: &Command,
) -> Result<(), Refused> {
    match command {
        Command::ClusterCreate { cluster, name, ca_certificate, ca_key, node, key } => {
            let record = crate::ClusterRecord {
                id: *cluster,
                name: name.clone(),
                ca_certificate: ca_certificate.clone(),
                ca_key: ca_key.clone(),
                created: cx.proposal.at,
            };
            cluster::create(state, cx, record, *node, key)
        }
        Command::JoinTokenCreate { token, digest, expires, uses } => {
            let record = crate::JoinTokenRecord {
                id: *token,
                digest: digest.clone(),
                created: cx.proposal.at,
                expires: *expires,
                uses: *uses,
                by: cx.proposal.actor.to_string(),
            };
            cluster::token_create(state, cx, record)
        }
        Command::JoinTokenRevoke { token } => cluster::token_revoke(state, cx, *token),
        Command::NodeJoin { node, name, key, facts, digest } => {
            let joining = cluster::Joining { node: *node, name, key, facts, digest };
            cluster::join(state, cx, &joining)
        }
        Command::NodeFactsSet { node, facts } => cluster::facts(state, *node, facts),
        Command::NodeInterfacesSet { node, interfaces } => {
            cluster::interfaces(state, *node, interfaces)
        }
        Command::NodeLeave { node } => cluster::leave(state, cx, *node),
        Command::NodeGone { node } => cluster::gone(state, cx, *node),
        Command::NodeDamaged { node, word, problem } => {
            rebuild::damaged(state, cx, *node, *word, problem)
        }
        Command::NodeLogCleared { node, word } => rebuild::cleared(state, cx, *node, *word),
        Command::NodeEvict { node, forget_vms } => cluster::evict(state, cx, *node, *forget_vms),
        Command::QuorumForced { lost, word, witness } => {
            forced::quorum(state, cx, lost, *word, *witness)
        }
        Command::LeaseReign { reign, leader } => fence::reign(state, *reign, *leader),
        Command::NodeTerms { node, reign, terms } => fence::terms(state, *node, *reign, *terms),
        Command::FenceBegin { node, reason } => fence::begin(state, cx, *node, reason),
        Command::FenceEnd { node, reign, why } => {
            fence::end(state, cx, *node, *reign, why.as_deref())
        }
        Command::FenceDeviceAdd { device } => fence::device_add(state, cx, device),
        Command::FenceDeviceRemove { device } => fence::device_remove(state, cx, *device),
        Command::WitnessSet { witness, place } => witness::set(state, cx, *witness, place),
        Command::WitnessRemove { witness } => witness::remove(state, cx, *witness),
        Command::WitnessGone { witness } => witness::gone(state, cx, *witness),
        // Every other command has been matched before.
        _ => Err(Refused::Invalid("this command is not known here".to_owned())),
    }
}

impl Context<'_> {
    pub(crate) fn event(
        &mut self,
        kind: EventKind,
        severity: Severity,
        subject: Subject,
        text: String,
        op: Option<OpId>,
    ) {
        self.applied.events.push(Event {
            at: self.proposal.at,
            kind,
            severity,
            subject,
            text,
            actor: Some(self.proposal.actor.to_string()),
            op,
        });
    }
}

/// The record to change: found again after the checks, so it is there.
pub(crate) fn vm_mut(state: &mut ClusterState, id: crate::VmId) -> Result<&mut VmRecord, Refused> {
    state
        .vms
        .get_mut(&id)
        .map(Arc::make_mut)
        .ok_or_else(|| crate::state::not_found("vm", &id.to_string()))
}

pub(crate) fn vm_subject(vm: &VmRecord) -> Subject {
    Subject::Vm { id: vm.id, name: vm.name.to_string() }
}

pub(crate) fn image_subject(image: &ImageRecord) -> Subject {
    Subject::Image { id: image.id, name: image.name.to_string() }
}

/// Forgets the oldest operations that have ended, beyond [`ENDED_OPS_MAX`]. Ids are sorted by
/// time, so the first ones are the oldest.
pub(crate) fn prune_ops(state: &mut ClusterState) {
    let Some(above) = state.ops.len().checked_sub(ENDED_OPS_MAX) else { return };
    let running = state.ops.values().filter(|op| op.is_running()).count();
    let spare = above.saturating_sub(running);
    let ended = state.ops.values().filter(|op| !op.is_running());
    let oldest: Vec<OpId> = ended.take(spare).map(|op| op.id).collect();
    for op in oldest {
        state.ops.remove(&op);
    }
}
