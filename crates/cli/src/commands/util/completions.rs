//! `muster util completions`.

use clap::CommandFactory;
use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::cli::Cli;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Print the completion script for a shell; it completes names of machines and images too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster util completions bash > /etc/bash_completion.d/muster
  muster util completions fish > ~/.config/fish/completions/muster.fish
  muster util completions zsh --static > /usr/share/zsh/vendor-completions/_muster")]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
    /// A script that knows commands and options only, and never calls muster.
    #[arg(long = "static")]
    fixed: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut script = Vec::new();
    if args.fixed {
        clap_complete::generate(args.shell, &mut Cli::command(), "muster", &mut script);
        return context.out.bytes(&script);
    }
    let shells = Shells::builtins();
    let name = args.shell.to_string();
    let Some(completer) = shells.completer(&name) else {
        return Err(CliError::usage(format!("{name} cannot ask for names"), "add --static"));
    };
    completer
        .write_registration(complete::VARIABLE, "muster", "muster", "muster", &mut script)
        .map_err(|error| CliError::failed(format!("cannot make the script: {error}"), ""))?;
    context.out.bytes(&script)
}
