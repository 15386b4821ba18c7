//! Reservations of a LUN: a key for each epoch, so that a former coordinator's writes are refused.
//!
//! Asked of a socket beside the device, one line of JSON each way, which the SAN of the lab serves for
//! each path. The kernel's own interface for SCSI and NVMe comes with the data plane; a LUN without any
//! changes hands after a proof of lost power only.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use volume::lease::Epoch;
use volume::lease::ReservationKey;
use volume::provider::Fence;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Longest answer: a key for each of some thousand paths.
const LINE_MAX: u64 = 64 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<String>,
    keys: Vec<u64>,
}

/// Where a device's reservations are made.
pub(super) fn socket_of(device: &Path) -> PathBuf {
    PathBuf::from(format!("{}.sock", device.display()))
}

/// Keeps everybody else off a LUN, for the coordinator of an epoch: registers first, looks then, and
/// gives up where a later epoch is there. Done once more it changes nothing.
///
/// `first`: nobody of this volume can have had a key yet, so whoever has one is another cluster or host,
/// and keeps it.
pub(super) fn take(device: &Path, epoch: u64, first: bool) -> Result<(), String> {
    let epoch = u32::try_from(epoch).map_err(|_| "no epoch is left for a key".to_owned())?;
    let own = ReservationKey::of_coordinator(Epoch(epoch)).word();
    if first && is_anothers(epoch, own, &keys(device)?) {
        return Err("another cluster or host has reserved the LUN; release it there".to_owned());
    }
    ask(device, &json!({ "reserve": "register", "key": own }))?;
    let keys = keys(device)?;
    if keys.iter().any(|key| ReservationKey::from_word(*key).epoch() > Epoch(epoch)) {
        give(device)?;
        return Err("the LUN has a later coordinator's key; this node is behind".to_owned());
    }
    for key in keys.into_iter().filter(|key| *key != own) {
        ask(device, &json!({ "reserve": "preempt_and_abort", "key": key }))?;
    }
    let left = self::keys(device)?;
    if left == [own] {
        return Ok(());
    }
    Err(format!("the LUN has other keys again: {left:?}"))
}

/// Whether keys that are found are not this volume's.
fn is_anothers(epoch: u32, own: u64, keys: &[u64]) -> bool {
    epoch <= 1 && keys.iter().any(|key| *key != own)
}

/// Takes this path's own key back; the LUN stays closed to those who have none.
pub(super) fn give(device: &Path) -> Result<(), String> {
    ask(device, &json!({ "reserve": "unregister" })).map(drop)
}

/// Opens the LUN to everybody. Needs a key.
pub(super) fn clear(device: &Path) -> Result<(), String> {
    ask(device, &json!({ "reserve": "clear" })).map(drop)
}

/// The same for the data plane: a path's reservations, one at a time.
pub(crate) struct SocketFence(PathBuf);

impl SocketFence {
    /// By the socket beside this device.
    pub(crate) fn new(device: &Path) -> Self {
        Self(device.to_owned())
    }

    fn ask(&self, request: &Value) -> io::Result<Vec<ReservationKey>> {
        let answer = ask(&self.0, request).map_err(io::Error::other)?;
        Ok(answer.keys.into_iter().map(ReservationKey::from_word).collect())
    }
}

impl Fence for SocketFence {
    fn register(&self, key: ReservationKey) -> io::Result<()> {
        self.ask(&json!({ "reserve": "register", "key": key.word() })).map(drop)
    }

    fn unregister(&self) -> io::Result<()> {
        self.ask(&json!({ "reserve": "unregister" })).map(drop)
    }

    fn keys(&self) -> io::Result<Vec<ReservationKey>> {
        self.ask(&json!({ "reserve": "keys" }))
    }

    fn own(&self) -> io::Result<Option<ReservationKey>> {
        Ok(self.ask(&json!({ "reserve": "own" }))?.first().copied())
    }

    fn preempt(&self, key: ReservationKey) -> io::Result<()> {
        self.ask(&json!({ "reserve": "preempt_and_abort", "key": key.word() })).map(drop)
    }
}

fn keys(device: &Path) -> Result<Vec<u64>, String> {
    Ok(ask(device, &json!({ "reserve": "keys" }))?.keys)
}

fn ask(device: &Path, request: &Value) -> Result<Answer, String> {
    let socket = socket_of(device);
    let converse = || -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let answer = converse();
    let answer =
        answer.map_err(|error| format!("{} does not answer: {error}", socket.display()))?;
    match answer.error {
        Some(error) => Err(format!("the reservation was refused: {error}")),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_volume_preempts_nobody() {
        let own = ReservationKey::of_coordinator(Epoch(1)).word();
        assert!(!is_anothers(1, own, &[]));
        assert!(!is_anothers(1, own, &[own, own]));
        // A cluster that has this LUN has keys of whatever epoch it is in.
        for epoch in [2, 7] {
            let other = ReservationKey::of_coordinator(Epoch(epoch)).word();
            assert!(is_anothers(1, own, &[other]));
        }
        assert!(is_anothers(1, own, &[1]));
        // A takeover is another thing: the keys are those of the coordinator that was lost.
        assert!(!is_anothers(2, own, &[own]));
    }
}
