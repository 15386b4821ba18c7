//! Images.

use api::ApiError;
use api::endpoint as ep;
use api::types::ImageView;
use api::types::OpView;
use model::ImageFormat;
use model::ImageId;
use model::ImagePlace;
use model::ImageSource;
use model::OpRequest;

use crate::app::new_uuid;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::bad_request;
use crate::http::vms::begin;
use crate::http::vms::time;
use crate::views::image_view;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::ImageList, _, _>(list);
    mounts.json::<ep::ImageShow, _, _>(show);
    mounts.json::<ep::ImageImport, _, _>(import);
    mounts.json::<ep::ImageDelete, _, _>(delete);
}

async fn list(call: Call<ep::ImageList>) -> Result<Vec<ImageView>, ApiError> {
    let state = call.app.truth.state();
    let mut list: Vec<_> = state.images.values().map(|image| image_view(&state, image)).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn show(call: Call<ep::ImageShow>) -> Result<ImageView, ApiError> {
    let state = call.app.truth.state();
    Ok(image_view(&state, state.find_image(call.param(0))?))
}

async fn import(call: Call<ep::ImageImport>) -> Result<OpView, ApiError> {
    let body = call.body.clone();
    let origin = match &body.source {
        ImageSource::File { path } => {
            if !path.starts_with('/') {
                return Err(bad_request("the path of an image is absolute: it is the node's"));
            }
            path
        }
        ImageSource::Url { url } => {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err(bad_request("an image's address begins with http:// or https://"));
            }
            url
        }
    };
    let file_name = origin.split(['?', '#']).next().unwrap_or_default();
    let format = match body.format.or_else(|| ImageFormat::from_extension(file_name)) {
        Some(format) => format,
        None => {
            return Err(bad_request(
                "the name does not tell the image's format; give it: raw, qcow2, vhd, vhdx or vmdk",
            ));
        }
    };
    let node = call.app.node;
    let place = match &body.volume {
        None => ImagePlace::Node { node },
        Some(volume) => {
            let volume = call.app.truth.state().find_volume(volume)?.id;
            ImagePlace::Volume { volume, by: node }
        }
    };
    let request = OpRequest::ImageImport {
        image: ImageId::new(new_uuid()),
        name: body.name,
        source: body.source,
        format,
        sha256: body.sha256.map(|sum| sum.to_ascii_lowercase()),
        place,
    };
    begin(&call, request, time::IMPORT).await
}

async fn delete(call: Call<ep::ImageDelete>) -> Result<OpView, ApiError> {
    let image = call.app.truth.state().find_image(call.param(0))?.id;
    begin(&call, OpRequest::ImageDelete { image }, time::QUICK).await
}
