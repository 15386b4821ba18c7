//! `muster session list`.

use api::endpoint::SessionList;
use api::model::SessionStage;
use api::session::SessionView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::clean_line;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;
use crate::output::word;

/// List who is signed in with a browser, and sign-in links that nobody has used.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster session list")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let sessions = context.get::<SessionList>(&[]).await?;
    context.out.reply(&sessions, |sessions| render(&context.out, sessions))
}

fn render(out: &Output, sessions: &[SessionView]) -> String {
    let mut list = List::new(out, &["ID", "WHO", "ROLE", "STATE", "BEGUN", "ENDS"]);
    let now = time::now();
    for session in sessions {
        let stage = match session.stage {
            SessionStage::Link => "link, not used",
            SessionStage::Open => "signed in",
        };
        list.row(vec![
            Field::from(session.id.to_string()),
            Field::from(clean_line(&session.actor)),
            Field::from(word(&session.role)),
            Field::from(stage),
            Field::from(time::relative(session.created, now)),
            Field::from(time::relative(session.expires, now)),
        ]);
    }
    list.render("nobody is signed in; make a link with: muster web")
}
