//! A VM's directory: everything of it that is not in the cluster's database, and a copy of what is.
//!
//! ```text
//!   VMS_DIR/<vm id>/
//!     vm.json             copy of the record, so that the VM can be registered again
//!     layout.json         device addresses of the last run (engine::Layout)
//!     generation-id       what the guest sees as VM generation id
//!     coming              the move of storage that it was made for, until it is the VM's
//!     run                 on a shared volume: the newest run that was given the right to these disks
//!     uefi-vars.fd        UEFI variables
//!     seed.iso            cloud-init disc, made anew at each start
//!     disks/<disk id>.qcow2|raw
//!     disks/<disk id>.qcow2.removed   leaves the VM; gone once the state knows
//!     memory.part         a save under way
//!     memory-<generation>.sav   saved memory with its layout: used at most once
//!     memory-<generation>.layout.json
//! ```
//!
//! A directory that comes to a place is `<vm id>.part-<run>` until it is whole; one that is being removed
//! is `<vm id>.old-<run>` (see `storage`).
//!
//! Files appear whole: written beside their place, made durable, then renamed. They may lie on a volume that
//! makes whoever looks at them wait: see `on_disk`.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use model::DiskFormat;
use model::DiskId;
use model::DiskSpec;
use model::Generation;
use model::OpId;
use model::VmId;
use model::VmRecord;
use uuid::Uuid;

use crate::engine::Layout;
use crate::wait::on_disk;

/// End of the name of a disk that leaves its VM.
const ASIDE: &str = ".removed";

/// Highest run that a file's name may speak of: there must be room to count on.
const RUN_MAX: u64 = 1 << 48;

/// Paths and small files of one VM.
#[derive(Debug, Clone)]
pub struct VmFiles {
    dir: PathBuf,
}

impl VmFiles {
    /// The files of a VM. Nothing is made yet.
    pub fn new(vms_dir: &Path, vm: VmId) -> Self {
        Self { dir: vms_dir.join(vm.to_string()) }
    }

    /// The files of a VM that a run of it brings to a place. They are its own once they have its
    /// name: a node that was fenced, and does not know it, works under another run's name.
    pub(crate) fn staged(vms_dir: &Path, vm: VmId, run: Generation) -> Self {
        Self { dir: vms_dir.join(format!("{vm}.part-{run}")) }
    }

    /// Gives staged files the VM's name, durably. Done already is fine; a directory that has the name
    /// is never replaced.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn publish(&self, own: &Self) -> io::Result<()> {
        on_disk(|| {
            if self.dir.exists() || !own.dir.exists() {
                fs::rename(&self.dir, &own.dir)?;
            }
            own.dir.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
        })
    }

    /// Notes for which move of storage this directory was made, durably.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn mark_coming(&self, op: OpId) -> io::Result<()> {
        on_disk(|| self.write(&self.dir.join("coming"), op.to_string().as_bytes()))
    }

    /// Whether it was made for that move.
    pub(crate) fn is_coming(&self, op: OpId) -> bool {
        on_disk(|| fs::read_to_string(self.dir.join("coming")).is_ok_and(|of| of == op.to_string()))
    }

    /// It is the VM's: the note means nothing any more.
    pub(crate) fn arrived(&self) {
        on_disk(|| {
            remove_quietly(&self.dir.join("coming"));
        })
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, readable to root alone.
    ///
    /// # Errors
    /// What the system said.
    pub fn make(&self) -> io::Result<()> {
        on_disk(|| fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join("disks")))
    }

    /// Removes the directory with all disks. Nothing there is fine.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(&self) -> io::Result<()> {
        on_disk(|| match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    /// The file of a disk.
    pub fn disk(&self, disk: &DiskSpec) -> PathBuf {
        let ending = match disk.format {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        };
        self.dir.join("disks").join(format!("{}.{ending}", disk.id))
    }

    /// The file of UEFI variables.
    pub fn uefi_vars(&self) -> PathBuf {
        self.dir.join("uefi-vars.fd")
    }

    /// The cloud-init disc.
    pub fn seed(&self) -> PathBuf {
        self.dir.join("seed.iso")
    }

    /// What was on the screen when the guest was found hung last.
    pub fn hung_picture(&self) -> PathBuf {
        self.dir.join("hung.png")
    }

    /// The memory file of a save of that run.
    pub fn memory(&self, run: Generation) -> PathBuf {
        self.dir.join(format!("memory-{run}.sav"))
    }

    /// Makes the file that a save writes to.
    ///
    /// # Errors
    /// What the system said.
    pub fn begin_save(&self) -> io::Result<File> {
        on_disk(|| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(self.save_part())
        })
    }

    /// Makes a written save durable and gives it its place, together with the layout it needs.
    ///
    /// # Errors
    /// What the system said; the place is as it was.
    pub fn commit_save(&self, run: Generation, layout: &Layout) -> io::Result<u64> {
        on_disk(|| {
            let part = File::open(self.save_part())?;
            part.sync_all()?;
            let size = part.metadata()?.len();
            self.write_json(&self.memory_layout(run), layout)?;
            fs::rename(self.save_part(), self.memory(run))?;
            self.sync_dir()?;
            Ok(size)
        })
    }

    /// Whether a save has written something that has not got its place yet.
    pub fn has_part(&self) -> bool {
        on_disk(|| fs::metadata(self.save_part()).is_ok_and(|part| part.len() > 0))
    }

    /// Removes everything of a save of that run, for good.
    ///
    /// # Errors
    /// What the system said.
    pub fn abandon_save(&self, run: Generation) -> io::Result<()> {
        on_disk(|| {
            let mut removed = false;
            for path in [self.save_part(), self.memory(run), self.memory_layout(run)] {
                match fs::remove_file(&path) {
                    Ok(()) => removed = true,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            if removed { self.sync_dir() } else { Ok(()) }
        })
    }

    /// Opens a saved memory and moves it out of its place for good: once the guest goes on from
    /// it, its disks change, and going on from it a second time would destroy them.
    ///
    /// # Errors
    /// What the system said.
    pub fn consume_memory(&self, run: Generation) -> io::Result<()> {
        on_disk(|| {
            fs::rename(self.memory(run), self.dir.join("memory.used"))?;
            self.sync_dir()
        })
    }

    /// Puts the file of a disk that leaves the VM aside: it is removed once the state knows that.
    /// Nothing there is fine.
    ///
    /// # Errors
    /// What the system said.
    pub fn put_aside(&self, disk: &DiskSpec) -> io::Result<()> {
        on_disk(|| match fs::rename(self.disk(disk), self.aside(disk)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }

    /// Where the file of a disk stands that leaves the VM.
    pub fn aside(&self, disk: &DiskSpec) -> PathBuf {
        let mut name = self.disk(disk).into_os_string();
        name.push(ASIDE);
        name.into()
    }

    /// Removes what the VM, as the record has it, does not need: disks put aside and memory of
    /// saves that are over. Disks that were never put aside stay, whatever the record says.
    pub fn tidy(&self, record: &VmRecord, in_use: &[DiskId]) {
        on_disk(|| {
            for disk in &record.spec.disks {
                let aside = self.aside(disk);
                if aside.exists()
                    && let Err(error) = fs::rename(&aside, self.disk(disk))
                {
                    tracing::warn!(path = %aside.display(), %error, "a disk cannot be put back");
                }
            }
            for entry in entries(&self.dir.join("disks")) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let used = in_use.iter().any(|disk| name.starts_with(&disk.to_string()));
                if name.ends_with(ASIDE) && !used {
                    remove_quietly(&entry.path());
                }
                // Nobody makes a disk now: this was being made when an earlier daemon died.
                if name.ends_with(".new")
                    && let Err(error) = fs::remove_dir_all(entry.path())
                {
                    tracing::warn!(path = %entry.path().display(), %error, "half a disk is left over");
                }
            }
            for entry in entries(&self.dir) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let over = match run_of(&name) {
                    Some(run) => {
                        run <= record.generation
                            && record.saved.is_none_or(|saved| saved.generation != run)
                    }
                    None => name == "memory.part" || name == "memory.used",
                };
                if over {
                    remove_quietly(&entry.path());
                }
            }
        })
    }

    /// Removes all memory files; the saves they hold are over.
    pub fn drop_memory(&self) {
        on_disk(|| {
            for entry in entries(&self.dir) {
                if entry.file_name().to_string_lossy().starts_with("memory") {
                    remove_quietly(&entry.path());
                }
            }
        })
    }

    /// The layout that belongs to a saved memory.
    ///
    /// # Errors
    /// What the system said, or that the file is damaged.
    pub fn read_memory_layout(&self, run: Generation) -> io::Result<Layout> {
        on_disk(|| read_json(&self.memory_layout(run)))
    }

    /// The layout of the last run; a new one where there is none.
    ///
    /// # Errors
    /// What the system said, or that the file is damaged.
    pub fn read_layout(&self) -> io::Result<Layout> {
        on_disk(|| match read_json(&self.dir.join("layout.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Layout::default()),
            other => other,
        })
    }

    /// Keeps the layout for the next run, if it is not the one that is kept.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_layout(&self, layout: &Layout) -> io::Result<()> {
        on_disk(|| {
            if self.read_layout().is_ok_and(|kept| kept == *layout) {
                return Ok(());
            }
            self.write_json(&self.dir.join("layout.json"), layout)
        })
    }

    /// Writes the copy of the record, if it is not the one that is there. Operations under way are
    /// left out: they mean nothing to whoever registers the VM again, and each begins and ends.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_record(&self, record: &VmRecord) -> io::Result<()> {
        on_disk(|| {
            let path = self.dir.join("vm.json");
            let settled = VmRecord { ops: Vec::new(), ..record.clone() };
            let fresh = serde_json::to_vec_pretty(&settled).map_err(io::Error::other)?;
            if fs::read(&path).is_ok_and(|old| old == fresh) {
                return Ok(());
            }
            self.write(&path, &fresh)
        })
    }

    /// Writes down that this run uses the disks from here on, durably, unless a newer one has done so:
    /// then that one's number.
    ///
    /// # Errors
    /// What the system said, or that the file is damaged; the run must not begin then.
    pub fn claim(&self, run: Generation) -> io::Result<Option<Generation>> {
        on_disk(|| {
            let path = self.dir.join("run");
            let there = newest_run(&self.dir)?;
            if there > run {
                return Ok(Some(there));
            }
            if there < run {
                self.write(&path, format!("{run}\n").as_bytes())?;
            }
            Ok(None)
        })
    }

    /// What the guest sees as VM generation id; made at the first start.
    ///
    /// # Errors
    /// What the system said.
    pub fn generation_id(&self) -> io::Result<Uuid> {
        on_disk(|| {
            let path = self.dir.join("generation-id");
            if let Ok(text) = fs::read_to_string(&path)
                && let Ok(id) = text.trim().parse()
            {
                return Ok(id);
            }
            let id = Uuid::new_v4();
            self.write(&path, id.to_string().as_bytes())?;
            Ok(id)
        })
    }

    /// Keeps what came with a guest from another node: its generation id, and its cloud-init disc.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn put(&self, generation_id: Uuid, seed: Option<&[u8]>) -> io::Result<()> {
        on_disk(|| {
            self.write(&self.dir.join("generation-id"), generation_id.to_string().as_bytes())?;
            seed.map_or(Ok(()), |seed| self.write(&self.seed(), seed))
        })
    }

    fn save_part(&self) -> PathBuf {
        self.dir.join("memory.part")
    }

    fn memory_layout(&self, run: Generation) -> PathBuf {
        self.dir.join(format!("memory-{run}.layout.json"))
    }

    fn write_json(&self, path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
        self.write(path, &serde_json::to_vec(value).map_err(io::Error::other)?)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let part = path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl VmFiles {
    /// The latest run of which something is in the directory; 0 where there is nothing.
    pub(crate) fn latest_run(&self) -> Generation {
        on_disk(|| {
            let runs = entries(&self.dir)
                .into_iter()
                .filter_map(|entry| run_of(&entry.file_name().to_string_lossy()));
            runs.max().unwrap_or_default()
        })
    }

    /// Whether a saved memory of that run is there as a whole, which says that it was not used.
    pub(crate) fn has_memory(&self, run: Generation) -> bool {
        on_disk(|| self.memory(run).is_file() && self.read_memory_layout(run).is_ok())
    }
}

/// The newest run that has claimed a VM's directory; 0 if none has.
///
/// # Errors
/// What the system said, or that the file is damaged.
pub(crate) fn newest_run(dir: &Path) -> io::Result<Generation> {
    match fs::read_to_string(dir.join("run")) {
        Ok(text) => text.trim().parse().map(Generation::new).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Generation::default()),
        Err(error) => Err(error),
    }
}

/// The run that a memory file is of.
fn run_of(name: &str) -> Option<Generation> {
    let run = name.strip_prefix("memory-")?.split('.').next()?;
    run.parse().ok().filter(|run| *run <= RUN_MAX).map(Generation::new)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

fn entries(dir: &Path) -> Vec<fs::DirEntry> {
    // A directory that is not there has nothing in it.
    fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_default()
}

fn remove_quietly(path: &Path) {
    // What cannot be removed now is removed with the directory.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file is left over");
    }
}
