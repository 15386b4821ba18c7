//! `muster cluster token`.

use api::cluster::JoinTokenCreateBody;
use api::endpoint::JoinTokenCreate;
use api::endpoint::JoinTokenList;
use api::endpoint::JoinTokenRevoke;

use crate::context::Context;
use crate::error::CliError;
use crate::output::clean_line;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;
use crate::parse;

/// Make a token by which other hosts join; it is printed this once and kept nowhere.
///
/// Whoever has it can make their host a node of this cluster while it is valid, so carry it like a
/// password. It also tells the new host which cluster is the true one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster token
  muster cluster token --ttl 10m --uses 1
  muster cluster token --list
  muster cluster token --revoke 0191f6a0-7c1e-7d2a-8f00-0123456789ab")]
pub(crate) struct Args {
    /// How long it is valid: 90s, 30m, 12h, at most 7d.
    #[arg(long, value_name = "TIME", value_parser = parse::seconds, default_value = "1h")]
    ttl: u64,
    /// How many hosts it takes in.
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    uses: u32,
    /// List the tokens that are still valid, instead of making one.
    #[arg(long, conflicts_with_all = ["ttl", "uses", "revoke"])]
    list: bool,
    /// Make the token of that id invalid, instead of making one.
    #[arg(long, value_name = "ID", conflicts_with_all = ["ttl", "uses"])]
    revoke: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.list {
        return list(context).await;
    }
    if let Some(token) = args.revoke {
        let reply = context.get::<JoinTokenRevoke>(&[&token]).await?;
        if context.out.json {
            return context.out.raw_json(&reply.raw);
        }
        return context.out.done(&format!("join token {token} is no longer valid"));
    }
    let body = JoinTokenCreateBody { valid_s: Some(args.ttl), uses: Some(args.uses) };
    let made = context.send::<JoinTokenCreate>(&[], &body).await?;
    if context.out.json {
        return context.out.raw_json(&made.raw);
    }
    let token = &made.value.token;
    context.out.note(&format!(
        "valid until {} for {} hosts; on each of them: muster cluster join TOKEN",
        time::absolute(token.expires),
        token.uses
    ));
    context.out.text(&clean_line(&made.value.text))
}

async fn list(context: &Context) -> Result<(), CliError> {
    let tokens = context.get::<JoinTokenList>(&[]).await?;
    context.out.reply(&tokens, |tokens| {
        let mut list = List::new(&context.out, &["ID", "HOSTS LEFT", "EXPIRES", "MADE BY"]);
        let now = time::now();
        for token in tokens {
            list.row(vec![
                Field::from(token.id),
                Field::from(token.uses),
                Field::from(time::relative(token.expires, now)),
                Field::from(&token.by),
            ]);
        }
        list.render("no join token is valid; make one with: muster cluster token")
    })
}
