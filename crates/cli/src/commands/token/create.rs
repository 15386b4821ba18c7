//! `muster token create`.

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
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = TokenCreateBody { name: args.name, role: args.role.into(), valid_s: args.valid };
    let token = context.send::<TokenCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&token.raw);
    }
    let view = &token.value.token;
    let ends = match view.expires {
        Some(at) => format!("until {}", time::absolute(at)),
        None => "for ever".to_owned(),
    };
    context.out.note(&format!(
        "token {} ({}) is valid {ends}; its secret is shown this once:",
        view.name,
        word(&view.role)
    ));
    context.out.text(&crate::output::clean_line(&token.value.secret))
}
