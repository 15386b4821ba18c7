//! What the tests stand on: engines in directories of their own, plans, waiting with a deadline.

use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Bytes;
use model::DiskId;
use model::Generation;
use model::VmId;
use tokio::sync::mpsc;
use uuid::Uuid;
use vm::engine::AccelChoice;
use vm::engine::BalloonPlan;
use vm::engine::ClockPolicy;
use vm::engine::CpuPlan;
use vm::engine::DiskBus;
use vm::engine::DiskKind;
use vm::engine::DiskPlan;
use vm::engine::Engine;
use vm::engine::FirmwarePlan;
use vm::engine::ImageFile;
use vm::engine::ImageFormat;
use vm::engine::IsolationPlan;
use vm::engine::LaunchPlan;
use vm::engine::Layout;
use vm::engine::MachineEvent;
use vm::engine::MemoryPlan;
use vm::engine::Profile;
use vm::engine::fake::FakeEngine;
use vm::engine::fake::FakeHost;
use vm::engine::qemu::QemuConfig;
use vm::engine::qemu::QemuEngine;
use vm::engine::qemu::jail::Launcher;

/// Long enough for a guest to boot under emulation on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Engines under test, in a directory that goes away with them.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    kind: Kind,
    slot: u32,
}

enum Kind {
    Fake(FakeHost),
    Qemu(String),
}

impl Rig {
    pub(crate) fn fake() -> Self {
        Self::new(Kind::Fake(FakeHost::new()))
    }

    pub(crate) fn qemu() -> Self {
        let tag = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::new(Kind::Qemu(tag))
    }

    /// Another host of the same kind.
    pub(crate) fn twin(&self) -> Self {
        match &self.kind {
            Kind::Fake(_) => Self::fake(),
            Kind::Qemu(_) => Self::qemu(),
        }
    }

    fn new(kind: Kind) -> Self {
        let slot = NEXT.fetch_add(1, Ordering::Relaxed) + (std::process::id() % 50_000) * 100;
        Self { dir: tempfile::tempdir().unwrap(), kind, slot }
    }

    /// A fresh engine, as a daemon that was just started has it.
    pub(crate) fn engine(&self) -> Box<dyn Engine> {
        match &self.kind {
            Kind::Fake(host) => Box::new(FakeEngine::new(host)),
            Kind::Qemu(tag) => {
                let launcher =
                    Launcher { program: env!("CARGO_BIN_EXE_vm-jail").into(), args: Vec::new() };
                let config = QemuConfig::new(self.dir.path().join("run"), tag, launcher);
                Box::new(QemuEngine::new(config).unwrap())
            }
        }
    }

    /// A blank raw image.
    pub(crate) fn blank(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path
    }

    /// A plan for a machine without disks.
    pub(crate) async fn plan(&self) -> LaunchPlan {
        let ability = self.engine().ability().await.unwrap();
        LaunchPlan {
            vm: VmId::new(Uuid::now_v7()),
            name: "test, with a comma".to_owned(),
            generation: Generation::new(7),
            machine: ability.machine_virtio,
            cpu_model: ability.cpu_model,
            accel: AccelChoice::Tcg,
            profile: Profile::Virtio,
            firmware: FirmwarePlan::Bios,
            cpus: CpuPlan { count: 1, max: 2 },
            memory: MemoryPlan { size: Bytes::mib(160), max: Bytes::mib(288) },
            balloon: BalloonPlan::Present,
            disks: Vec::new(),
            nics: Vec::new(),
            layout: Layout::default(),
            restore: None,
            isolation: IsolationPlan { slot: self.slot, ..IsolationPlan::default() },
            vmgenid: Uuid::from_u128(7),
            clock: ClockPolicy::Utc,
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Also after a failed test: nothing of ours stays.
        let engine = self.engine();
        let clean = async move {
            for stray in engine.strays().await.unwrap_or_default() {
                let _ = engine.reap(stray.vm).await;
            }
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(clean);
        });
        let _ = thread.join();
    }
}

pub(crate) fn disk(path: &Path) -> DiskPlan {
    DiskPlan {
        id: DiskId::new(Uuid::new_v4()),
        kind: DiskKind::Disk,
        bus: DiskBus::Virtio,
        chain: vec![ImageFile { path: path.to_owned(), format: ImageFormat::Raw }],
        read_only: false,
        boot_index: None,
    }
}

/// The same disk once more: descriptions are not cloneable, since plans hold descriptors.
pub(crate) fn again(disk: &DiskPlan) -> DiskPlan {
    let DiskPlan { id, kind, bus, chain, read_only, boot_index } = disk;
    DiskPlan {
        id: *id,
        kind: *kind,
        bus: *bus,
        chain: chain.clone(),
        read_only: *read_only,
        boot_index: *boot_index,
    }
}

/// Waits for an event that `wanted` picks; others pass by.
pub(crate) async fn event(
    events: &mut mpsc::Receiver<MachineEvent>,
    wanted: impl Fn(&MachineEvent) -> bool,
) -> MachineEvent {
    let mut seen = Vec::new();
    let search = async {
        loop {
            match events.recv().await {
                Some(event) if wanted(&event) => return event,
                Some(event) => seen.push(event),
                None => panic!("the events have ended"),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(event) => event,
        Err(_) => panic!("the event did not come; these did: {seen:?}"),
    }
}

/// The tiny guest's image; made if it is not there.
pub(crate) fn tiny() -> &'static Path {
    static TINY: OnceLock<PathBuf> = OnceLock::new();
    TINY.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let image = root.join("target/guests/tiny.img");
        if !image.exists() {
            let status = std::process::Command::new("cargo")
                .args(["xtask", "guest", "tiny"])
                .current_dir(&root)
                .status()
                .unwrap();
            assert!(status.success(), "cargo xtask guest tiny: {status}");
        }
        image
    })
}
