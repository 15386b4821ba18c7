//! `muster image show`.

use api::endpoint::ImageShow;
use api::model::ImageSource;
use api::model::ImageState;
use api::types::ImageView;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::time;

/// Show an image.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster image show debian")]
pub(crate) struct Args {
    /// Name or id of the image.
    #[arg(value_name = "NAME", add = complete::images())]
    image: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let image = context.get::<ImageShow>(&[&args.image]).await?;
    context.out.reply(&image, |image| render(&context.out, image))
}

fn render(out: &Output, image: &ImageView) -> String {
    let mut sheet = Sheet::new(out);
    sheet.group(image.name.as_str());
    match &image.state {
        ImageState::Ready { virtual_size, file_size, sha256 } => {
            sheet.toned("state", "ready", Tone::Good);
            sheet.row("size", virtual_size);
            sheet.row("on disk", file_size);
            sheet.row("SHA-256", sha256);
        }
        ImageState::Importing { op } => {
            sheet.toned("state", format!("importing, operation {op}"), Tone::Busy);
        }
        ImageState::Deleting { op } => {
            sheet.toned("state", format!("deleting, operation {op}"), Tone::Busy);
        }
    }
    match &image.source {
        ImageSource::File { path } => sheet.row("source", path),
        ImageSource::Url { url } => sheet.row("source", url),
    }
    sheet.row("format there", image.format);
    sheet.row("imported", time::both(image.created, time::now()));
    let users: Vec<_> = image.used_by.iter().map(ToString::to_string).collect();
    sheet.row("used by", users.join(", "));
    sheet.row("id", image.id);
    sheet.render()
}
