//! The right to write images on volumes on LUNs, as drivers of machines use it (invariant 39): orders to the
//! volume process.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::VmRecord;
use model::VolumeId;
use vm::lifecycle::Images;
use vm::lifecycle::WriteRights;

use super::VolumeProcess;
use crate::dataplane::words::Order;
use crate::truth::Truth;

/// How long a look at a file may take, while a coordinator changes.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// The right to write images of machines of this node.
pub(crate) struct LunRights {
    truth: Arc<dyn Truth>,
    process: VolumeProcess,
}

impl LunRights {
    pub(crate) fn new(truth: Arc<dyn Truth>, process: VolumeProcess) -> Self {
        Self { truth, process }
    }

    async fn order(
        &self,
        images: &Images,
        order: impl FnOnce(VolumeId, Vec<u64>) -> Order,
    ) -> Result<(), String> {
        let Some(volume) = images.volume else { return Ok(()) };
        self.process.order(order(volume, images.files.clone())).await.map(drop)
    }
}

#[async_trait]
impl WriteRights for LunRights {
    async fn find(&self, vm: &VmRecord, files: Vec<PathBuf>) -> io::Result<Images> {
        let state = self.truth.state();
        let record = vm.volume.and_then(|volume| state.volumes.get(&volume));
        let Some(volume) = record.filter(|it| it.coordination.is_some()) else {
            return Ok(Images::default());
        };
        let look = tokio::task::spawn_blocking(move || {
            let number = |file: &PathBuf| match std::fs::metadata(file) {
                // On such a volume an inode's number is the file's.
                Ok(found) => Some(Ok(found.ino())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(Err(error)),
            };
            files.iter().filter_map(number).collect::<io::Result<Vec<u64>>>()
        });
        let found = tokio::time::timeout(LOOK_LIMIT, look).await;
        let files = found.map_err(io::Error::from)?.map_err(io::Error::other)??;
        Ok(Images { volume: Some(volume.id), files })
    }

    async fn hold(&self, images: &Images) -> Result<(), String> {
        self.order(images, |volume, files| Order::Hold { volume, files }).await
    }

    async fn free(&self, images: &Images) -> Result<(), String> {
        self.order(images, |volume, files| Order::Free { volume, files }).await
    }
}
