//! The witness: setting it, showing it, removing it.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::witness::WitnessPlaceBody;
use api::witness::WitnessView;
use cluster::witness::WitnessToken;
use cluster::witness::block;
use cluster::witness::create;
use cluster::witness::probe::probe;
use model::ClusterState;
use model::Command;
use model::NodeId;
use model::Refused;
use model::SecretText;
use model::WitnessPlace;
use model::witness_slots;

use crate::app::App;
use crate::app::new_uuid;
use crate::cluster::status;
use crate::cluster::witness;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::WitnessShow, _, _>(show);
    mounts.json::<ep::WitnessSet, _, _>(set);
    mounts.json::<ep::WitnessRemove, _, _>(remove);
}

async fn show(call: Call<ep::WitnessShow>) -> Result<WitnessView, ApiError> {
    view(&call.app)
}

fn view(app: &App) -> Result<WitnessView, ApiError> {
    let voters: BTreeSet<NodeId> = app.truth.metrics().borrow().voters();
    witness::view(app, &app.truth.state(), &voters).ok_or_else(|| {
        ApiError::new(
            ErrorKind::NotFound,
            "no_witness",
            "the cluster has no witness",
            "set one: muster cluster witness set --help",
        )
    })
}

/// Tries the store out, makes the record, and only then tells the cluster.
async fn set(call: Call<ep::WitnessSet>) -> Result<WitnessView, ApiError> {
    let app = &*call.app;
    let state = app.truth.state();
    let cluster = state.cluster.as_ref().ok_or(Refused::NoCluster)?.id;
    if state.witness.is_some() {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "witness_set",
            "the cluster has a witness already",
            "remove it first: muster cluster witness remove",
        ));
    }
    let place = place(call.body.place.clone(), &state, &app.config.disk_folders)?;
    let id = NodeId::new(new_uuid());
    let store = witness::open(&place, id, app.node).map_err(|error| bad_request(&error))?;
    let unfit = |code: &str, what: &dyn std::fmt::Display| {
        let hint = "see which stores can be a witness: docs/operate/quorum.md";
        ApiError::new(ErrorKind::Conflict, code, what.to_string(), hint)
    };
    if let WitnessPlace::Block { path, .. } = &place {
        let ready = block::prepare(Path::new(path), &witness::record_name(id)).await;
        ready.map_err(|error| unfit("witness_unfit", &error))?;
    }
    probe(&*store).await.map_err(|error| unfit("witness_unfit", &error))?;
    create(&*store, cluster, id).await.map_err(|error| unfit("witness_record", &error))?;
    let command = Command::WitnessSet { witness: id, place: Box::new(place) };
    // If this fails, a record is left of an id that nobody will ever use. It may also have been done
    // without an answer, so the record must not be removed.
    app.propose(&call.caller.actor, command).await?;
    view(app)
}

fn place(
    body: WitnessPlaceBody,
    state: &ClusterState,
    disk_folders: &[PathBuf],
) -> Result<WitnessPlace, ApiError> {
    let is_disk = |path: &str| {
        path.starts_with("/dev/") || disk_folders.iter().any(|it| Path::new(path).starts_with(it))
    };
    Ok(match body {
        WitnessPlaceBody::Directory { path } if !path.starts_with('/') => {
            return Err(bad_request("the directory of a witness is an absolute path"));
        }
        WitnessPlaceBody::Directory { path } => WitnessPlace::Directory { path },
        WitnessPlaceBody::Block { path } if !is_disk(&path) => {
            return Err(bad_request(
                "the device of a witness is a path below /dev, such as /dev/disk/by-id/...",
            ));
        }
        WitnessPlaceBody::Block { path } => {
            WitnessPlace::Block { path, slots: witness_slots(state.nodes.keys().copied()) }
        }
        WitnessPlaceBody::Object { url, options, secrets } => {
            let hide = |(name, value): (String, String)| (name, SecretText::new(value));
            WitnessPlace::Object { url, options, secrets: secrets.into_iter().map(hide).collect() }
        }
        WitnessPlaceBody::Remote { token, address } => {
            let known: WitnessToken = token
                .parse()
                .map_err(|error: cluster::witness::BadToken| bad_request(&error.to_string()))?;
            let address = match address {
                Some(text) => text.parse().map_err(|_| {
                    bad_request("the address of a witness is ADDRESS:PORT, such as 192.0.2.9:7446")
                })?,
                None => known.address,
            };
            WitnessPlace::Remote { address, token: SecretText::new(token.trim()) }
        }
    })
}

async fn remove(call: Call<ep::WitnessRemove>) -> Result<Nothing, ApiError> {
    let app = &*call.app;
    let witness = view(app)?;
    let cluster = status::gather(app).await;
    let here = cluster.nodes.iter().filter(|node| node.reachable).count();
    // Without it those that answer must be able to go on; one that is of no use anyhow may go.
    if witness.votes && witness.reachable && 2 * here <= cluster.nodes.len() {
        return Err(ApiError::new(
            ErrorKind::Conflict,
            "no_majority_left",
            format!(
                "without the witness {here} of {} nodes would be left, no majority",
                cluster.nodes.len()
            ),
            "bring a node back first: muster cluster status",
        ));
    }
    app.propose(&call.caller.actor, Command::WitnessRemove { witness: witness.id }).await?;
    Ok(Nothing {})
}
