//! A VM's directory: everything of it that is not in the cluster's database, and a copy of what is.
//!
//! ```text
//!   VMS_DIR/<vm id>/
//!     vm.json             copy of the record, so that the VM can be registered again
//!     layout.json         device addresses of the last run (engine::Layout)
//!     generation-id       what the guest sees as VM generation id
//!     uefi-vars.fd        UEFI variables
//!     seed.iso            cloud-init disc, made anew at each start
//!     disks/<disk id>.qcow2|raw
//!     memory.part         a save under way
//!     memory-<generation>.sav   saved memory with its layout: used at most once
//!     memory-<generation>.layout.json
//! ```
//!
//! Files appear whole: written beside their place, made durable, then renamed.

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
use model::DiskSpec;
use model::Generation;
use model::VmId;
use model::VmRecord;
use uuid::Uuid;

use crate::engine::Layout;

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

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, readable to root alone.
    ///
    /// # Errors
    /// What the system said.
    pub fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join("disks"))
    }

    /// Removes the directory with all disks. Nothing there is fine.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
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

    /// The memory file of a save of that run.
    pub fn memory(&self, run: Generation) -> PathBuf {
        self.dir.join(format!("memory-{run}.sav"))
    }

    /// Makes the file that a save writes to.
    ///
    /// # Errors
    /// What the system said.
    pub fn begin_save(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.save_part())
    }

    /// Makes a written save durable and gives it its place, together with the layout it needs.
    ///
    /// # Errors
    /// What the system said; the place is as it was.
    pub fn commit_save(&self, run: Generation, layout: &Layout) -> io::Result<u64> {
        let part = File::open(self.save_part())?;
        part.sync_all()?;
        let size = part.metadata()?.len();
        self.write_json(&self.memory_layout(run), layout)?;
        fs::rename(self.save_part(), self.memory(run))?;
        self.sync_dir()?;
        Ok(size)
    }

    /// Removes what a save that failed has left.
    pub fn abandon_save(&self) {
        remove_quietly(&self.save_part());
    }

    /// Opens a saved memory and moves it out of its place for good: once the guest goes on from
    /// it, its disks change, and going on from it a second time would destroy them.
    ///
    /// # Errors
    /// What the system said.
    pub fn consume_memory(&self, run: Generation) -> io::Result<()> {
        fs::rename(self.memory(run), self.dir.join("memory.used"))?;
        self.sync_dir()
    }

    /// Removes all memory files; the saves they hold are over.
    pub fn drop_memory(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("memory") {
                remove_quietly(&entry.path());
            }
        }
    }

    /// The layout that belongs to a saved memory.
    ///
    /// # Errors
    /// What the system said, or that the file is damaged.
    pub fn read_memory_layout(&self, run: Generation) -> io::Result<Layout> {
        read_json(&self.memory_layout(run))
    }

    /// The layout of the last run; a new one where there is none.
    ///
    /// # Errors
    /// What the system said, or that the file is damaged.
    pub fn read_layout(&self) -> io::Result<Layout> {
        match read_json(&self.dir.join("layout.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Layout::default()),
            other => other,
        }
    }

    /// Keeps the layout for the next run.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_layout(&self, layout: &Layout) -> io::Result<()> {
        self.write_json(&self.dir.join("layout.json"), layout)
    }

    /// Writes the copy of the record, if it is not the one that is there.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_record(&self, record: &VmRecord) -> io::Result<()> {
        let path = self.dir.join("vm.json");
        let fresh = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        if fs::read(&path).is_ok_and(|old| old == fresh) {
            return Ok(());
        }
        self.write(&path, &fresh)
    }

    /// What the guest sees as VM generation id; made at the first start.
    ///
    /// # Errors
    /// What the system said.
    pub fn generation_id(&self) -> io::Result<Uuid> {
        let path = self.dir.join("generation-id");
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(id) = text.trim().parse()
        {
            return Ok(id);
        }
        let id = Uuid::new_v4();
        self.write(&path, id.to_string().as_bytes())?;
        Ok(id)
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

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

fn remove_quietly(path: &Path) {
    // What cannot be removed now is removed with the directory.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file of a save is left over");
    }
}
