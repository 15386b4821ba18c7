//! `muster web`.

use api::endpoint::WebLinkCreate;
use api::session::WebLinkCreateBody;

use crate::context::Context;
use crate::error::CliError;
use crate::output::clean_line;
use crate::output::time;
use crate::output::word;
use crate::parse;
use crate::parse::RoleWord;

/// Print a link that signs a browser in to the web console, once.
///
/// The link alone goes to standard output. Whoever opens it first is signed in with your rights, for
/// twelve hours at most: give it to nobody.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster web
  muster web --role viewer --valid 2m")]
pub(crate) struct Args {
    /// What may be done in its session; all that you may if left out.
    #[arg(long)]
    role: Option<RoleWord>,
    /// How long the link can be used: 10s to 15m; 5m if left out.
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    valid: Option<u64>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = WebLinkCreateBody { role: args.role.map(Into::into), valid_s: args.valid };
    let link = context.send::<WebLinkCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&link.raw);
    }
    let view = &link.value;
    context.out.note(&format!(
        "open this once, until {}; it signs in as {}. Your browser will not know the certificate: \
         its SHA-256 must be {}",
        time::absolute(view.expires),
        word(&view.role),
        clean_line(&view.fingerprint)
    ));
    context.out.text(&clean_line(&view.url))
}
