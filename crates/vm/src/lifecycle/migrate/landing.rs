//! The target's side of disks that come with a guest: blank files, in a directory that gets the VM's name
//! when everything is there. Whatever is left of one that did not come, the state knows of
//! (`VmRecord::copies`), and somebody removes it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use model::DiskFormat;
use model::DiskSource;
use model::DiskSpec;
use model::Firmware;
use model::OpId;
use model::VmPlace;
use model::VmRecord;

use super::OfferedFiles;
use super::still::Incoming;
use crate::engine::ImageSlot;
use crate::engine::Machine;
use crate::lifecycle::Host;
use crate::lifecycle::VmFiles;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;
use crate::lifecycle::storage;
use crate::wait::on_disk;

/// A directory that a VM comes to.
pub(super) struct Landing {
    /// While it is not the VM's.
    pub(super) staged: VmFiles,
    /// Once it is.
    own: VmFiles,
    /// Where it comes as files: how they do.
    files: Option<Files>,
}

/// How files come.
struct Files {
    /// The directory, as it was made: what has taken its place is another one.
    dir: Arc<OwnedFd>,
    /// That somebody fills it, or has tried to.
    taken: bool,
    /// That all of them are there.
    whole: Arc<AtomicBool>,
}

fn stale() -> Stop {
    failed("stale", "it is not what the state says of it", "try it again")
}

/// Makes the directory with blank disks. `there` is the VM as it will be, `op` its migration.
pub(super) async fn make(
    host: &Host,
    there: &VmRecord,
    op: OpId,
    offered: &OfferedFiles,
) -> Step<Landing> {
    let landing = directory(host, there, op, offered).await?;
    let staged = &landing.staged;
    for disk in &there.spec.disks {
        blank(host, staged, disk, offered).await?;
    }
    let cannot = || file("the new files cannot be made");
    match (there.spec.firmware, offered.firmware) {
        (Firmware::Uefi, Some(size)) => {
            let vars = on_disk(|| std::fs::File::create(staged.uefi_vars())).map_err(cannot())?;
            vars.set_len(size.get()).map_err(cannot())?;
        }
        (Firmware::Bios, None) => {}
        (Firmware::Uefi, None) | (Firmware::Bios, Some(_)) => return Err(stale()),
    }
    let seed = offered.seed.as_ref().map(|seed| BASE64_STANDARD.decode(seed)).transpose();
    let seed = seed.map_err(|_| stale())?;
    staged.put(offered.generation_id, seed.as_deref()).map_err(cannot())?;
    Ok(landing)
}

/// Makes an empty directory, which all files of a machine without a process come to.
pub(super) async fn make_still(
    host: &Host,
    there: &VmRecord,
    op: OpId,
    offered: &OfferedFiles,
) -> Step<Landing> {
    let landing = directory(host, there, op, offered).await?;
    let opened = on_disk(|| std::fs::File::open(landing.staged.dir()));
    let dir = opened.map_err(file("the new directory cannot be opened"))?;
    let (dir, whole) = (Arc::new(dir.into()), Arc::default());
    Ok(Landing { files: Some(Files { dir, taken: false, whole }), ..landing })
}

async fn directory(
    host: &Host,
    there: &VmRecord,
    op: OpId,
    offered: &OfferedFiles,
) -> Step<Landing> {
    let vms_dir = (host.vms_dir)(there);
    let on_volume = matches!(offered.target.place, VmPlace::Volume { .. });
    room(&vms_dir, offered)?;
    let (vm, run, dir) = (there.id, there.generation, vms_dir.clone());
    let made =
        tokio::task::spawn_blocking(move || storage::make_room(&dir, vm, run, op, on_volume)).await;
    let made = made.map_err(std::io::Error::other).flatten();
    let staged = made.map_err(file("the new directory cannot be made"))?;
    Ok(Landing { staged, own: VmFiles::new(&vms_dir, vm), files: None })
}

fn room(vms_dir: &std::path::Path, offered: &OfferedFiles) -> Step<()> {
    storage::room_for_files(vms_dir, offered.needed).map_err(|why| {
        failed(
            "no_space",
            format!("there is no room for its disks: {why}"),
            "free space there, or choose another node or volume",
        )
    })
}

/// A disk as large as the source's that takes no room.
async fn blank(host: &Host, staged: &VmFiles, disk: &DiskSpec, offered: &OfferedFiles) -> Step<()> {
    let size = *offered.disks.get(&disk.id).ok_or_else(stale)?;
    let path = staged.disk(disk);
    match (disk.format, disk.source) {
        (DiskFormat::Qcow2, DiskSource::Image { image }) => {
            let base = (host.image_path)(image);
            Ok(host.disks.create_overlay(&base, &path, size).await?)
        }
        (DiskFormat::Qcow2, DiskSource::Blank) => {
            Ok(host.disks.create_blank(&path, size, DiskFormat::Qcow2).await?)
        }
        (DiskFormat::Raw, _) => {
            // As long as the source's file, which need not be a whole number of anything.
            let make = || std::fs::File::create(&path).and_then(|made| made.set_len(size.get()));
            let made = on_disk(make);
            made.map_err(file("the new disk cannot be made"))
        }
    }
}

/// What of a VM's images goes along: all but the cloud-init disc, which is a file of the offer.
pub(super) fn slots(there: &VmRecord) -> Vec<ImageSlot> {
    let disks = there.spec.disks.iter().map(|disk| ImageSlot::Disk(disk.id));
    let firmware = (there.spec.firmware == Firmware::Uefi).then_some(ImageSlot::Firmware);
    disks.chain(firmware).collect()
}

impl Landing {
    /// The right to fill it with files; given once.
    pub(super) fn incoming(&mut self) -> Option<Incoming> {
        let files = self.files.as_mut().filter(|files| !files.taken)?;
        files.taken = true;
        Some(Incoming { dir: files.dir.clone(), whole: files.whole.clone() })
    }

    /// Everything is there: lets nothing more come, and makes it durable under the VM's name.
    pub(super) async fn settle(self, machine: Option<&dyn Machine>) -> Step<()> {
        let whole = self.files.as_ref().map(|files| files.whole.load(Ordering::SeqCst));
        match (machine, whole) {
            (Some(machine), None) => machine.receive_end().await?,
            (None, Some(true)) => {}
            _ => return Err(stale()),
        }
        let settled = tokio::task::spawn_blocking(move || {
            storage::sync_all(self.staged.dir())?;
            self.staged.publish(&self.own)
        });
        let settled = settled.await.map_err(std::io::Error::other).flatten();
        settled.map_err(file("the new files cannot be made durable"))
    }
}
