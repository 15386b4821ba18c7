//! `muster util openapi`.

use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use api::endpoint::OpenApi;

use crate::context::Context;
use crate::error::CliError;

/// Print the OpenAPI document of the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster util openapi > muster-v1.json")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let nothing = Nothing {};
    let document = context.client.call_raw(&OpenApi::INFO, &[], &nothing, &nothing).await?;
    context.out.raw_json(&document)
}
