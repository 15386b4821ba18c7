//! `muster image list`.

use api::endpoint::ImageList;
use api::model::ImageState;
use api::types::ImageView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;

/// List images.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster image list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let images = context.get::<ImageList>(&[]).await?;
    context.out.reply(&images, |images| render(&context.out, images))
}

fn render(out: &Output, images: &[ImageView]) -> String {
    let header = ["NAME", "STATE", "SIZE", "ON DISK", "FORMAT", "USED BY", "IMPORTED"];
    let mut list = List::new(out, &header);
    let now = time::now();
    for image in images {
        let (state, size, on_disk) = match &image.state {
            ImageState::Ready { virtual_size, file_size, .. } => {
                (Field::toned("ready", Tone::Good), virtual_size.to_string(), file_size.to_string())
            }
            ImageState::Importing { .. } => {
                (Field::toned("importing", Tone::Busy), String::new(), String::new())
            }
            ImageState::Deleting { .. } => {
                (Field::toned("deleting", Tone::Busy), String::new(), String::new())
            }
        };
        list.row(vec![
            Field::from(&image.name),
            state,
            Field::from(size),
            Field::from(on_disk),
            Field::from(image.format),
            Field::from(match image.used_by.len() {
                0 => String::new(),
                1 => image.used_by[0].to_string(),
                count => format!("{count} machines"),
            }),
            Field::from(time::relative(image.created, now)),
        ]);
    }
    list.render("no images; import one with: muster image import NAME SOURCE")
}
