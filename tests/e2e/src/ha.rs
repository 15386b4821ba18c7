//! Machines in a lab that must never run twice: an auditor that reads the process table, and what
//! tests of failover wait for.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::BOOT;
use crate::TestLab;
use crate::eventually;
use crate::guest_image;

/// How often the auditor looks (issue: every 100 ms).
const AUDIT_EVERY: Duration = Duration::from_millis(100);

/// Long enough for a lease, its margins and a boot, on a busy machine.
pub const TAKEOVER: Duration = Duration::from_secs(180);

/// For labs in which a node that is cut off must not be taken for dead: its beats wait for a disk that
/// other tests keep busy, now and then for longer than half a minute.
pub const PATIENT: &str = "beatless_ms = 120000";

/// Counts the processes of a machine that could write, again and again.
#[derive(Debug)]
pub struct Auditor {
    end: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    looks: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Auditor {
    /// Begins.
    pub fn start(vm: &str) -> Self {
        let (end, most, looks) = (Arc::default(), Arc::default(), Arc::default());
        let mark = format!("guest={vm},");
        let (ending, found, looked) =
            (Arc::clone(&end), Arc::clone(&most), Arc::<AtomicUsize>::clone(&looks));
        let thread = std::thread::spawn(move || {
            while !AtomicBool::load(&ending, Ordering::Relaxed) {
                AtomicUsize::fetch_max(&found, writers(&mark), Ordering::Relaxed);
                looked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(AUDIT_EVERY);
            }
        });
        Self { end, most, looks, thread: Some(thread) }
    }

    /// The most that there ever were at once.
    ///
    /// # Panics
    /// If it could not look.
    pub fn verdict(mut self) -> usize {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))), "the auditor has failed");
        assert!(self.looks.load(Ordering::Relaxed) > 10);
        self.most.load(Ordering::Relaxed)
    }
}

/// The byte of an image that QEMU holds a lock on while it may write to it (`RAW_PERM_BASE` and
/// `BLK_PERM_WRITE` in its block/file-posix.c). One that waits for a guest, or has sent its own away,
/// holds none.
const WRITE_BYTE: u64 = 101;

/// Processes of a machine that may write to its disks and whose control groups are not frozen.
fn writers(mark: &str) -> usize {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(entry.path())
    });
    pids.filter(|proc| {
        let line = fs::read(proc.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("qemu-system") && line.contains(mark) && may_write(proc) && !frozen(proc)
    })
    .count()
}

/// Whether a process holds the lock for writing on any file.
fn may_write(proc: &std::path::Path) -> bool {
    let files = fs::read_dir(proc.join("fdinfo")).into_iter().flatten().flatten();
    files.into_iter().any(|file| {
        let info = fs::read_to_string(file.path()).unwrap_or_default();
        let locks = info.lines().filter(|line| line.starts_with("lock:"));
        locks.into_iter().any(|line| {
            let mut range = line.rsplit(' ').map(str::parse::<u64>);
            let (last, first) = (range.next(), range.next());
            matches!((first, last), (Some(Ok(first)), Some(Ok(last)))
                if (first..=last).contains(&WRITE_BYTE))
        })
    })
}

fn frozen(proc: &std::path::Path) -> bool {
    let groups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return false;
    };
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].iter().any(|top| {
        let events = fs::read_to_string(format!("{top}{group}/cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "frozen 1")
    })
}

/// A name that no other test's machine has.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// A lab of one cluster with a shared volume and an image on it.
pub async fn cluster(nodes: &str, config: &str) -> TestLab {
    let lab = TestLab::up_with(&["--nodes", nodes], config).await;
    lab.muster("n1", &["volume", "create", "shared", "--share", "/muster/share"]).await.ok();
    let image = guest_image("tiny.img").display().to_string();
    lab.muster("n1", &["image", "import", "tiny", &image, "--format", "raw", "--volume", "shared"])
        .await
        .ok();
    lab
}

/// The pretend power switches become a fence device.
pub async fn with_fence_device(lab: &TestLab, nodes: &[&str]) {
    let pairs: Vec<String> = nodes.iter().map(|node| format!("{node}={node}")).collect();
    let mut args = vec!["fence", "device", "add", "bmc", "--agent", "fence_muster_lab"];
    for pair in &pairs {
        args.extend(["--node", pair]);
    }
    lab.muster("n1", &args).await.ok();
}

/// Makes a machine on a node and waits for its guest.
pub async fn boot(lab: &TestLab, node: &str, vm: &str) {
    let create = [
        "vm", "create", vm, "--image", "tiny", "--memory", "128M", "--volume", "shared", "--start",
    ];
    lab.muster(node, &create).await.ok();
    answers_on(lab, node, vm, node).await;
}

/// What a node says of a machine, if it answers.
pub async fn show(lab: &TestLab, by: &str, vm: &str) -> Option<Value> {
    let said = lab.muster(by, &["vm", "show", vm, "--json"]).await;
    (said.code == 0).then(|| said.json())
}

/// Waits until a machine's guest answers on one node or another; asked of `by`. Returns which.
pub async fn answers_elsewhere(lab: &TestLab, by: &str, vm: &str, not: &str) -> String {
    let view = eventually(&format!("{vm} answers elsewhere than on {not}"), TAKEOVER, async || {
        let view = show(lab, by, vm).await?;
        (view["node"] != not && view["guest"]["heartbeat"] == "ok").then_some(view)
    })
    .await;
    view["node"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a machine's guest answers on that node; asked of `by`.
pub async fn answers_on(lab: &TestLab, by: &str, vm: &str, node: &str) {
    eventually(&format!("{vm} answers on {node}"), BOOT, async || {
        let view = show(lab, by, vm).await?;
        (view["node"] == node && view["guest"]["heartbeat"] == "ok").then_some(())
    })
    .await;
}

/// Which run of a machine it is.
///
/// # Panics
/// If the node does not answer.
pub async fn generation(lab: &TestLab, by: &str, vm: &str) -> u64 {
    let view = show(lab, by, vm).await;
    view.and_then(|view| view["generation"].as_u64()).expect("a run of the machine")
}
