//! Values of options turned into meaning, each in one place.

use std::path::Path;
use std::str::FromStr;

use api::model::DiskFormat;
use api::model::Name;
use api::model::Role;
use api::model::StaticAddress;
use api::types::DiskAddBody;
use api::types::NicAddBody;
use clap::ValueEnum;

use crate::error::CliError;

/// Beginnings of a line that is an SSH public key and no file name.
const SSH_KEY_STARTS: [&str; 4] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
/// Largest file that is read for an option: ten times what the API takes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A role, as a word of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RoleWord {
    /// Look at everything but consoles and secrets.
    Viewer,
    /// Use what there is: power, consoles, disks and adapters.
    Operator,
    /// Everything, tokens and networks among it.
    Administrator,
}

impl From<RoleWord> for Role {
    fn from(word: RoleWord) -> Self {
        match word {
            RoleWord::Viewer => Self::Viewer,
            RoleWord::Operator => Self::Operator,
            RoleWord::Administrator => Self::Administrator,
        }
    }
}

/// A disk: `20G`, or `size=20G,name=data,image=debian,format=raw,ro`.
pub(crate) fn disk(text: &str) -> Result<DiskAddBody, String> {
    let mut disk = DiskAddBody::default();
    for (key, value) in fields(text, "size")? {
        match key {
            "size" => disk.size = Some(value_of(key, value)?),
            "name" => disk.name = Some(value_of(key, value)?),
            "image" => disk.image = Some(value.to_owned()),
            "format" => disk.format = format(value)?,
            "ro" if matches!(value, "" | "true" | "on") => disk.read_only = true,
            _ => return Err(unknown(key, "size, name, image, format (qcow2 or raw) and ro")),
        }
    }
    if disk.size.is_none() && disk.image.is_none() {
        return Err("a disk needs a size or an image, such as size=20G".to_owned());
    }
    Ok(disk)
}

/// An adapter: `lan`, or `network=lan,name=net1,mac=52:54:00:12:34:56,address=10.77.0.20`.
pub(crate) fn nic(text: &str) -> Result<NicAddBody, String> {
    let mut nic = NicAddBody::default();
    for (key, value) in fields(text, "network")? {
        match key {
            "network" => nic.network = Some(value_of(key, value)?),
            "name" => nic.name = Some(value_of(key, value)?),
            "mac" => nic.mac = Some(value_of(key, value)?),
            "address" => nic.address = Some(value_of(key, value)?),
            _ => return Err(unknown(key, "network, name, mac and address")),
        }
    }
    Ok(nic)
}

/// A fixed address: `net0=192.168.1.20/24,gateway=192.168.1.1,dns=192.168.1.1`.
pub(crate) fn fixed_address(text: &str) -> Result<(Name, StaticAddress), String> {
    let (first, rest) = text.split_once(',').unwrap_or((text, ""));
    let (adapter, address) = first
        .split_once('=')
        .ok_or("write ADAPTER=ADDRESS/PREFIX, such as net0=192.168.1.20/24")?;
    let adapter = value_of("adapter", adapter)?;
    let mut fixed = StaticAddress { address: address.to_owned(), gateway: None, dns: Vec::new() };
    for (key, value) in fields(rest, "")? {
        match key {
            "gateway" => fixed.gateway = Some(value_of(key, value)?),
            "dns" => fixed.dns.push(value_of(key, value)?),
            _ => return Err(unknown(key, "gateway and dns")),
        }
    }
    Ok((adapter, fixed))
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// `on` or `off`.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

/// A length of time: `90s`, `30m`, `12h`, `7d`; in seconds.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let bad = || "write a number and a unit, such as 90s, 30m, 12h or 7d".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let factor = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).filter(|seconds| *seconds > 0).ok_or_else(bad)
}

/// A short length of time: `500ms`, `2s`; in milliseconds.
pub(crate) fn millis(text: &str) -> Result<u64, String> {
    let bad = || "write a number and a unit, such as 500ms or 2s".to_owned();
    match text.strip_suffix("ms") {
        Some(number) => number.parse().ok().filter(|ms| *ms > 0).ok_or_else(bad),
        None => seconds(text).map(|seconds| seconds.saturating_mul(1000)).map_err(|_| bad()),
    }
}

/// SSH public keys: the key itself, or a file with one on each line.
///
/// # Errors
/// Where the file cannot be read or holds something else.
pub(crate) fn ssh_keys(text: &str) -> Result<Vec<String>, CliError> {
    if SSH_KEY_STARTS.iter().any(|start| text.starts_with(start)) && text.contains(' ') {
        return Ok(vec![text.trim().to_owned()]);
    }
    let content = file(Path::new(text), "the SSH key")?;
    if content.contains("PRIVATE KEY-----") {
        return Err(CliError::usage(
            format!("{text} is a private key, which must not leave this machine"),
            format!("give the public one: {text}.pub"),
        ));
    }
    let keys: Vec<_> = content
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(ToOwned::to_owned)
        .collect();
    let is_key = |key: &String| SSH_KEY_STARTS.iter().any(|start| key.starts_with(start));
    if keys.is_empty() || !keys.iter().all(is_key) {
        return Err(CliError::usage(
            format!("{text} holds no SSH public keys"),
            "give a file such as ~/.ssh/id_ed25519.pub, or the key in quotes",
        ));
    }
    Ok(keys)
}

/// A text file that an option names; `-` is standard input.
///
/// # Errors
/// Where it cannot be read, is no text, or is larger than 1 MiB.
pub(crate) fn file(path: &Path, what: &str) -> Result<String, CliError> {
    use std::io::Read;
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    let shown = path.display();
    match read {
        Ok(count) if count as u64 > FILE_BYTES_MAX => Err(CliError::usage(
            format!("{what}: {shown} is larger than 1 MiB"),
            "name the right file",
        )),
        Ok(_) => Ok(text),
        Err(error) => Err(CliError::usage(
            format!("{what}: cannot read {shown}: {error}"),
            "name a file that exists and holds text",
        )),
    }
}

/// Fields of `a=1,b=2,c`; a single word without `=` belongs to the key `only`.
fn fields<'a>(text: &'a str, only: &'a str) -> Result<Vec<(&'a str, &'a str)>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if !only.is_empty() && !text.contains(['=', ',']) {
        return Ok(vec![(only, text)]);
    }
    let fields: Vec<_> =
        text.split(',').map(|field| field.split_once('=').unwrap_or((field, ""))).collect();
    if fields.iter().any(|(key, value)| key.is_empty() || (value.is_empty() && *key != "ro")) {
        return Err("write KEY=VALUE,KEY=VALUE".to_owned());
    }
    Ok(fields)
}

fn value_of<T: FromStr<Err: std::fmt::Display>>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{key}: {error}"))
}

fn format(text: &str) -> Result<DiskFormat, String> {
    match text {
        "qcow2" => Ok(DiskFormat::Qcow2),
        "raw" => Ok(DiskFormat::Raw),
        _ => Err(format!("format: '{text}' is neither qcow2 nor raw")),
    }
}

fn unknown(key: &str, known: &str) -> String {
    format!("'{key}' is not known here; there are {known}")
}

#[cfg(test)]
mod tests {
    use api::model::Bytes;

    use super::*;

    #[test]
    fn disks_are_read() {
        assert_eq!(disk("20G").unwrap().size, Some(Bytes::gib(20)));
        let full = disk("size=1G,name=data,image=debian,format=raw,ro").unwrap();
        assert_eq!(full.name, Some("data".parse().unwrap()));
        assert_eq!(full.image.as_deref(), Some("debian"));
        assert_eq!((full.format, full.read_only), (DiskFormat::Raw, true));
        for bad in ["", "name=x", "size=", "size=1x", "size=1G,colour=red", "=", ",", "a,b"] {
            assert!(disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn adapters_are_read() {
        assert_eq!(nic("lan").unwrap().network, Some("lan".parse().unwrap()));
        let full = nic("network=lan,mac=52:54:00:12:34:56,address=10.0.0.9").unwrap();
        assert_eq!(full.address, Some("10.0.0.9".parse().unwrap()));
        for bad in ["mac=1", "address=300.1.1.1", "network=../x", "speed=1"] {
            assert!(nic(bad).is_err(), "{bad}");
        }
        let (adapter, fixed) =
            fixed_address("net0=10.0.0.2/24,gateway=10.0.0.1,dns=1.1.1.1,dns=8.8.8.8").unwrap();
        assert_eq!((adapter.as_str(), fixed.dns.len()), ("net0", 2));
        assert!(fixed_address("10.0.0.2/24").is_err());
    }

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("7d"), Ok(604_800));
        for bad in ["", "7", "d", "0s", "1y", "99999999999999999d", "-1s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_private_key_never_leaves_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        std::fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n").unwrap();
        let error = ssh_keys(path.to_str().unwrap()).unwrap_err();
        assert!(error.error().hint.ends_with("id.pub"));
        std::fs::write(&path, "# me\n\nssh-ed25519 AAAA me\n").unwrap();
        assert_eq!(ssh_keys(path.to_str().unwrap()).unwrap(), ["ssh-ed25519 AAAA me"]);
        assert_eq!(ssh_keys("ssh-ed25519 AAAA me").unwrap(), ["ssh-ed25519 AAAA me"]);
    }
}
