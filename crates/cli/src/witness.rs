//! `muster witness`, the role: like the daemon, no client.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::CliError;
use crate::output::Output;

/// Run a witness: a third vote for clusters of two nodes, on any small machine.
///
/// It prints a token when it listens. The token pins the witness's certificate and lets whoever has
/// it use the witness, so carry it like a password; the next start prints the same one. One witness
/// can serve many clusters. It needs a few megabytes, and no name, share or user.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster witness --data-dir /var/lib/muster-witness
  muster witness --listen 192.0.2.9:7446 --data-dir /var/lib/muster-witness
  muster witness --listen 0.0.0.0:7446 --public 203.0.113.9:7446 --data-dir /srv/witness")]
pub(crate) struct Args {
    /// Where it listens.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7446")]
    listen: SocketAddr,
    /// Where its records, certificate and secret are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/muster-witness")]
    data_dir: PathBuf,
    /// Where clusters reach it, if that is not where it listens; it stands in the token.
    #[arg(long, value_name = "ADDR:PORT")]
    public: Option<SocketAddr>,
}

/// Runs the witness until it is told to stop.
pub(crate) fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let ready = |token: &str| {
        out.note("on a node of the cluster: muster cluster witness set --witness-token-file FILE");
        // Nobody reads it: then nobody needs it, and the witness serves all the same.
        let _ = out.text(token);
    };
    node::witness::run(&args.data_dir, args.listen, args.public, ready).map_err(|error| {
        CliError::failed(
            format!("the witness cannot run: {error:#}"),
            "see the options: muster witness --help",
        )
    })
}
