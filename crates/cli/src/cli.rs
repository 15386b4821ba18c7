//! The tree of commands, the global options, and the way from arguments to an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ColorChoice;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;

use crate::commands;
use crate::context::Context;
use crate::daemon;
use crate::error::CliError;
use crate::guard;
use crate::output::Output;
use crate::witness;

/// Where a daemon listens if nothing else is said.
pub(crate) const SOCKET_DEFAULT: &str = "/run/muster/api.sock";

/// Told in the help and the man page; the table in the reference is made from `error::EXIT_CODES`.
const AFTER_HELP: &str = "\
Exit codes:
  0    it was done
  1    it was tried and failed; the message says why
  2    the command or a value in it is wrong
  3    there is no such thing
  4    not allowed: no valid token, or the role does not suffice
  5    it does not fit the present state
  6    the daemon does not answer or is too busy
  130  interrupted by Ctrl-C

Examples:
  muster image import debian https://cloud.debian.org/.../debian-12-generic-amd64.qcow2
  muster vm create web-1 --image debian --cpus 2 --memory 1G --start
  muster vm list
  muster top";

/// Muster runs virtual machines on Linux hosts.
///
/// Every command but `daemon` and `guard` is a client of the daemon's API, on a Unix socket of this machine or
/// on a TLS port (--host).
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    after_help = AFTER_HELP,
    after_long_help = AFTER_HELP,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Options that every command has.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Socket of the daemon on this machine.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "MUSTER_SOCKET",
        hide_env_values = true,
        default_value = SOCKET_DEFAULT,
        conflicts_with = "host"
    )]
    pub(crate) socket: PathBuf,
    /// TLS port of a daemon on another machine.
    #[arg(
        long,
        global = true,
        value_name = "ADDR:PORT",
        env = "MUSTER_HOST",
        hide_env_values = true
    )]
    pub(crate) host: Option<String>,
    /// SHA-256 of that daemon's certificate, as `muster node show` on that machine prints it.
    #[arg(
        long,
        global = true,
        value_name = "HEX",
        env = "MUSTER_FINGERPRINT",
        hide_env_values = true
    )]
    pub(crate) fingerprint: Option<String>,
    /// API token for --host; other users of this machine can see it here, so prefer MUSTER_TOKEN or
    /// --token-file.
    #[arg(
        long,
        global = true,
        value_name = "SECRET",
        env = "MUSTER_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// File with the API token for --host.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Print the API's JSON instead of text; errors too, on standard error.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colours; `auto` means on a terminal, and never where NO_COLOR is set.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorChoice,
    /// Print neither progress nor notes, only results and errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Show what the node knows, also if it is old or no majority answers.
    #[arg(long, global = true)]
    pub(crate) stale: bool,
    /// Do not wait for the operation that is started; print its id.
    #[arg(long, global = true)]
    pub(crate) no_wait: bool,
}

/// The nouns, and the verbs that have none.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value, made once")]
pub(crate) enum Command {
    /// Virtual machines: create, change, start, stop, look.
    Vm(commands::vm::Args),
    /// Disk images that machines are made from.
    Image(commands::image::Args),
    /// Networks that machines are plugged into.
    Network(commands::network::Args),
    /// Volumes: places for machines and images that several nodes reach.
    Volume(commands::volume::Args),
    /// Placement rules: which machines belong together, and which apart.
    Disk(commands::disk::Args),
    Rule(commands::rule::Args),
    /// Tokens for the API's TLS port.
    Token(commands::token::Args),
    /// Print a link that signs a browser in to the web console, once.
    Web(commands::web::Args),
    /// Sessions of browsers in the web console.
    Session(commands::session::Args),
    /// Operations: what is being done, and how it ended.
    Op(commands::op::Args),
    /// Events: what happened.
    Event(commands::event::Args),
    /// The hosts.
    Node(commands::node::Args),
    /// The cluster: several hosts that stand in for each other.
    Cluster(commands::cluster::Args),
    /// Fencing: devices that switch nodes off.
    Fence(commands::fence::Args),
    /// Watch machines live: phase, processor, memory, heartbeat.
    Top(commands::top::Args),
    /// Print figures of the node for monitoring programs.
    Metrics(commands::metrics::Args),
    /// Show the versions of this program and of the daemon.
    Version(commands::version::Args),
    /// Show who the daemon takes you for, and what you may do.
    Whoami(commands::whoami::Args),
    /// Run the daemon of this host.
    Daemon(daemon::Args),
    /// A whole cluster on this machine, to try and to break.
    Lab(commands::lab::Args),
    /// Run the guard of this host.
    Guard(guard::Args),
    /// Run a witness: a third vote for clusters of two nodes.
    Witness(witness::Args),
    /// Completions, man pages, reference, API document.
    Util(commands::util::Args),
}

/// Parses, runs, and tells how it went.
pub(crate) fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Output::new(&cli.global);
    let result = match cli.command {
        Command::Daemon(args) => daemon::run(args, &cli.global.socket),
        Command::Lab(args) => commands::lab::run(args, !cli.global.no_wait, out),
        Command::Guard(args) => guard::run(args),
        Command::Witness(args) => witness::run(args, &out),
        command => client(&cli.global, command, out),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            // Not a return from `main`: a thread that still reads standard input must not hold
            // the process.
            std::process::exit(i32::from(error.exit_code()));
        }
    }
}

/// Colours of clap's own texts follow `--color`, which clap must know before it parses.
fn parse() -> Result<Cli, clap::Error> {
    let mut args = std::env::args_os().skip(1);
    let mut choice = ColorChoice::Auto;
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else { continue };
        let value = match text.strip_prefix("--color=") {
            Some(value) => value.to_owned(),
            None if text == "--color" => {
                args.next().unwrap_or_default().to_string_lossy().into_owned()
            }
            None => continue,
        };
        match value.as_str() {
            "always" => choice = ColorChoice::Always,
            "never" => choice = ColorChoice::Never,
            _ => {}
        }
    }
    let matches = Cli::command().color(choice).try_get_matches()?;
    Cli::from_arg_matches(&matches)
}

/// Help and version are no failure; a usage error is JSON where JSON was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().skip(1).any(|arg| arg == "--json");
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let (message, hint) = text.split_once("\n\n").unwrap_or((&text, ""));
        let message = message.trim_start_matches("error: ").trim();
        let error = CliError::usage(message, hint.trim());
        eprintln!("{}", error.to_json());
        return ExitCode::from(error.exit_code());
    }
    // A closed pipe is the reader's choice.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn client(global: &GlobalArgs, command: Command, out: Output) -> Result<(), CliError> {
    // One thread is enough for a client, and starts faster than a pool.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start: {error}"), ""))?;
    let result = runtime.block_on(async {
        let context = Context::new(global, out)?;
        dispatch(command, &context).await
    });
    // A blocked read of standard input would be waited for otherwise.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Vm(args) => commands::vm::run(args, context).await,
        Command::Image(args) => commands::image::run(args, context).await,
        Command::Network(args) => commands::network::run(args, context).await,
        Command::Volume(args) => commands::volume::run(args, context).await,
        Command::Disk(args) => commands::disk::run(args, context).await,
        Command::Rule(args) => commands::rule::run(args, context).await,
        Command::Token(args) => commands::token::run(args, context).await,
        Command::Web(args) => commands::web::run(args, context).await,
        Command::Session(args) => commands::session::run(args, context).await,
        Command::Op(args) => commands::op::run(args, context).await,
        Command::Event(args) => commands::event::run(args, context).await,
        Command::Node(args) => commands::node::run(args, context).await,
        Command::Cluster(args) => commands::cluster::run(args, context).await,
        Command::Fence(args) => commands::fence::run(args, context).await,
        Command::Top(args) => commands::top::run(args, context).await,
        Command::Version(args) => commands::version::run(args, context).await,
        Command::Metrics(args) => commands::metrics::run(args, context).await,
        Command::Whoami(args) => commands::whoami::run(args, context).await,
        Command::Util(args) => commands::util::run(args, context).await,
        Command::Daemon(_) | Command::Guard(_) | Command::Lab(_) | Command::Witness(_) => {
            unreachable!("they are no clients")
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_help_and_examples() {
        fn walk(command: &clap::Command, path: &str, bad: &mut Vec<String>) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let path = format!("{path} {}", verb.get_name());
                if verb.get_about().is_none() {
                    bad.push(format!("{path}: no help"));
                }
                let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                if !verb.has_subcommands() && !after.contains(path.trim()) {
                    bad.push(format!("{path}: no example of it in after_help"));
                }
                for arg in verb.get_arguments().filter(|arg| arg.get_help().is_none()) {
                    bad.push(format!("{path}: no help for {}", arg.get_id()));
                }
                walk(verb, &path, bad);
            }
        }
        let mut bad = Vec::new();
        let mut command = Cli::command();
        command.build();
        walk(&command, "muster", &mut bad);
        assert!(bad.is_empty(), "{}", bad.join("\n"));
    }
}
