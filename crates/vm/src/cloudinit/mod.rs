//! First-boot configuration of a guest: the contents of a NoCloud seed and the disc it is on.
//!
//! ```text
//! CloudInit + NICs --Seed::build--> meta-data, user-data, network-config --iso--> CIDATA disc
//! ```
//!
//! All three files are JSON, which is YAML: no value of a user's can break out of its quotes. The
//! disc is the same, byte for byte, for the same input, on every node.
//!
//! The *instance id* decides what cloud-init does again. It is made of the VM's id and a hash of
//! what the user configured, so an unrelated change of the VM (a disk, memory) does not make the
//! guest generate new SSH host keys at its next boot. A change of adapters does not either:
//! generated user-data asks for the network to be configured at each boot.

mod iso;
mod ssh;

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use model::CloudInit;
use model::Name;
use model::NicSpec;
use model::VmId;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use thiserror::Error;

#[cfg(test)]
mod tests;

/// Largest raw user-data: what cloud platforms take is 16 to 64 KiB; ours is generous.
const USER_DATA_BYTES_MAX: usize = 1 << 20;

/// What a seed is made from.
#[derive(Debug, Clone, Copy)]
pub struct SeedInput<'a> {
    /// The VM.
    pub vm: VmId,
    /// Its name: the host name where none is configured.
    pub name: &'a Name,
    /// Its configuration.
    pub config: &'a CloudInit,
    /// Its network adapters, in their order.
    pub nics: &'a [NicSpec],
}

/// The files of a NoCloud seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    instance_id: String,
    meta_data: Vec<u8>,
    user_data: Vec<u8>,
    network_config: Vec<u8>,
}

/// Why a seed cannot be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CloudInitError {
    /// A key that sshd would not take.
    #[error("SSH key {number} is not a public key ({reason}); give the line of a .pub file")]
    BadKey {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A password that is no hash would stand readable on the disc.
    #[error(
        "the password must be a crypt(5) hash such as $6$...; make one with `mkpasswd -m sha512crypt`"
    )]
    BadHash,
    /// Addresses for adapters that the VM does not have.
    #[error(
        "there is an address for the adapter `{0}`, which the VM does not have; add it or remove the address"
    )]
    UnknownNic(Name),
    /// Too large for a seed.
    #[error(
        "the user-data has {0} bytes, at most {USER_DATA_BYTES_MAX} fit; let it fetch the rest"
    )]
    TooLarge(usize),
}

impl Seed {
    /// Makes the files.
    ///
    /// # Errors
    /// [`CloudInitError`]: the configuration must be changed.
    pub fn build(input: SeedInput<'_>) -> Result<Self, CloudInitError> {
        let config = input.config;
        check(&input)?;
        let hostname = hostname(config.hostname.as_ref().unwrap_or(input.name));
        let network_config = to_bytes("", &network_config(&input));
        let (user_data, network_is_instance) = match &config.user_data {
            Some(raw) => (raw.clone().into_bytes(), true),
            None => (to_bytes("#cloud-config\n", &user_data(config, &hostname)), false),
        };
        let mut hash = Sha256::new();
        hash.update(hostname.as_bytes());
        hash.update([0]);
        hash.update(&user_data);
        if network_is_instance {
            hash.update([0]);
            hash.update(&network_config);
        }
        let instance_id = format!("muster-{}-{}", input.vm, &hex::encode(hash.finalize())[..8]);
        let meta_data = json!({ "instance-id": instance_id, "local-hostname": hostname });
        let meta_data = to_bytes("", &meta_data);
        Ok(Self { instance_id, meta_data, user_data, network_config })
    }

    /// The instance id in it.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// The files by name.
    #[must_use]
    pub fn files(&self) -> [(&'static str, &[u8]); 3] {
        [
            ("meta-data", &self.meta_data),
            ("network-config", &self.network_config),
            ("user-data", &self.user_data),
        ]
    }

    /// The disc: an ISO 9660 image with the label CIDATA.
    #[must_use]
    pub fn iso(&self) -> Vec<u8> {
        iso::build("CIDATA", &self.files())
    }

    /// Writes the disc to `path` (mode 0400, it may hold a password hash), whole or not at all.
    ///
    /// # Errors
    /// What the host said.
    pub fn write_iso(&self, path: &Path) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = path.with_file_name(name);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let write = || {
            let mut file =
                fs::File::options().write(true).create_new(true).mode(0o400).open(&fresh)?;
            file.write_all(&self.iso())?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        let done = write();
        if done.is_err() {
            // The first error counts; a leftover is removed by the next call.
            let _ = fs::remove_file(&fresh);
        }
        done
    }
}

fn check(input: &SeedInput<'_>) -> Result<(), CloudInitError> {
    let config = input.config;
    for (number, key) in (1..).zip(&config.ssh_keys) {
        ssh::check_key(key).map_err(|reason| CloudInitError::BadKey { number, reason })?;
    }
    if let Some(hash) = &config.password_hash {
        let is_hash = hash.starts_with('$')
            && hash.matches('$').count() >= 3
            && hash.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !is_hash {
            return Err(CloudInitError::BadHash);
        }
    }
    let known = |name: &Name| input.nics.iter().any(|nic| nic.name.key() == name.key());
    if let Some(stray) = config.addresses.keys().find(|name| !known(name)) {
        return Err(CloudInitError::UnknownNic(stray.clone()));
    }
    match config.user_data.as_ref().map(String::len) {
        Some(len) if len > USER_DATA_BYTES_MAX => Err(CloudInitError::TooLarge(len)),
        _ => Ok(()),
    }
}

/// A name fit for a host: our names may have `_`, hosts may not.
fn hostname(name: &Name) -> String {
    name.as_str().replace('_', "-").trim_end_matches(['-', '.']).to_owned()
}

fn user_data(config: &CloudInit, hostname: &str) -> Value {
    let mut data = json!({
        "hostname": hostname,
        // So that `sudo` finds its own host.
        "manage_etc_hosts": "localhost",
        // New adapters work from the next boot on.
        "updates": { "network": { "when": ["boot-new-instance", "boot"] } },
    });
    match &config.user {
        Some(user) => {
            let mut account = json!({
                "name": user.as_str(),
                "gecos": user.as_str(),
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": config.password_hash.is_none(),
                "ssh_authorized_keys": config.ssh_keys,
            });
            if let Some(hash) = &config.password_hash {
                account["passwd"] = json!(hash);
            }
            data["users"] = json!([account]);
        }
        None => {
            if !config.ssh_keys.is_empty() {
                data["ssh_authorized_keys"] = json!(config.ssh_keys);
            }
            if let Some(hash) = &config.password_hash {
                data["password"] = json!(hash);
                data["chpasswd"] = json!({ "expire": false });
            }
        }
    }
    data
}

/// Network configuration version 2. Adapters are found by their MAC address and named eth0, eth1
/// ... in the VM's order: some renderers of cloud-init take the key for the name otherwise.
fn network_config(input: &SeedInput<'_>) -> Value {
    let mut ethernets = serde_json::Map::new();
    for (index, nic) in input.nics.iter().enumerate() {
        let name = format!("eth{index}");
        let mut ethernet = json!({
            "match": { "macaddress": nic.mac.to_string().to_ascii_lowercase() },
            "set-name": name,
        });
        let fixed = input.config.addresses.iter().find(|(name, _)| name.key() == nic.name.key());
        match fixed {
            None => ethernet["dhcp4"] = json!(true),
            Some((_, address)) => {
                ethernet["dhcp4"] = json!(false);
                ethernet["addresses"] = json!([address.address]);
                if let Some(gateway) = address.gateway {
                    // Not `default`: cloud-init before 23 knows numbers only.
                    ethernet["routes"] = json!([{ "to": "0.0.0.0/0", "via": gateway }]);
                }
                if !address.dns.is_empty() {
                    ethernet["nameservers"] = json!({ "addresses": address.dns });
                }
            }
        }
        ethernets.insert(name, ethernet);
    }
    json!({ "version": 2, "ethernets": ethernets })
}

fn to_bytes(head: &str, value: &Value) -> Vec<u8> {
    format!("{head}{:#}\n", sorted(value)).into_bytes()
}

/// The same value with its keys in order. Whether serde_json keeps keys sorted is a switch that any
/// crate of a build may turn; these bytes must not depend on it.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            keys.into_iter().map(|key| (key.clone(), sorted(&map[key]))).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
