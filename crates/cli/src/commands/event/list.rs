//! `muster event list`.

use api::ErrorKind;
use api::endpoint::EventList;
use api::endpoint::EventStream;
use api::model::Severity;
use api::model::Subject;
use api::types::EventQuery;
use api::types::EventView;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;
use crate::output::time;

/// How many past events come first when events are followed, as `tail -f` does it.
const FOLLOW_FIRST: u32 = 10;

/// List what happened, the newest last; with --follow, go on as things happen.
///
/// With --json, each event that is followed is one line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster event list
  muster event list --limit 1000 | grep web-1
  muster event list --follow
  muster event list --follow --json | jq -c 'select(.severity == \"error\")'")]
pub(crate) struct Args {
    /// Go on as things happen, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only those after this number.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// At most so many, 1 to 1000; 100 if left out.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let query = EventQuery { after: args.after, limit: args.limit };
    if args.follow {
        return follow(context, query).await;
    }
    let events = context.query::<EventList>(&[], &query).await?;
    context.out.reply(&events, |events| {
        let lines: Vec<_> = events.iter().map(|event| line(&context.out, event)).collect();
        if lines.is_empty() { "no events".to_owned() } else { lines.join("\n") }
    })
}

/// What has happened first, then what happens: the stream goes on where the list ended, so nothing
/// between the two is missed.
async fn follow(context: &Context, mut query: EventQuery) -> Result<(), CliError> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| CliError::failed(format!("cannot watch for Ctrl-C: {error}"), ""))?;
    if query.after.is_none() && query.limit.is_none() {
        query.limit = Some(FOLLOW_FIRST);
    }
    let following = async {
        let past = context.query::<EventList>(&[], &query).await?;
        for event in &past.value {
            print(context, event)?;
            query.after = Some(event.seq);
        }
        query.limit = None;
        let mut stream = context.client.events::<EventStream>(&query).await?;
        while let Some(event) = stream.next().await? {
            print(context, &event)?;
        }
        Err(api::ApiError::new(
            ErrorKind::Unavailable,
            "ended",
            "the daemon has ended the stream",
            "see whether it runs (systemctl status muster), then follow again",
        )
        .into())
    };
    tokio::select! {
        ended = following => ended,
        _ = interrupts.recv() => Err(CliError::interrupted_silently()),
    }
}

fn print(context: &Context, event: &EventView) -> Result<(), CliError> {
    if context.out.json {
        return context.out.text(&serde_json::to_string(event).unwrap_or_default());
    }
    context.out.text(&line(&context.out, event))
}

fn line(out: &Output, event: &EventView) -> String {
    let at = time::absolute(event.event.at);
    let tone = match event.event.severity {
        Severity::Info => Tone::Plain,
        Severity::Warning => Tone::Busy,
        Severity::Error => Tone::Bad,
    };
    let (Subject::Vm { name, .. }
    | Subject::Image { name, .. }
    | Subject::Network { name, .. }
    | Subject::Node { name, .. }
    | Subject::Cluster { name, .. }
    | Subject::Volume { name, .. }
    | Subject::FenceDevice { name, .. }
    | Subject::Rule { name, .. }
    | Subject::Session { name, .. }
    | Subject::Token { name, .. }) = &event.event.subject;
    let kind = format!("{:16}", event.event.kind.as_str());
    let mut text = format!("{}: {}", clean_line(name), clean_line(&event.event.text));
    if let Some(actor) = &event.event.actor {
        text.push_str(&out.paint(Tone::Faint, &format!(" ({})", clean_line(actor))));
    }
    format!("{}  {}  {text}", out.paint(Tone::Faint, &at), out.paint(tone, &kind))
}
