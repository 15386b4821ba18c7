//! `muster lab node-root`: puts a node's root file system together; started by `up`.

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;

/// Put a node's root together, in namespaces made for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab node-root n1")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
}

pub(crate) fn run(args: &Args, lab: &Lab) -> Result<(), CliError> {
    Ok(lab::enter_node_root(lab, args.node)?)
}
