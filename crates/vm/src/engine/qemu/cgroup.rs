//! Control groups: one for each machine.
//!
//! ```text
//! under systemd                                            elsewhere
//! /sys/fs/cgroup                                           v2 mount
//!   muster.slice/                                            |
//!     muster-machines.service/   delegated, never restarted  |
//!       muster-<tag>/            this instance               muster-<tag>/
//!         vm-<id>/               limits; all of QEMU           vm-<id>/
//! ```
//!
//! The group is what makes "kill everything of that machine" exact: nothing inside leaves it. Its
//! limits are set where the host has given v2 the controllers; those that are missing are named.
//!
//! A group has one writer. systemd writes all of the tree but what it has delegated, so there the
//! machines live below a unit of their own, which neither a restart nor the end of the daemon's
//! unit touches. Which one that is, the daemon is told (`control_group`).

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use model::VmId;

use crate::engine::CpuLimits;
use crate::engine::EngineError;
use crate::engine::IsolationPlan;

/// How long the processes of a killed group may take to go; exit of a guest with a lot of memory
/// takes seconds.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Pause between two looks at a dying group.
const KILL_POLL: Duration = Duration::from_millis(10);

/// Controllers we use, and what is lost without them.
const CONTROLLERS: [(&str, &str); 3] = [
    ("cpu", "processor weight and cap"),
    ("memory", "memory limit"),
    ("pids", "limit of processes (the per-user limit still holds)"),
];

/// The control groups of one instance.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    /// Not ours to make: delegated to us, or the top of the mount.
    parent: PathBuf,
    base: PathBuf,
}

impl Cgroups {
    /// Groups below `parent` (where relative, a path from the v2 mount), or, without one, below a
    /// group of our own at the top of the mount. Makes nothing yet.
    pub(super) fn find(parent: Option<&Path>, tag: &str) -> Result<Self, EngineError> {
        let groups = Self::locate(parent, tag)?;
        groups.check_parent()?;
        Ok(groups)
    }

    /// The same, whether `parent` is there or not.
    pub(super) fn locate(parent: Option<&Path>, tag: &str) -> Result<Self, EngineError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(EngineError::io("read /proc/self/mountinfo"))?;
        let mount = mount_of(&mounts).ok_or_else(|| EngineError::Missing {
            what: "a cgroup v2 mount".to_owned(),
            advice: "mount it: mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
        })?;
        Ok(Self::below(Path::new(mount), parent, tag))
    }

    fn below(mount: &Path, parent: Option<&Path>, tag: &str) -> Self {
        let parent = parent.map_or_else(|| mount.to_owned(), |parent| mount.join(parent));
        Self { base: parent.join(format!("muster-{tag}")), parent }
    }

    /// A delegated group that is gone must not be made by us: it would be one that systemd does not
    /// know, and takes its controllers from as it likes.
    fn check_parent(&self) -> Result<(), EngineError> {
        if self.parent.is_dir() {
            return Ok(());
        }
        let unit = self.parent.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Err(EngineError::Missing {
            what: format!("the control group {} for machines", self.parent.display()),
            advice: format!("start its unit: systemctl start {unit}"),
        })
    }

    /// The group above all of them.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Directory of a machine's group.
    pub(super) fn of(&self, vm: VmId) -> PathBuf {
        self.base.join(format!("vm-{vm}"))
    }

    /// Limits this host cannot enforce, in words.
    pub(super) fn missing(&self) -> Vec<String> {
        let have = fs::read_to_string(self.parent.join("cgroup.controllers")).unwrap_or_default();
        let have: Vec<&str> = have.split_whitespace().collect();
        CONTROLLERS
            .iter()
            .filter(|(controller, _)| !have.contains(controller))
            .map(|(controller, lost)| {
                format!("{lost}: the host has no cgroup v2 {controller} controller")
            })
            .collect()
    }

    /// Makes a machine's group with its limits; returns the limits that could not be set.
    pub(super) fn make(
        &self,
        vm: VmId,
        isolation: &IsolationPlan,
        memory: u64,
        threads: u64,
    ) -> Result<Vec<String>, EngineError> {
        let dir = self.of(vm);
        self.check_parent()?;
        fs::create_dir_all(&dir)
            .map_err(EngineError::io(format!("make control group {}", dir.display())))?;
        let mut missing = self.missing();
        for (controller, _) in CONTROLLERS {
            for group in [&self.parent, &self.base] {
                // Fails where the controller is missing, which is told already.
                let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        let [weight, cap] = cpu_settings(isolation.cpu());
        let limit = isolation.memory_limit.map_or(memory, model::Bytes::get);
        let settings = [
            ("cpu", weight.0, weight.1),
            ("cpu", cap.0, cap.1),
            ("memory", "memory.max", limit.to_string()),
            ("pids", "pids.max", threads.to_string()),
        ];
        let told = |controller: &str| missing.iter().any(|text| text.contains(controller));
        let mut failed = Vec::new();
        for (controller, file, value) in settings {
            if told(controller) {
                continue;
            }
            if let Err(error) = fs::write(dir.join(file), &value) {
                failed.push(format!("{file} = {value}: {error}"));
            }
        }
        missing.extend(failed);
        Ok(missing)
    }

    /// Sets share and cap of processor time of a machine that runs; returns what could not be set.
    pub(super) fn set_cpu(&self, vm: VmId, limits: CpuLimits) -> Vec<String> {
        let absent: Vec<String> = self.missing().into_iter().filter(|it| about_cpu(it)).collect();
        if !absent.is_empty() {
            return absent;
        }
        let dir = self.of(vm);
        let settings = cpu_settings(limits).into_iter();
        let failed = settings.filter_map(|(file, value)| {
            let error = fs::write(dir.join(file), &value).err()?;
            Some(format!("{file} = {value}: {error}"))
        });
        failed.collect()
    }

    /// Machines that have a group.
    pub(super) fn machines(&self) -> io::Result<Vec<VmId>> {
        let entries = match fs::read_dir(&self.base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let id = |entry: io::Result<fs::DirEntry>| {
            entry.ok()?.file_name().to_str()?.strip_prefix("vm-")?.parse().ok()
        };
        Ok(entries.filter_map(id).collect())
    }

    /// Whether a process lives in a machine's group.
    pub(super) fn populated(&self, vm: VmId) -> bool {
        fs::read_to_string(self.of(vm).join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Kills everything in a machine's group and removes it.
    pub(super) async fn kill(&self, vm: VmId) -> Result<(), EngineError> {
        let dir = self.of(vm);
        if !dir.exists() {
            return Ok(());
        }
        // A frozen group does not die before it is thawed on some kernels.
        let _ = fs::write(dir.join("cgroup.freeze"), "0");
        let end = tokio::time::Instant::now() + KILL_LIMIT;
        loop {
            if self.populated(vm) {
                fs::write(dir.join("cgroup.kill"), "1")
                    .map_err(EngineError::io(format!("kill control group {}", dir.display())))?;
            }
            match fs::remove_dir(&dir) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(_) if tokio::time::Instant::now() < end => {
                    tokio::time::sleep(KILL_POLL).await;
                }
                Err(error) => {
                    let left = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                    let what = format!("{error}; left: {}", left.replace('\n', " "));
                    return Err(EngineError::Undead { vm, what });
                }
            }
        }
    }

    /// Removes the instance's own group if no machine is left in it.
    pub(super) fn tidy(&self) {
        let _ = fs::remove_dir(&self.base);
    }
}

/// Files of the cpu controller, and what to write into them.
fn cpu_settings(limits: CpuLimits) -> [(&'static str, String); 2] {
    let cap = limits.cap_percent.map(|percent| u64::from(percent) * 1000);
    let cap = cap.map_or("max 100000".to_owned(), |micros| format!("{micros} 100000"));
    [("cpu.weight", limits.weight.clamp(1, 10_000).to_string()), ("cpu.max", cap)]
}

/// Whether a missing limit is one that [`Cgroups::set_cpu`] sets.
pub(super) fn about_cpu(missing: &str) -> bool {
    missing.starts_with("cpu.") || missing.starts_with(CONTROLLERS[0].1)
}

/// The first cgroup v2 mount of a `mountinfo`.
fn mount_of(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let cgroup2 = after.split(' ').next() == Some("cgroup2");
        before.split(' ').nth(4).filter(|_| cgroup2)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::Bytes;
    use uuid::Uuid;

    use super::Cgroups;
    use super::VmId;
    use super::about_cpu;
    use super::fs;
    use super::mount_of;
    use crate::engine::CpuLimits;
    use crate::engine::IsolationPlan;

    /// Groups in an ordinary directory, which says that it has these controllers.
    fn groups(controllers: &str) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        let groups = Cgroups::find(Some(dir.path()), "test").unwrap();
        (dir, groups)
    }

    #[test]
    fn limits_are_set_at_the_start_and_changed_later() {
        let (_dir, groups) = groups("cpuset cpu io memory pids\n");
        let vm = VmId::new(Uuid::from_u128(1));
        let plan =
            IsolationPlan { cpu_weight: 30, cpu_cap_percent: Some(150), ..Default::default() };
        let missing = groups.make(vm, &plan, Bytes::gib(1).get(), 64).unwrap();
        assert_eq!(missing, [""; 0]);
        let read = |file: &str| fs::read_to_string(groups.of(vm).join(file)).unwrap();
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("30".into(), "150000 100000".into()));
        assert_eq!((read("memory.max"), read("pids.max")), ("1073741824".into(), "64".into()));
        let limits = CpuLimits { weight: 4000, cap_percent: None };
        assert_eq!(groups.set_cpu(vm, limits), [""; 0]);
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("4000".into(), "max 100000".into()));
    }

    #[test]
    fn a_limit_that_cannot_be_set_is_named() {
        let (_dir, groups) = groups("memory pids\n");
        let vm = VmId::new(Uuid::from_u128(1));
        let missing = groups.make(vm, &IsolationPlan::default(), 1, 1).unwrap();
        assert_eq!(missing, groups.set_cpu(vm, CpuLimits::default()));
        assert!(missing.len() == 1 && about_cpu(&missing[0]), "{missing:?}");
        // The controller is there and the group is not.
        let (_dir, groups) = super::tests::groups("cpu memory pids\n");
        let failed = groups.set_cpu(vm, CpuLimits::default());
        assert!(failed.len() == 2 && failed.iter().all(|it| about_cpu(it)), "{failed:?}");
    }

    #[test]
    fn the_v2_mount_is_found_alone_and_beside_v1() {
        let v1 = "31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let v2 = "29 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(v1), None);
        assert_eq!(mount_of(&format!("{v1}{v2}")), Some("/sys/fs/cgroup"));
    }

    #[test]
    fn a_delegated_group_is_a_path_from_the_mount() {
        let mount = Path::new("/sys/fs/cgroup");
        for parent in ["a.slice/b.service", "/sys/fs/cgroup/a.slice/b.service"] {
            let groups = Cgroups::below(mount, Some(Path::new(parent)), "ab12");
            assert_eq!(groups.base, mount.join("a.slice/b.service/muster-ab12"));
        }
        assert_eq!(Cgroups::below(mount, None, "ab12").base, mount.join("muster-ab12"));
    }

    #[test]
    fn a_delegated_group_that_is_gone_is_not_made() {
        let dir = std::env::temp_dir().join(format!("muster-cgroup-{}", std::process::id()));
        let groups = Cgroups::below(&dir, Some(Path::new("m.service")), "ab12");
        let error = groups.check_parent().unwrap_err().to_string();
        assert!(error.contains("systemctl start m.service"), "{error}");
        assert!(!dir.exists());
    }
}
