//! `muster cluster status`.

use api::cluster::ClusterHealth;
use api::cluster::ClusterView;
use api::endpoint::ClusterShow;
use api::witness::WitnessPlaceView;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;
use crate::output::word;

/// Show the cluster on one screen: who leads, who votes, what may still be lost, what to do.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster status
  muster cluster status --json | jq -r .health")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), CliError> {
    let cluster = context.get::<ClusterShow>(&[]).await?;
    context.out.reply(&cluster, |cluster| render(&context.out, cluster))
}

fn render(out: &Output, cluster: &ClusterView) -> String {
    let (tone, health) = match cluster.health {
        ClusterHealth::Single => (Tone::Plain, "one host"),
        ClusterHealth::Healthy => (Tone::Good, "healthy"),
        ClusterHealth::Degraded => (Tone::Busy, "works, something is missing"),
        ClusterHealth::NoQuorum => (Tone::Bad, "no majority"),
        ClusterHealth::Gone => (Tone::Bad, "no longer a member"),
    };
    let mut text = String::new();
    if let Some(name) = &cluster.name {
        text.push_str(&format!("cluster {}: ", clean_line(name.as_str())));
    }
    text.push_str(&out.paint(tone, health));
    text.push('\n');
    for words in &cluster.words {
        text.push_str(&format!("  {}\n", clean_line(words)));
    }
    if cluster.name.is_none() {
        return text.trim_end().to_owned();
    }
    let mut list = List::new(out, &["NODE", "PART", "STATE", "BEHIND", "CERTIFICATE", "ADDRESSES"]);
    let now = time::now();
    for node in &cluster.nodes {
        list.row(vec![
            Field::from(&node.name),
            Field::from(word(&node.part)),
            answers(node.reachable),
            Field::from(node.behind.map_or("?".to_owned(), |behind| behind.to_string())),
            match node.certificate_ends {
                Some(at) => Field::from(time::relative(at, now)),
                None => Field::from("?"),
            },
            Field::from(node.addresses.join(" ")),
        ]);
    }
    if let Some(witness) = &cluster.witness {
        list.row(vec![
            Field::from("(witness)"),
            Field::from(match (witness.retired, witness.votes) {
                (true, _) => "leaving",
                (false, true) => "voter",
                (false, false) => "ready",
            }),
            answers(witness.reachable),
            Field::from("-"),
            Field::from("-"),
            Field::from(match &witness.place {
                WitnessPlaceView::Directory { path } | WitnessPlaceView::Block { path } => path,
                WitnessPlaceView::Object { url, .. } => url,
                WitnessPlaceView::Remote { address } => address,
            }),
        ]);
    }
    format!("{text}\n{}", list.render("no nodes"))
}

fn answers(reachable: bool) -> Field {
    match reachable {
        true => Field::toned("answers", Tone::Good),
        false => Field::toned("silent", Tone::Bad),
    }
}
