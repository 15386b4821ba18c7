//! Volumes.

use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::types::VolumeView;
use api::volume::VolumeCheckView;
use api::volume::VolumeSource;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::FsKind;
use model::LunContents;
use model::LunId;
use model::LunPhase;
use model::Name;
use model::Speaker;
use model::VolumeId;
use model::VolumeKind;
use model::VolumeRecord;

use crate::app::App;
use crate::app::new_uuid;
use crate::http::Call;
use crate::http::Mounts;
use crate::luns;
use crate::views::volume_view;
use crate::volumes;

/// How long a verb waits for the coordinator: it formats, mounts, unmounts. Afterwards it goes on by
/// itself, and `volume show` tells how far it is.
const WORK_LIMIT: Duration = Duration::from_secs(60);

/// How often the keeper's trouble is looked at while a verb waits.
const POLL: Duration = Duration::from_millis(200);

/// Passes that may fail before the caller is told: the first one may meet a device that is being looked at.
const PATIENCE: Duration = Duration::from_secs(8);

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::VolumeList, _, _>(list);
    mounts.json::<ep::VolumeShow, _, _>(show);
    mounts.json::<ep::VolumeCreate, _, _>(create);
    mounts.json::<ep::VolumeDelete, _, _>(delete);
    mounts.json::<ep::VolumeRelease, _, _>(release);
    mounts.json::<ep::VolumeMove, _, _>(hand_to);
    mounts.json::<ep::VolumeMaintenance, _, _>(maintenance);
    mounts.json::<ep::VolumeCheck, _, _>(check);
}

fn view(
    app: &App,
    state: &ClusterState,
    volume: &VolumeRecord,
    answers: &luns::Answers,
) -> VolumeView {
    let coordination = luns::coordination_view(app, state, volume, answers);
    let mut view = volume_view(state, volume);
    if coordination.is_some() {
        let space = answers.space(app.node, volume.id);
        (view.size, view.free) = (space.map(|it| it.0), space.map(|it| it.1));
        // What is not in use is missing nowhere.
        let trouble = app.luns.trouble(volume.id).map(|it| it.why);
        view.problem = trouble.or(view.problem.filter(|_| volume.is_reached()));
    }
    VolumeView { coordination, ..view }
}

async fn view_of(app: &App, id: VolumeId) -> Result<VolumeView, ApiError> {
    let state = app.truth.state();
    let answers = luns::gather(app, &state).await;
    Ok(view(app, &state, state.find_volume(&id.to_string())?, &answers))
}

async fn list(call: Call<ep::VolumeList>) -> Result<Vec<VolumeView>, ApiError> {
    let state = call.app.truth.state();
    let answers = luns::gather(&call.app, &state).await;
    let mut list: Vec<_> =
        state.volumes.values().map(|volume| view(&call.app, &state, volume, &answers)).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn show(call: Call<ep::VolumeShow>) -> Result<VolumeView, ApiError> {
    let id = call.app.truth.state().find_volume(call.param(0))?.id;
    view_of(&call.app, id).await
}

async fn create(call: Call<ep::VolumeCreate>) -> Result<VolumeView, ApiError> {
    let (app, actor, name) = (&*call.app, &call.caller.actor, call.body.name.clone());
    match call.body.kind.clone() {
        VolumeSource::Share { path } => create_share(app, actor, name, path).await,
        VolumeSource::Lun { lun, fs, adopt } => {
            create_on_lun(app, actor, name, (lun, fs, adopt)).await
        }
    }
}

/// The mark comes first: a volume that is known but not marked would be taken for one that is not
/// mounted. If the state refuses it, the mark goes again.
async fn create_share(
    app: &App,
    actor: &Actor,
    name: Name,
    path: String,
) -> Result<VolumeView, ApiError> {
    let volume = VolumeId::new(new_uuid());
    volumes::stamp(volume, &path).map_err(|error| {
        ApiError::new(
            ErrorKind::BadRequest,
            "volume",
            error.to_string(),
            "make the directory and mount it on every node at the same path",
        )
    })?;
    let kind = VolumeKind::Share { path };
    let record = VolumeRecord {
        id: volume,
        name: name.clone(),
        kind: kind.clone(),
        created: crate::app::now(),
        coordination: None,
    };
    let command = Command::VolumeCreate { volume, name, kind };
    if let Err(error) = app.propose(actor, command).await {
        volumes::unstamp(&record);
        return Err(error);
    }
    view_of(app, volume).await
}

/// This node looks at the LUN, claims it in the state, and its keeper does the rest.
async fn create_on_lun(
    app: &App,
    actor: &Actor,
    name: Name,
    (lun, fs, adopt): (LunId, Option<FsKind>, bool),
) -> Result<VolumeView, ApiError> {
    let volume = VolumeId::new(new_uuid());
    let alone = app.luns.telling().await;
    let looking = app.luns.clone();
    let before = app.truth.state().node(app.node)?.clone();
    let seen = tokio::task::spawn_blocking(move || looking.look_for(&before)).await;
    let seen = seen.unwrap_or_default();
    let (fs, uuid) = match seen.get(&lun).map(|seen| &seen.contents) {
        Some(LunContents::Volume { fs, uuid }) if adopt => (*fs, uuid.clone()),
        _ => (fs.unwrap_or_default(), volume.to_string()),
    };
    app.propose(actor, Command::NodeLunsSet { node: app.node, luns: seen }).await?;
    drop(alone);
    let epoch = app.truth.state().node(app.node)?.epoch;
    let by = Speaker { node: app.node, epoch };
    let command = Command::VolumeCreateOnLun { volume, name, lun, fs, uuid, adopt, by };
    app.propose(actor, command).await?;
    // And its files are shown here: whoever made it goes on with them.
    let ready = |it: Option<&VolumeRecord>| {
        let phase = it.and_then(|it| it.coordination.as_ref()).map(|it| it.phase);
        it.is_none_or(|it| phase == Some(LunPhase::Ready) && volumes::check(it).is_ok())
    };
    settle(app, volume, "prepared", ready).await?;
    view_of(app, volume).await
}

/// Waits until a volume is as wanted, or until it is clear that it will not be soon.
async fn settle(
    app: &App,
    id: VolumeId,
    what: &str,
    wanted: impl Fn(Option<&VolumeRecord>) -> bool,
) -> Result<(), ApiError> {
    app.luns.hurry();
    let started = tokio::time::Instant::now();
    loop {
        let state = app.truth.state();
        let record = state.volumes.get(&id);
        if wanted(record.map(|it| &**it)) {
            return Ok(());
        }
        let trouble = app.luns.trouble(id).filter(|_| started.elapsed() > PATIENCE);
        if trouble.is_some() || started.elapsed() > WORK_LIMIT {
            let name = record.map_or_else(|| id.to_string(), |it| it.name.to_string());
            let why =
                trouble.map_or_else(|| "its coordinator has not said".to_owned(), |it| it.why);
            return Err(ApiError::new(
                ErrorKind::Failed,
                "volume",
                format!("volume {name} is not {what} yet: {why}"),
                format!("it is tried on and on; see: muster volume show {name}"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn delete(call: Call<ep::VolumeDelete>) -> Result<Nothing, ApiError> {
    let record = call.app.truth.state().find_volume(call.param(0))?.clone();
    if record.coordination.is_some() {
        return leave(&call.app, &call.caller.actor, record.id, true).await;
    }
    let command = Command::VolumeDelete { volume: record.id };
    call.app.propose(&call.caller.actor, command).await?;
    volumes::unstamp(&record);
    Ok(Nothing {})
}

async fn release(call: Call<ep::VolumeRelease>) -> Result<Nothing, ApiError> {
    let id = call.app.truth.state().find_volume(call.param(0))?.id;
    leave(&call.app, &call.caller.actor, id, false).await
}

async fn leave(app: &App, actor: &Actor, id: VolumeId, wipe: bool) -> Result<Nothing, ApiError> {
    app.propose(actor, Command::VolumeLeave { volume: id, wipe }).await?;
    settle(app, id, "taken off its LUN", |record| record.is_none()).await?;
    Ok(Nothing {})
}

async fn hand_to(call: Call<ep::VolumeMove>) -> Result<VolumeView, ApiError> {
    let state = call.app.truth.state();
    let (id, to) = (state.find_volume(call.param(0))?.id, state.find_node(&call.body.to)?.id);
    call.app.propose(&call.caller.actor, Command::VolumeMove { volume: id, to }).await?;
    let there = |it: Option<&VolumeRecord>| {
        it.and_then(|it| it.coordination.as_ref()).is_none_or(|it| it.holder == Some(to))
    };
    settle(&call.app, id, "moved", there).await?;
    view_of(&call.app, id).await
}

async fn maintenance(call: Call<ep::VolumeMaintenance>) -> Result<VolumeView, ApiError> {
    let (id, on) = (call.app.truth.state().find_volume(call.param(0))?.id, call.body.on);
    let command = Command::VolumeMaintenance { volume: id, on };
    call.app.propose(&call.caller.actor, command).await?;
    let settled = |it: Option<&VolumeRecord>| {
        it.and_then(|it| it.coordination.as_ref()).is_none_or(|it| it.holder.is_none() == on)
    };
    let what = if on { "unmounted" } else { "mounted" };
    settle(&call.app, id, what, settled).await?;
    view_of(&call.app, id).await
}

async fn check(call: Call<ep::VolumeCheck>) -> Result<VolumeCheckView, ApiError> {
    let state = call.app.truth.state();
    let record = state.find_volume(call.param(0))?.clone();
    let refuse =
        |why: String, hint: String| ApiError::new(ErrorKind::Conflict, "volume", why, hint);
    let name = record.name.clone();
    let Some(now) = record.coordination.clone() else {
        return Err(model::Refused::NotOnLun(name).into());
    };
    if !now.maintenance || now.holder.is_some() {
        return Err(refuse(
            format!("volume {name} is mounted, so it cannot be checked"),
            format!("begin its maintenance first: muster volume maintenance {name} on"),
        ));
    }
    let Some(device) = luns::device_of(&record, state.node(call.app.node)?) else {
        return Err(
            model::Refused::NoPath { node: call.app.node_name.clone(), volume: name }.into()
        );
    };
    let checked =
        tokio::task::spawn_blocking(move || luns::check(&record, &device, now.epoch)).await;
    match checked.unwrap_or_else(|error| Err(error.to_string())) {
        Ok((clean, said)) => Ok(VolumeCheckView { clean, said }),
        Err(why) => Err(refuse(
            format!("volume {name} could not be checked: {why}"),
            "see its LUN: muster disk list".to_owned(),
        )),
    }
}
