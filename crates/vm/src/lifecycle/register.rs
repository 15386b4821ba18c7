//! What a VM's directory tells, when the state has lost the VM.
//!
//! Trust boundary: the path comes from a caller, the files from a time of which nothing is known.
//! Only a directory right below the node's own directory of VMs counts, named by the id that its
//! `vm.json` has, and only plain files in it: no link leads anywhere else.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use model::Bytes;
use model::DiskFormat;
use model::DiskSource;
use model::DiskSpec;
use model::Generation;
use model::ImageId;
use model::VmId;
use model::VmRecord;

use crate::lifecycle::VmFiles;

/// Largest `vm.json` that is read. A configuration with every field at its limit has half of it.
const RECORD_MAX: u64 = 4 << 20;

/// Newest meaning of a configuration that this program knows.
const CONFIG_VERSION_MAX: u32 = 1;

/// Highest generation that is believed: nobody has started a VM that often, and what is above must
/// leave room to count on.
const GENERATION_MAX: u64 = 1 << 48;

/// Beginning of a qcow2 file: magic, version, backing file, cluster size, virtual size.
const QCOW2_HEAD: usize = 32;

/// A VM in its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its record as it was written last, with a generation above all that the directory knows, the
    /// sizes that its disks have, and saved memory only where that was never used.
    pub record: VmRecord,
    /// Images that its disks are copies of.
    pub images: Vec<ImageId>,
}

/// Why a directory is not that of a VM which could be taken in.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The path leads elsewhere.
    #[error("{dir} is not a VM's directory of this node; name one right below {vms_dir}")]
    Elsewhere {
        /// What was named.
        dir: String,
        /// Where they are.
        vms_dir: String,
    },
    /// A file is missing, or is no plain file.
    #[error("{} cannot be read ({source}); put it back, or restore the directory from a copy", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{}: {why}", .path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is the matter, with a next step.
        why: String,
    },
}

/// Looks at a directory that a caller has named.
///
/// # Errors
/// See [`NotFound`]. Nothing is changed in any case.
pub fn look(vms_dir: &Path, dir: &Path) -> Result<Found, NotFound> {
    let (vms_dir, id) = place(vms_dir, dir)?;
    let files = VmFiles::new(&vms_dir, id);
    let mut record = read_record(&files, id)?;
    let mut images = Vec::new();
    for disk in &mut record.spec.disks {
        disk.size = look_at_disk(&files, disk)?;
        if let DiskSource::Image { image } = disk.source {
            images.push(image);
        }
    }
    images.sort();
    images.dedup();
    record.saved = record.saved.filter(|saved| files.has_memory(saved.generation));
    let saved = record.saved.map_or(Generation::default(), |saved| saved.generation);
    record.generation = record.generation.max(files.latest_run()).max(saved).next();
    Ok(Found { record, images })
}

/// The directory of all VMs without links, and the VM whose directory is named.
fn place(vms_dir: &Path, dir: &Path) -> Result<(PathBuf, VmId), NotFound> {
    let elsewhere = || NotFound::Elsewhere {
        dir: dir.display().to_string(),
        vms_dir: vms_dir.display().to_string(),
    };
    let real = |path: &Path| fs::canonicalize(path).map_err(|_| elsewhere());
    let (parent, dir) = (real(vms_dir)?, real(dir)?);
    let name = dir.file_name().and_then(|name| name.to_str()).ok_or_else(elsewhere)?;
    let id: VmId = name.parse().map_err(|_| elsewhere())?;
    // One name for one directory: an id can be written in several ways.
    if dir.parent() != Some(&parent) || id.to_string() != name || !dir.is_dir() {
        return Err(elsewhere());
    }
    Ok((parent, id))
}

fn read_record(files: &VmFiles, id: VmId) -> Result<VmRecord, NotFound> {
    let path = files.dir().join("vm.json");
    let wrong = |why: String| NotFound::Wrong { path: path.clone(), why };
    let mut text = Vec::new();
    open_plain(&path)
        .and_then(|file| file.take(RECORD_MAX).read_to_end(&mut text))
        .map_err(|source| NotFound::File { path: path.clone(), source })?;
    let record: VmRecord = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("it is damaged ({error}); restore it from a copy")))?;
    if record.id != id {
        let why =
            format!("it is that of VM {}; it belongs into the directory of that name", record.id);
        return Err(wrong(why));
    }
    if record.generation.get() > GENERATION_MAX {
        return Err(wrong("its generation cannot be; restore it from a copy".to_owned()));
    }
    if record.pinned.config_version > CONFIG_VERSION_MAX {
        return Err(wrong("it is of a newer version of Muster; update this node".to_owned()));
    }
    record
        .spec
        .validate()
        .map_err(|error| wrong(format!("it cannot be ({error}); restore it from a copy")))?;
    Ok(record)
}

/// The size that a disk's file has for the guest: not less than the record says, and more if it has
/// grown since.
fn look_at_disk(files: &VmFiles, disk: &DiskSpec) -> Result<Bytes, NotFound> {
    let place = files.disk(disk);
    // One that was being taken away is put back, like after a daemon that died.
    let aside = files.aside(disk);
    let path = if !place.exists() && aside.exists() { aside } else { place };
    let failed = |source| NotFound::File { path: path.clone(), source };
    let wrong = |why: String| NotFound::Wrong { path: path.clone(), why };
    let mut file = open_plain(&path).map_err(failed)?;
    let has = match disk.format {
        DiskFormat::Raw => file.metadata().map_err(failed)?.len(),
        DiskFormat::Qcow2 => {
            let mut head = [0; QCOW2_HEAD];
            file.read_exact(&mut head).map_err(failed)?;
            if head[..4] != *b"QFI\xfb" {
                return Err(wrong("it is no qcow2 file; restore it from a copy".to_owned()));
            }
            let [.., a, b, c, d, e, f, g, h] = head;
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        }
    };
    let has = Bytes::new(has);
    if has < disk.size {
        let why = format!("it has {has} and should have {}; restore it from a copy", disk.size);
        return Err(wrong(why));
    }
    let grown = DiskSpec { size: has, ..disk.clone() };
    grown.validate().map_err(|error| wrong(format!("{error}; restore it from a copy")))?;
    Ok(has)
}

/// Opens a plain file by its own name, without waiting for anything.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is not a plain file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use model::Name;
    use model::NodeId;
    use model::Pinned;
    use model::Power;
    use model::Revision;
    use model::SavedState;
    use model::UnixMillis;
    use model::VmSpec;
    use uuid::Uuid;

    use super::*;
    use crate::engine::Layout;

    const VM: VmId = VmId::new(Uuid::from_u128(7));

    fn disk() -> DiskSpec {
        DiskSpec {
            id: model::DiskId::new(Uuid::from_u128(1)),
            name: "root".parse::<Name>().unwrap(),
            size: Bytes::mib(1),
            source: DiskSource::Blank,
            format: DiskFormat::Raw,
            read_only: false,
        }
    }

    fn record() -> VmRecord {
        let mut spec = VmSpec::new(1, Bytes::mib(128));
        spec.disks.push(disk());
        VmRecord {
            id: VM,
            name: "a".parse().unwrap(),
            spec,
            pinned: Pinned {
                config_version: 1,
                machine_type: "pc-q35-10.0".to_owned(),
                cpu_model: "Nehalem-v1".to_owned(),
            },
            owner: NodeId::new(Uuid::from_u128(2)),
            slot: 3,
            generation: Generation::new(5),
            revision: Revision::new(1),
            power: Power::Running,
            saved: None,
            ops: Vec::new(),
            last_exit: None,
            crashes: Vec::new(),
            volume: None,
            takeovers: Vec::new(),
            answered: None,
            moving: None,
            arrival: None,
            cpu: None,
            copies: Vec::new(),
            created: UnixMillis::new(1),
            deleted: None,
        }
    }

    struct Place {
        dir: tempfile::TempDir,
        files: VmFiles,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let files = VmFiles::new(&dir.path().join("vms"), VM);
            files.make().unwrap();
            File::create(files.disk(&disk())).unwrap().set_len(1 << 20).unwrap();
            let place = Self { dir, files };
            place.files.write_record(&record()).unwrap();
            place
        }

        fn look(&self) -> Result<Found, NotFound> {
            look(&self.dir.path().join("vms"), self.files.dir())
        }

        fn refused(&self, words: &str) {
            let error = self.look().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_vm_is_found_with_a_generation_above_all_that_is_there() {
        let place = Place::new();
        let found = place.look().unwrap();
        assert_eq!(found.record.generation, Generation::new(6));
        assert_eq!(VmRecord { generation: Generation::new(5), ..found.record }, record());
        // The copy of the record may be older than the files.
        std::fs::write(place.files.memory(Generation::new(9)), "x").unwrap();
        let found = place.look().unwrap();
        assert_eq!((found.record.generation, found.record.saved), (Generation::new(10), None));
        File::options()
            .write(true)
            .open(place.files.disk(&disk()))
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        assert_eq!(place.look().unwrap().record.spec.disks[0].size, Bytes::mib(2));
    }

    #[test]
    fn saved_memory_counts_only_if_it_is_whole_and_unused() {
        let place = Place::new();
        let saved = SavedState {
            generation: Generation::new(5),
            size: Bytes::new(1),
            at: UnixMillis::new(1),
            cpus: 1,
            boot_memory: Bytes::mib(128),
            memory: Bytes::mib(128),
        };
        place.files.write_record(&VmRecord { saved: Some(saved), ..record() }).unwrap();
        assert_eq!(place.look().unwrap().record.saved, None);
        place.files.begin_save().unwrap();
        place.files.commit_save(saved.generation, &Layout::default()).unwrap();
        let found = place.look().unwrap().record;
        assert_eq!((found.saved, found.generation), (Some(saved), Generation::new(6)));
        place.files.consume_memory(saved.generation).unwrap();
        assert_eq!(place.look().unwrap().record.saved, None);
    }

    #[test]
    fn only_a_directory_of_this_nodes_counts() {
        let place = Place::new();
        let vms = place.dir.path().join("vms");
        let outside = place.dir.path().join(VM.to_string());
        std::fs::rename(place.files.dir(), &outside).unwrap();
        let elsewhere = |dir: &Path| {
            let error = look(&vms, dir).unwrap_err();
            assert!(matches!(error, NotFound::Elsewhere { .. }), "{}: {error}", dir.display());
        };
        elsewhere(&outside);
        elsewhere(&vms.join("..").join(VM.to_string()));
        elsewhere(&vms);
        elsewhere(Path::new("/"));
        elsewhere(&vms.join("missing"));
        symlink(&outside, vms.join(VM.to_string())).unwrap();
        elsewhere(&vms.join(VM.to_string()));
        std::fs::remove_file(vms.join(VM.to_string())).unwrap();
        std::fs::rename(&outside, vms.join(VM.to_string())).unwrap();
        place.look().unwrap();
        // Under the name of another VM it is not that VM.
        let other = VmId::new(Uuid::from_u128(8));
        std::fs::rename(place.files.dir(), vms.join(other.to_string())).unwrap();
        let error = look(&vms, &vms.join(other.to_string())).unwrap_err();
        assert!(matches!(error, NotFound::Wrong { .. }), "{error}");
    }

    #[test]
    fn files_that_are_missing_links_or_wrong_are_named() {
        let place = Place::new();
        let path = place.files.disk(&disk());
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        place.refused("should have 1 MiB");
        std::fs::remove_file(&path).unwrap();
        place.refused("cannot be read");
        symlink("/etc/passwd", &path).unwrap();
        place.refused("cannot be read");
        std::fs::remove_file(&path).unwrap();
        File::create(place.files.aside(&disk())).unwrap().set_len(1 << 20).unwrap();
        place.look().unwrap();

        let record = place.files.dir().join("vm.json");
        std::fs::write(&record, "{").unwrap();
        place.refused("damaged");
        std::fs::remove_file(&record).unwrap();
        symlink("/etc/passwd", &record).unwrap();
        place.refused("cannot be read");
    }
}
