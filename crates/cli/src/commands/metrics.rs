//! `muster metrics`.

use api::endpoint::Endpoint;
use api::endpoint::Metrics;
use api::endpoint::Nothing;

use crate::context::Context;
use crate::error::CliError;

/// Print figures of the node for monitoring programs, in the OpenMetrics format.
///
/// The same text is at /metrics of the node's TLS port, for a program with a viewer's token. Each node
/// tells of its own machines.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster metrics
  muster metrics | grep muster_vm_phase")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let nothing = Nothing {};
    let bytes = context.client.call_raw(&Metrics::INFO, &[], &nothing, &nothing).await?;
    let text = String::from_utf8_lossy(&bytes);
    if context.out.json {
        return context.out.text(&serde_json::json!({ "text": text }).to_string());
    }
    context.out.text(text.trim_end())
}
