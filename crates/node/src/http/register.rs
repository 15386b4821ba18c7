//! Taking VMs in again from their directories.

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::types::VmView;
use model::Bytes;
use model::Command;
use model::ImageFormat;
use model::ImageId;
use model::ImagePlace;
use model::ImageRecord;
use model::ImageSource;
use model::ImageState;
use model::VmId;

use crate::app::App;
use crate::app::now;
use crate::http::Call;
use crate::http::Mounts;
use crate::ports::chain;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::VmRegister, _, _>(register);
}

async fn register(call: Call<ep::VmRegister>) -> Result<VmView, ApiError> {
    let (vms_dir, dir) = (call.app.vms_dir(), call.body.dir.clone());
    let look = move || vm::lifecycle::look(&vms_dir, dir.as_ref());
    let looked = tokio::task::spawn_blocking(look).await;
    let found = match looked {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(not_found(&chain(&error))),
        Err(error) => return Err(not_found(&error.to_string())),
    };
    let mut record = found.record;
    let id = record.id;
    is_new(&call.app, id)?;
    does_not_run(&call.app, id).await?;
    let mut images = Vec::new();
    for image in found.images {
        if !call.app.truth.state().images.contains_key(&image) {
            images.push(lost_image(&call.app, image).await?);
        }
    }
    record.owner = call.app.node;
    if let Some(name) = call.body.name.clone() {
        record.name = name;
    }
    let command = Command::VmRegister { record: Box::new(record), images };
    call.app.propose(&call.caller.actor, command).await.map_err(|error| {
        match error.code.as_str() {
            "name_taken" => {
                ApiError { hint: "give it another name: --name NAME".to_owned(), ..error }
            }
            _ => error,
        }
    })?;
    let state = call.app.truth.state();
    Ok(call.app.vm_view(&state, state.vm(id)?))
}

fn is_new(app: &App, id: VmId) -> Result<(), ApiError> {
    let state = app.truth.state();
    let Some(known) = state.vms.get(&id) else { return Ok(()) };
    let (where_, hint) = match known.deleted {
        None => ("registered already", format!("see it: muster vm show {}", known.name)),
        Some(_) => {
            ("in the recycle bin", format!("take it out: muster vm undelete {}", known.name))
        }
    };
    let message = format!("the VM of this directory is {where_} as {}", known.name);
    Err(ApiError::new(ErrorKind::Conflict, "id_taken", message, hint))
}

/// A machine that a lost state has left behind has the disks in its hands.
async fn does_not_run(app: &App, id: VmId) -> Result<(), ApiError> {
    let strays = app.engine.strays().await.map_err(|error| {
        let hint = "see what the node says: muster node show";
        ApiError::new(ErrorKind::Unavailable, "engine", chain(&error), hint)
    })?;
    if !strays.iter().any(|stray| stray.vm == id && stray.alive) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::Conflict,
        "runs",
        "a machine of this VM runs on this node",
        "shut it down from inside the guest, or end its process (see muster node show), and \
         register it then",
    ))
}

/// An image that the state has lost, too. Its name is lost with it.
async fn lost_image(app: &App, id: ImageId) -> Result<ImageRecord, ApiError> {
    let found =
        app.volumes.local_images().look(id).await.map_err(|error| not_found(&chain(&error)))?;
    let Some(found) = found else {
        return Err(not_found(&format!(
            "a disk is a copy of image {id}, and {} is missing",
            app.volumes.local_images().path(id).display()
        )));
    };
    let text = id.to_string();
    let tail = &text[text.len().saturating_sub(12)..];
    let name = format!("recovered-{tail}").parse().map_err(|_| not_found("no name is left"))?;
    Ok(ImageRecord {
        id,
        name,
        source: ImageSource::File { path: found.path.display().to_string() },
        format: ImageFormat::Qcow2,
        state: ImageState::Ready {
            virtual_size: Bytes::new(found.virtual_size),
            file_size: Bytes::new(found.file_bytes),
            sha256: found.sha256.trim().to_owned(),
        },
        place: ImagePlace::Node { node: app.node },
        created: now(),
    })
}

fn not_found(message: &str) -> ApiError {
    let hint = "see what is there: ls the node's directory of VMs";
    ApiError::new(ErrorKind::BadRequest, "not_registrable", message, hint)
}
