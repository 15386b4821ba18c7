//! `muster token list`.

use api::endpoint::TokenList;
use api::types::TokenView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;
use crate::output::word;

/// List tokens.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster token list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let tokens = context.get::<TokenList>(&[]).await?;
    context.out.reply(&tokens, |tokens| render(&context.out, tokens))
}

fn render(out: &Output, tokens: &[TokenView]) -> String {
    let mut list = List::new(out, &["NAME", "ROLE", "SHOWN AS", "CREATED", "EXPIRES"]);
    let now = time::now();
    for token in tokens {
        list.row(vec![
            Field::from(&token.name),
            Field::from(word(&token.role)),
            Field::from(if token.certificate.is_some() { "certificate" } else { "secret" }),
            Field::from(time::relative(token.created, now)),
            match token.expires {
                None => Field::from("never"),
                Some(at) if at <= now => Field::toned("expired", Tone::Bad),
                Some(at) => Field::from(time::relative(at, now)),
            },
        ]);
    }
    list.render("no tokens; make one with: muster token create NAME")
}
