//! Options of the first-boot configuration, shared by `create` and `set`.

use std::path::PathBuf;

use api::model::CloudInit;
use api::model::Name;
use api::model::StaticAddress;

use crate::error::CliError;
use crate::parse;

/// First-boot configuration, for images that have cloud-init.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "First boot (cloud-init)")]
pub(crate) struct GuestArgs {
    /// A user to make, with the right to become root.
    #[arg(long, value_name = "NAME")]
    user: Option<Name>,
    /// SSH public key of that user: a file, or the key itself; may be given more than once.
    #[arg(long, value_name = "FILE|KEY")]
    ssh_key: Vec<String>,
    /// Password of that user as a crypt(5) hash, made with `mkpasswd`; locked if left out.
    #[arg(long, value_name = "HASH")]
    password_hash: Option<String>,
    /// The guest's host name; the machine's name if left out.
    #[arg(long, value_name = "NAME")]
    hostname: Option<Name>,
    /// A fixed address for an adapter; DHCP if left out. May be given more than once:
    /// net0=192.168.1.20/24,gateway=192.168.1.1,dns=192.168.1.1.
    #[arg(long, value_name = "ADAPTER=ADDRESS", value_parser = parse::fixed_address)]
    fixed_address: Vec<(Name, StaticAddress)>,
    /// File with raw user-data, used instead of the options above; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

impl GuestArgs {
    /// The configuration, if any of the options was given.
    pub(crate) fn cloud_init(self) -> Result<Option<CloudInit>, CliError> {
        let mut ssh_keys = Vec::new();
        for key in &self.ssh_key {
            ssh_keys.extend(parse::ssh_keys(key)?);
        }
        let user_data =
            self.user_data.map(|path| parse::file(&path, "the user-data")).transpose()?;
        let config = CloudInit {
            hostname: self.hostname,
            user: self.user,
            ssh_keys,
            password_hash: self.password_hash,
            addresses: self.fixed_address.into_iter().collect(),
            user_data,
        };
        Ok((config != CloudInit::default()).then_some(config))
    }
}
