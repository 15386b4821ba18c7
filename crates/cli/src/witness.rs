//! `muster witness`, the role: like the daemon, no client.

use std::fs;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;

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
  muster witness --listen 0.0.0.0:7446 --public 203.0.113.9:7446 --data-dir /srv/witness
  muster witness --token-file /root/witness-token")]
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
    /// Where the token is written, readable by its owner only; then it is not printed.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Runs the witness until it is told to stop.
pub(crate) fn run(args: Args, out: &Output) -> Result<(), CliError> {
    let ready = |token: &str| {
        out.note("on a node of the cluster: muster cluster witness set --witness-token-file FILE");
        let Some(file) = &args.token_file else {
            // Nobody reads it: then nobody needs it, and the witness serves all the same.
            let _ = out.text(token);
            return Ok(());
        };
        write_secret(file, token).with_context(|| format!("the token file {}", file.display()))
    };
    node::witness::run(&args.data_dir, args.listen, args.public, ready).map_err(|error| {
        CliError::failed(
            format!("the witness cannot run: {error:#}"),
            "see the options: muster witness --help",
        )
    })
}

/// Writes a secret that nobody but the owner of the file may read, whatever was there before.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let part = path.with_extension("new");
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_file_is_its_owners_only_also_over_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(dir.path().join("token.new"), "left behind").unwrap();
        write_secret(&path, "mwt_x").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mwt_x\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write_secret(&dir.path().join("none/token"), "x").unwrap_err();
    }
}
