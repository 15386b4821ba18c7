//! What machines leave on a host: processes, network devices, control groups, files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

/// What is on the host because of one daemon, in words that can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traces {
    /// Processes under the user ids of its machines.
    pub processes: BTreeSet<String>,
    /// Network devices in its namespace.
    pub links: BTreeSet<String>,
    /// Control groups of its machines.
    pub groups: BTreeSet<String>,
    /// Run directories, and files of machines and images.
    pub files: BTreeSet<String>,
}

/// Processes whose user id is in the range.
pub(crate) fn processes_of(first: u32, count: u32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("there is a /proc");
    entries
        .flatten()
        .filter(|entry| {
            let uid = entry.metadata().map(|it| it.uid());
            uid.is_ok_and(|uid| (first..first + count).contains(&uid))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Directories of an instance's control groups: the v2 group of a process of its own tells.
pub(crate) fn groups(tag: &str) -> Vec<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(|mount| Path::new(mount).join(format!("muster-{tag}")))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Names of the directories below one.
pub(crate) fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// All files and directories below one, relative to `base`.
pub(crate) fn tree(base: &Path, dir: &Path, into: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        into.insert(path.strip_prefix(base).unwrap_or(&path).display().to_string());
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            tree(base, &path, into);
        }
    }
}

/// What a process is, for messages.
pub(crate) fn describe(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|byte| *byte == 0).take(3).collect();
    let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
    format!("{pid} {}", words.join(" "))
}

/// Ends a process for good.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Sends a process a signal, such as `-STOP`.
///
/// # Panics
/// If it is not there.
pub fn signal(pid: u32, signal: &str) {
    let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|it| it.success()), "{pid} is gone before {signal}");
}
