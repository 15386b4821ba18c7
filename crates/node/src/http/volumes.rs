//! Volumes.

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::types::VolumeView;
use model::Command;
use model::VolumeId;

use crate::app::new_uuid;
use crate::http::Call;
use crate::http::Mounts;
use crate::views::volume_view;
use crate::volumes;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::VolumeList, _, _>(list);
    mounts.json::<ep::VolumeShow, _, _>(show);
    mounts.json::<ep::VolumeCreate, _, _>(create);
    mounts.json::<ep::VolumeDelete, _, _>(delete);
}

async fn list(call: Call<ep::VolumeList>) -> Result<Vec<VolumeView>, ApiError> {
    let state = call.app.truth.state();
    let mut list: Vec<_> =
        state.volumes.values().map(|volume| volume_view(&state, volume)).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn show(call: Call<ep::VolumeShow>) -> Result<VolumeView, ApiError> {
    let state = call.app.truth.state();
    Ok(volume_view(&state, state.find_volume(call.param(0))?))
}

/// The mark comes first: a volume that is known but not marked would be taken for one that is not
/// mounted. If the state refuses it, the mark goes again.
async fn create(call: Call<ep::VolumeCreate>) -> Result<VolumeView, ApiError> {
    let volume = VolumeId::new(new_uuid());
    let body = call.body.clone();
    let path = body.kind.path().to_owned();
    volumes::stamp(volume, &path).map_err(|error| {
        ApiError::new(
            ErrorKind::BadRequest,
            "volume",
            error.to_string(),
            "make the directory and mount it on every node at the same path",
        )
    })?;
    let record = model::VolumeRecord {
        id: volume,
        name: body.name.clone(),
        kind: body.kind.clone(),
        created: crate::app::now(),
    };
    let command = Command::VolumeCreate { volume, name: body.name, kind: body.kind };
    if let Err(error) = call.app.propose(&call.caller.actor, command).await {
        volumes::unstamp(&record);
        return Err(error);
    }
    let state = call.app.truth.state();
    Ok(volume_view(&state, state.find_volume(&volume.to_string())?))
}

async fn delete(call: Call<ep::VolumeDelete>) -> Result<Nothing, ApiError> {
    let record = call.app.truth.state().find_volume(call.param(0))?.clone();
    let command = Command::VolumeDelete { volume: record.id };
    call.app.propose(&call.caller.actor, command).await?;
    volumes::unstamp(&record);
    Ok(Nothing {})
}
