//! `muster lab fence`.

use lab::FenceMood;
use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Say what a node's pretend fence device does.
///
/// The devices are one BMC; nodes reach it with the agent /muster/bin/fence_muster_lab, which takes
/// its options as the agents of the package fence-agents do.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab fence n2 fails
  muster lab fence n2 works
  echo 'plug=n2' | muster lab exec n1 -- fence_muster_lab --action status")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
    /// What the device does when it is asked.
    mood: Mood,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Mood {
    /// What it is told.
    Works,
    /// It says that it failed, and does nothing.
    Fails,
    /// It never answers.
    Hangs,
    /// It says that the node is off, and does nothing.
    Lies,
    /// What it is told, after ten seconds.
    Slow,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let (mood, word) = match args.mood {
        Mood::Works => (FenceMood::Works, "works"),
        Mood::Fails => (FenceMood::Fails, "fails"),
        Mood::Hangs => (FenceMood::Hangs, "hangs"),
        Mood::Lies => (FenceMood::Lies, "lies"),
        Mood::Slow => (FenceMood::Slow, "is slow"),
    };
    lab.set_fence(args.node, mood)?;
    out.done(&format!("the fence device of {} {word}", args.node))
}
