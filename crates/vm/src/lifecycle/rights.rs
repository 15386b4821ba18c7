//! Who may write a machine's images, where a volume lets one node at a time write a file.
//!
//! On a volume whose nodes reach one disk directly, opening an image for writing takes the right to write
//! it from everybody else. At a live migration two processes have the images open, and the right changes
//! hands in between (invariant 39):
//!
//! ```text
//!   source                                       target
//!                                                  hold: may be opened, nothing may be written
//!                                                  its process opens the images and waits
//!     guest stands, images closed for good by its engine
//!     hold: flushed, the right given up
//!     hand over: one command in the state
//!                                                  finds itself the owner
//!                                                  free, and only then the guest goes on
//!     (or no handover can happen any more: free, and the guest goes on here)
//! ```
//!
//! So between the two no node may write, and who may is said by whoever knows from the state whose the
//! machine is. [`Driver::let_go_on`] is the only way in which a driver lets a guest go on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use model::DiskSpec;
use model::Firmware;
use model::VmRecord;
use model::VolumeId;

use crate::engine::Machine;
use crate::lifecycle::VmFiles;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Stop;

/// Images of one machine, as their volume knows them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Images {
    /// Where they are; none where several nodes may write a file, or the images are this node's alone.
    pub volume: Option<VolumeId>,
    /// Their numbers there.
    pub files: Vec<u64>,
}

impl Images {
    /// Whether there is no right to be had.
    pub fn is_empty(&self) -> bool {
        self.volume.is_none() || self.files.is_empty()
    }
}

/// The right to write images. Implemented by the daemon over its volumes.
#[async_trait]
pub trait WriteRights: Send + Sync + 'static {
    /// What the volume knows these files of a VM as, those that are there. Nothing is changed.
    ///
    /// # Errors
    /// They cannot be looked at.
    async fn find(&self, vm: &VmRecord, files: Vec<PathBuf>) -> io::Result<Images>;

    /// From now on nothing is written to the images from this node, and others may write them. What was
    /// written is durable when this returns. They may be opened for writing, now and by others. Said
    /// again, it changes nothing.
    ///
    /// # Errors
    /// In words; they are not held then, or nobody knows.
    async fn hold(&self, images: &Images) -> Result<(), String>;

    /// They may be written from this node again. Only for who knows that the machine is this node's.
    /// Said again, it changes nothing.
    ///
    /// # Errors
    /// In words; they are as they were.
    async fn free(&self, images: &Images) -> Result<(), String>;
}

/// For hosts all of whose volumes let every node write.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everybody;

#[async_trait]
impl WriteRights for Everybody {
    async fn find(&self, _: &VmRecord, _: Vec<PathBuf>) -> io::Result<Images> {
        Ok(Images::default())
    }

    async fn hold(&self, _: &Images) -> Result<(), String> {
        Ok(())
    }

    async fn free(&self, _: &Images) -> Result<(), String> {
        Ok(())
    }
}

/// The files that a machine of that record writes.
pub(super) fn written(record: &VmRecord, files: &VmFiles) -> Vec<PathBuf> {
    let disks = record.spec.disks.iter().filter(|disk: &&DiskSpec| !disk.read_only);
    let mut paths: Vec<PathBuf> = disks.map(|disk| files.disk(disk)).collect();
    if record.spec.firmware == Firmware::Uefi {
        paths.push(files.uefi_vars());
    }
    paths
}

fn problem(error: &io::Error) -> Stop {
    Stop::Volume(format!("its images cannot be looked at: {error}"))
}

impl Driver {
    /// What it writes, for later: to be asked while the guest works.
    pub(super) async fn images_of(&self, record: &VmRecord) -> Step<Images> {
        let found = self.host.rights.find(record, written(record, &self.files)).await;
        found.map_err(|error| problem(&error))
    }

    /// Lets the guest go on, with the right to write its images. The caller knows from the state that the
    /// machine is this node's, and that no handover can take it away.
    pub(crate) async fn let_go_on(&self, machine: &Arc<dyn Machine>) -> Step<()> {
        if let Some(record) = self.record().filter(|record| record.volume.is_some()) {
            let images = self.images_of(&record).await?;
            self.free(&images).await?;
        }
        Ok(machine.cont().await?)
    }

    /// They may be written from here: see [`WriteRights::free`].
    pub(super) async fn free(&self, images: &Images) -> Step<()> {
        if images.is_empty() {
            return Ok(());
        }
        self.host.rights.free(images).await.map_err(Stop::Volume)
    }
}

/// Holds what a machine that waits for its guest will write, before it opens it.
pub(super) async fn hold(rights: &dyn WriteRights, record: &VmRecord, files: &VmFiles) -> Step<()> {
    let found = rights.find(record, written(record, files)).await;
    let images = found.map_err(|error| problem(&error))?;
    if images.is_empty() {
        return Ok(());
    }
    rights.hold(&images).await.map_err(Stop::Volume)
}
