//! `muster util man`.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::cli::Cli;
use crate::context::Context;
use crate::error::CliError;

/// Write the man pages into a folder, one for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster util man /usr/local/share/man/man1")]
pub(crate) struct Args {
    /// The folder; it is made if it does not exist.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let shown = args.folder.display();
    std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder))
        .map_err(|error| {
            CliError::failed(format!("cannot write to {shown}: {error}"), "name another folder")
        })?;
    context.out.done(&format!("man pages written to {shown}"))
}
