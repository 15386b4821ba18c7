//! `muster image delete`.

use api::endpoint::ImageDelete;

use crate::commands::each;
use crate::complete;
use crate::confirm::Unasked;
use crate::confirm::confirm;
use crate::context::Context;
use crate::error::CliError;

/// Delete an image that no machine uses, for good.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster image delete debian
  muster image delete debian --yes")]
pub(crate) struct Args {
    /// Names or ids of the images.
    #[arg(value_name = "NAME", required = true, add = complete::images())]
    names: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let loss = format!("this removes the image {} for good", args.names.join(", "));
    confirm(context, args.yes, &loss, Unasked::Refuse)?;
    each(context, &args.names, async |name| context.get::<ImageDelete>(&[name]).await).await
}
