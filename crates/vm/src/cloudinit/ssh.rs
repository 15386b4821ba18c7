//! A light look at SSH public keys: enough to catch a private key, a cut line, a wrong file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Types that OpenSSH has in authorized_keys.
const TYPES: [&str; 8] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-dss",
];

/// The smallest key, Ed25519, has 51 bytes: type, length, 32 bytes of key.
const BLOB_BYTES_MIN: usize = 51;

pub(super) fn check_key(line: &str) -> Result<(), &'static str> {
    if line.contains("PRIVATE KEY") {
        return Err("it is a private key");
    }
    if line.chars().any(char::is_control) {
        return Err("it has more than one line");
    }
    let mut words = line.split_whitespace();
    let kind = words.next().ok_or("it is empty")?;
    if !TYPES.contains(&kind) {
        return Err("it does not begin with a key type such as ssh-ed25519");
    }
    let blob = STANDARD
        .decode(words.next().ok_or("the key itself is missing")?)
        .map_err(|_| "the key itself is not base64")?;
    // The blob begins with its type, as a length of four bytes and the text.
    let inner = blob.get(..4).map(|len| u32::from_be_bytes([len[0], len[1], len[2], len[3]]));
    if inner != Some(kind.len() as u32) || blob.get(4..4 + kind.len()) != Some(kind.as_bytes()) {
        return Err("the key itself is of another type");
    }
    if blob.len() < BLOB_BYTES_MIN { Err("the key itself is cut off") } else { Ok(()) }
}
