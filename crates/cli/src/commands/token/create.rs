//! `muster token create`.

use std::path::Path;
use std::path::PathBuf;

use api::endpoint::TokenCreate;
use api::model::Name;
use api::types::TokenCreateBody;

use crate::context::Context;
use crate::error::CliError;
use crate::output::time;
use crate::output::word;
use crate::parse;
use crate::parse::RoleWord;

/// Make a token; its secret is printed this once and kept nowhere.
///
/// The secret alone goes to standard output, so it can be sent to a file that only you can read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster token create ci --role operator --valid 90d
  (umask 077; muster token create ci > ci.token)
  muster token create anna --role administrator --certificate anna.pem
  muster --host vmhost:7443 --fingerprint HEX --token-file ci.token vm list")]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// What its bearer may do.
    #[arg(long, default_value = "viewer")]
    role: RoleWord,
    /// How long it is valid: 90s, 30m, 12h, 7d; for ever if left out.
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    valid: Option<u64>,
    /// Certificate (PEM) that a browser shows to sign in to the web console, instead of a secret.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let certificate = args.certificate.as_deref().map(read).transpose()?;
    let role = args.role.into();
    let body = TokenCreateBody { name: args.name, role, valid_s: args.valid, certificate };
    let token = context.send::<TokenCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&token.raw);
    }
    let view = &token.value.token;
    let ends = match view.expires {
        Some(at) => format!("until {}", time::absolute(at)),
        None => "for ever".to_owned(),
    };
    if view.certificate.is_some() {
        return context.out.text(&format!(
            "{} ({}) may sign in to the web console with that certificate {ends}\n",
            view.name,
            word(&view.role)
        ));
    }
    context.out.note(&format!(
        "token {} ({}) is valid {ends}; its secret is shown this once:",
        view.name,
        word(&view.role)
    ));
    context.out.text(&crate::output::clean_line(&token.value.secret))
}

/// A certificate is some kilobytes; a larger file is something else.
const CERTIFICATE_BYTES_MAX: u64 = 64 * 1024;

fn read(path: &Path) -> Result<String, CliError> {
    let usage = |problem: String| {
        let message = format!("the certificate {} cannot be read: {problem}", path.display());
        CliError::usage(message, "name a file with one certificate as PEM")
    };
    let size = std::fs::metadata(path).map_err(|error| usage(error.to_string()))?.len();
    if size > CERTIFICATE_BYTES_MAX {
        return Err(usage(format!("it has {size} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))
}
