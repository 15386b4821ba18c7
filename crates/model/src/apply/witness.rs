//! Setting the witness, and taking it away.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ClusterState;
use crate::EventKind;
use crate::NodeId;
use crate::Refused;
use crate::Severity;
use crate::Subject;
use crate::WITNESS_SLOTS_MAX;
use crate::WitnessPlace;
use crate::WitnessRecord;
use crate::apply::Context;
use crate::state::not_found;

/// Longest path, address or option: those of the systems that know them.
const TEXT_BYTES_MAX: usize = 4_096;

/// Most options of an object store; the one with the most has about 40.
const OPTIONS_MAX: usize = 64;

pub(crate) fn set(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
    place: &WitnessPlace,
) -> Result<(), Refused> {
    if state.cluster.is_none() {
        return Err(Refused::NoCluster);
    }
    if state.witness.is_some() {
        return Err(Refused::Invalid(
            "there is a witness already; remove it first: muster cluster witness remove".to_owned(),
        ));
    }
    if state.nodes.contains_key(&id) || state.gone.contains_key(&id) {
        return Err(Refused::IdTaken(id.to_string()));
    }
    check(place)?;
    if let WitnessPlace::Block { slots, .. } = place
        && !state.nodes.keys().all(|node| slots.contains_key(node))
    {
        return Err(Refused::Invalid("the nodes have changed meanwhile; set it again".to_owned()));
    }
    state.witness = Some(Arc::new(WitnessRecord {
        id,
        place: place.clone(),
        since: cx.proposal.at,
        by: cx.proposal.actor.to_string(),
        retired: false,
    }));
    event(state, cx, Severity::Info, "the witness was set");
    Ok(())
}

/// A node that joins gets a place of its own on the witness's device, if there is one left.
pub(crate) fn give_slot(state: &mut ClusterState, node: NodeId) {
    let Some(record) = &mut state.witness else { return };
    let WitnessPlace::Block { slots, .. } = &record.place else { return };
    let next = slots.values().max().map_or(0, |last| last + 1);
    if next < WITNESS_SLOTS_MAX
        && let WitnessPlace::Block { slots, .. } = &mut Arc::make_mut(record).place
    {
        slots.insert(node, next);
    }
}

/// Begins to take it away.
pub(crate) fn remove(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
) -> Result<(), Refused> {
    let mut record = found(state, id)?.clone();
    if record.retired {
        return Ok(());
    }
    record.retired = true;
    state.witness = Some(Arc::new(record));
    event(state, cx, Severity::Warning, "the witness is being removed");
    Ok(())
}

/// It is out of the log.
pub(crate) fn gone(
    state: &mut ClusterState,
    cx: &mut Context<'_>,
    id: NodeId,
) -> Result<(), Refused> {
    if !found(state, id)?.retired {
        return Err(Refused::Invalid("the witness is in use".to_owned()));
    }
    state.witness = None;
    event(state, cx, Severity::Info, "the witness is gone");
    Ok(())
}

fn found(state: &ClusterState, id: NodeId) -> Result<&WitnessRecord, Refused> {
    let record = state.witness.as_deref().filter(|record| record.id == id);
    record.ok_or_else(|| not_found("witness", &id.to_string()))
}

fn event(state: &ClusterState, cx: &mut Context<'_>, severity: Severity, text: &str) {
    let Some(cluster) = &state.cluster else { return };
    let subject = Subject::Cluster { id: cluster.id, name: cluster.name.to_string() };
    cx.event(EventKind::WitnessChanged, severity, subject, text.to_owned(), None);
}

fn check(place: &WitnessPlace) -> Result<(), Refused> {
    let bad = |text: &str| Err(Refused::Invalid(text.to_owned()));
    let fits = |text: &str| {
        !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control)
    };
    match place {
        WitnessPlace::Directory { path } => {
            let up = path.split('/').any(|part| part == "..");
            if !fits(path) || !path.starts_with('/') || up {
                return bad(
                    "the directory of a witness is an absolute path, the same on each node",
                );
            }
        }
        WitnessPlace::Block { path, slots } => {
            let up = path.split('/').any(|part| part == "..");
            if !fits(path) || !path.starts_with('/') || up {
                return bad(
                    "the device of a witness is an absolute path, the same on each node, such as \
                     /dev/disk/by-id/...",
                );
            }
            let numbers: BTreeSet<u16> = slots.values().copied().collect();
            if numbers.len() != slots.len() || numbers.last() >= Some(&WITNESS_SLOTS_MAX) {
                return bad("each node has a slot of its own on the device of a witness");
            }
        }
        WitnessPlace::Object { url, options, secrets } => {
            if !fits(url) || !(url.starts_with("s3://") || url.starts_with("az://")) {
                return bad("an object store is s3://BUCKET/FOLDER or az://CONTAINER/FOLDER");
            }
            if options.len() + secrets.len() > OPTIONS_MAX {
                return Err(Refused::Limit { what: "options of a witness", most: OPTIONS_MAX });
            }
            let hidden = secrets.iter().map(|(name, value)| (name.as_str(), value.reveal()));
            let mut all =
                options.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(hidden);
            if !all.all(|(name, value)| fits(name) && fits(value)) {
                return bad("an option of a witness is one line of text, not empty");
            }
        }
        WitnessPlace::Remote { address, token } => {
            if address.port() == 0 || address.ip().is_unspecified() {
                return bad("a witness has an address that all nodes reach, with its port");
            }
            if !fits(token.reveal()) {
                return bad("the token of a witness is one line; `muster witness` prints it");
            }
        }
    }
    Ok(())
}
