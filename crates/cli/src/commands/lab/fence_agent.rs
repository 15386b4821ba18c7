//! `muster lab fence-agent`: the program that nodes find as `fence_muster_lab`.

use crate::error::CliError;

/// Fence a node of a lab: options on standard input, as fence agents take them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo 'action=off
plug=n2' | muster lab fence-agent")]
pub(crate) struct Args {
    /// Action, in place of the one on standard input.
    #[arg(short = 'o', long, value_name = "ACTION")]
    action: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    // The code is part of the conventions: 2 means "off".
    std::process::exit(i32::from(lab::fence::agent_main(args.action.as_deref())))
}
