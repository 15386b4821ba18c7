//! The store against real qemu-img, a misbehaving server, full disks and kill -9.

mod disks;
mod imports;
mod server;
mod tls;
mod trouble;

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use model::ImageId;
use tempfile::TempDir;

use super::format::SourceFormat;
use super::store::ImageStore;
use super::store::ImageStoreConfig;
use super::store::ImportJob;
use super::store::ImportPhase;
use super::store::ImportRequest;
use super::store::ImportSource;

/// No wait in a test is longer.
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn id(n: u128) -> ImageId {
    ImageId::new(uuid::Uuid::from_u128(n))
}

fn config(dir: &Path) -> ImageStoreConfig {
    let mut config = ImageStoreConfig::new(dir.join("images"));
    config.checkpoint_bytes = MIB as u64;
    config.fetch_pause = Duration::from_millis(5);
    config.http.idle = Duration::from_secs(5);
    config
}

fn store(dir: &Path) -> ImageStore {
    ImageStore::open(config(dir)).unwrap()
}

/// A disk of `mib` MiB: noise, a hole in its middle third.
fn disk(mib: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(mib * MIB);
    while bytes.len() < mib * MIB {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let hole = (mib * MIB / 3..2 * mib * MIB / 3).contains(&bytes.len());
        bytes.extend_from_slice(&if hole { [0; 8] } else { state.to_le_bytes() });
    }
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

fn request(n: u128, source: ImportSource, format: SourceFormat) -> ImportRequest {
    ImportRequest { id: id(n), source, format, sha256: None }
}

fn qemu_img(args: &[&str], dir: &Path) -> String {
    let done = Command::new("qemu-img").args(args).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The bytes a guest would see in a qcow2 file.
fn content(path: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let from = path.to_str().unwrap();
    qemu_img(&["convert", "-U", "-f", "qcow2", "-O", "raw", from, "raw"], dir.path());
    std::fs::read(dir.path().join("raw")).unwrap()
}

/// Waits until `done` is true of the progress.
async fn until(job: &ImportJob, done: impl FnMut(&super::ImportProgress) -> bool) {
    let mut progress = job.progress();
    tokio::time::timeout(DEADLINE, progress.wait_for(done)).await.expect("in time").unwrap();
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A program to stand in for qemu-img.
fn script(dir: &TempDir, body: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.path().join("tool");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
