//! One volume in this process: its client and mount point, and its coordinator where that is here.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use futures::FutureExt;
use model::NodeId;
use model::UnixMillis;
use model::VolumeId;
use rustix::mount::UnmountFlags;
use tokio::task::AbortHandle;
use volume::lease::Epoch;
use volume::lease::FileId;
use volume::lease::Limits;
use volume::provider::Call;
use volume::provider::Client;
use volume::provider::ClientConfig;
use volume::provider::Coordinator;
use volume::provider::CoordinatorConfig;
use volume::provider::LunPath;
use volume::provider::Mount;
use volume::provider::Reason;
use volume::provider::Reply;

use super::LocalFence;
use super::Settings;
use super::kept::Kept;
use super::leftovers;
use super::streams::Streams;
use super::words::Answer;
use super::words::Coordinate;
use super::words::Follow;
use super::words::Reign;
use super::words::Shown;
use super::words::Told;
use super::words::Way;
use crate::luns::SocketFence;

/// How long a connection may keep a coordinator from its end.
const LET_GO: Duration = Duration::from_secs(10);

/// How long a mount point that goes waits for what was closed to be closed at the coordinator, too. What is
/// not has its length in the file.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often the coordinator is asked for the free space.
const SPACE_EVERY: Duration = Duration::from_secs(5);

/// How long a mount that failed waits until it is tried again.
const MOUNT_AGAIN: Duration = Duration::from_secs(1);

/// What all volumes of the process share.
pub(super) struct Process {
    pub(super) settings: Arc<Settings>,
    pub(super) streams: Streams,
    pub(super) kept: Kept,
}

/// A volume. Orders for one are carried out one after the other.
pub(super) struct Hosted {
    id: VolumeId,
    process: Arc<Process>,
    /// This node's path to its LUN: one for both, client and coordinator.
    path: Option<LunPath>,
    client: Option<Attached>,
    reign: Option<Reigning>,
    /// An epoch that was begun by this process and in which nobody was served, so it may be tried again.
    unused: Option<u32>,
}

struct Attached {
    client: Client,
    at: PathBuf,
    direct: bool,
    front: Arc<Front>,
    tasks: [AbortHandle; 2],
}

/// The mount point, which comes about by itself once there is a coordinator.
#[derive(Default)]
pub(super) struct Front {
    mount: Mutex<Option<Arc<Mount>>>,
    problem: Mutex<Option<String>>,
    space: Mutex<Option<(u64, u64)>>,
}

struct Reigning {
    coordinator: Arc<Coordinator>,
    epoch: u32,
    members: std::collections::BTreeSet<NodeId>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only whole values are put in and taken out.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Front {
    fn mounted(&self) -> Result<Arc<Mount>, String> {
        locked(&self.mount).clone().ok_or_else(|| "it is not mounted on this node".to_owned())
    }

    /// Holds files back, all or none.
    ///
    /// # Errors
    /// What was written to one of them cannot be made durable.
    pub(super) async fn hold(&self, files: &[u64]) -> Result<(), String> {
        let mount = self.mounted()?;
        // All at once: their guest stands meanwhile.
        let held = files.iter().map(|file| mount.hold(FileId(*file)));
        let failed = futures::future::join_all(held).await.into_iter().find_map(Result::err);
        match failed {
            None => Ok(()),
            Some(error) => {
                files.iter().for_each(|file| mount.free(FileId(*file)));
                Err(format!("what was written cannot be made durable: {error}"))
            }
        }
    }

    /// Lets them be written again.
    ///
    /// # Errors
    /// The volume is not mounted.
    pub(super) fn free(&self, files: &[u64]) -> Result<(), String> {
        let mount = self.mounted()?;
        files.iter().for_each(|file| mount.free(FileId(*file)));
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Hosted {
    pub(super) fn new(id: VolumeId, process: Arc<Process>) -> Self {
        Self { id, process, path: None, client: None, reign: None, unused: None }
    }

    /// Whether nothing of it is here.
    pub(super) fn is_idle(&self) -> bool {
        self.client.is_none() && self.reign.is_none()
    }

    fn lun_path(&mut self, device: &Path, fences: bool) -> Result<LunPath, String> {
        if let Some(path) = &self.path {
            if path.device() == device {
                return Ok(path.clone());
            }
            if !self.is_idle() {
                let (old, new) = (path.device().display(), device.display());
                return Err(format!("its LUN is in use by {old}, and not by {new} at a time"));
            }
        }
        let path = match fences {
            true => LunPath::new(device, SocketFence::new(device)),
            false => LunPath::new(device, LocalFence::default()),
        };
        self.path = Some(path.clone());
        Ok(path)
    }

    /// Shows the files, and knows who coordinates them.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn follow(&mut self, order: Follow) -> Result<(), String> {
        let news = order.device.is_some() && self.client.as_ref().is_some_and(|it| !it.direct);
        if news {
            // Its path has come meanwhile. As long as somebody uses the files it goes on without.
            let _ = self.detach().await;
        }
        if self.client.is_none() {
            let attached = self.attach(&order)?;
            self.client = Some(attached);
        }
        if let (Some(attached), Some(holder)) = (&self.client, order.holder) {
            attached.client.view(Epoch(order.epoch), holder).await;
        }
        Ok(())
    }

    fn attach(&mut self, order: &Follow) -> Result<Attached, String> {
        let path = match &order.device {
            Some(device) => Some(self.lun_path(device, true)?),
            None => None,
        };
        let first_hello = self.process.kept.first_hello().map_err(|error| error.to_string())?;
        let config = ClientConfig {
            volume: self.id.uuid(),
            node: self.process.settings.node,
            first_hello,
            limits: Limits::default(),
        };
        let direct = path.is_some();
        let client = Client::start(config, path, self.process.streams.dialer(self.id));
        let front = Arc::<Front>::default();
        let mounting = show(client.clone(), order.name.clone(), order.path.clone(), front.clone());
        let asking = ask_space(client.clone(), Arc::downgrade(&front));
        let tasks = [tokio::spawn(mounting).abort_handle(), tokio::spawn(asking).abort_handle()];
        Ok(Attached { client, at: order.path.clone(), direct, front, tasks })
    }

    /// The mount point.
    ///
    /// # Errors
    /// The files are not shown here.
    pub(super) fn front(&self) -> Result<Arc<Front>, String> {
        let attached = self.client.as_ref().map(|it| it.front.clone());
        attached.ok_or_else(|| "its files are not shown on this node".to_owned())
    }

    /// Shows the files no more.
    ///
    /// # Errors
    /// A program uses them; they stay.
    pub(super) async fn detach(&mut self) -> Result<(), String> {
        let Some(attached) = &self.client else { return Ok(()) };
        if locked(&attached.front.mount).is_some() {
            match rustix::mount::unmount(&attached.at, UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => {
                    let at = attached.at.display();
                    return Err(format!(
                        "it cannot be unmounted: {error}; see who uses it: fuser -vm {at}"
                    ));
                }
            }
        }
        let Some(attached) = self.client.take() else { return Ok(()) };
        attached.tasks.iter().for_each(AbortHandle::abort);
        let mount = locked(&attached.front.mount).take();
        if let Some(mount) = mount {
            // It is unmounted: what is left is to close files where the coordinator is.
            let _ = tokio::time::timeout(FAREWELL, stop(mount)).await;
        }
        let _ = std::fs::remove_dir(&attached.at);
        Ok(())
    }

    /// Coordinates the volume in an epoch that the replicated state has given to this node.
    pub(super) async fn coordinate(&mut self, order: Coordinate) -> Answer {
        match &self.reign {
            Some(reign) if reign.epoch == order.epoch => return Answer::Done,
            Some(reign) if reign.epoch > order.epoch => return Answer::Begun,
            _ => {}
        }
        match self.begin(order).await {
            Ok(true) => Answer::Done,
            Ok(false) => Answer::Begun,
            Err(why) => Answer::Failed { why },
        }
    }

    async fn begin(&mut self, order: Coordinate) -> Result<bool, String> {
        let (device, fences) = (order.device.clone(), order.fences);
        self.resign(Some(&device), fences).await?;
        let path = self.lun_path(&device, fences)?;
        let mount = self.inner().map_err(|error| error.to_string())?;
        // Before anything is done in it: nobody begins it a second time, whatever dies now.
        let new = self.process.kept.begin(self.id, order.epoch);
        if !new.map_err(|error| error.to_string())? && self.unused != Some(order.epoch) {
            return Ok(false);
        }
        let config = CoordinatorConfig {
            volume: self.id.uuid(),
            epoch: Epoch(order.epoch),
            members: order.members.clone(),
            mount,
            mount_options: if order.one_kernel { "nouuid" } else { "" }.to_owned(),
            uuid: Some(order.uuid),
            limits: Limits::default(),
        };
        let coordinator = match Coordinator::start(path, config).await {
            Ok(coordinator) => Arc::new(coordinator),
            Err(error) => {
                use volume::provider::CoordinatorError as E;
                // What is wrong with a path is for another node, in another epoch.
                let own = matches!(error, E::Foreign | E::InUse | E::Mount(_));
                self.unused = own.then_some(order.epoch);
                return Err(words(&error));
            }
        };
        self.unused = None;
        self.process.streams.serve(self.id, coordinator.clone());
        let (epoch, members) = (order.epoch, order.members);
        self.reign = Some(Reigning { coordinator, epoch, members });
        Ok(true)
    }

    fn inner(&self) -> io::Result<PathBuf> {
        use std::os::unix::fs::DirBuilderExt;

        let dir = self.process.settings.inner(self.id);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(dir)
    }

    /// Ceases to coordinate, and clears up after a process before this one.
    ///
    /// # Errors
    /// Something keeps the file system mounted, or the LUN does not answer.
    pub(super) async fn resign(
        &mut self,
        device: Option<&Path>,
        fences: bool,
    ) -> Result<(), String> {
        if let Some(reign) = self.reign.take() {
            self.process.streams.unserve(self.id);
            let coordinator = alone(reign.coordinator).await?;
            coordinator.stop().await.map_err(|error| words(&error))?;
        }
        let mount = self.inner().map_err(|error| error.to_string())?;
        if let Some(device) = device {
            let path = self.lun_path(device, fences)?;
            let cleared = Coordinator::clear(&path, mount.clone()).await;
            // Without an answer of the LUN the key is the next coordinator's to preempt.
            if let Err(error) = cleared
                && leftovers::mounted_here(&mount).is_some()
            {
                return Err(words(&error));
            }
        } else if leftovers::mounted_here(&mount).is_some() {
            rustix::mount::unmount(&mount, UnmountFlags::NOFOLLOW)
                .map_err(|error| format!("{} cannot be unmounted: {error}", mount.display()))?;
        }
        let _ = std::fs::remove_dir(&mount);
        Ok(())
    }

    /// How it is.
    pub(super) fn told(&self) -> Told {
        let reign = self.reign.as_ref().map(|it| Reign {
            epoch: it.epoch,
            members: it.members.clone(),
            ended: it.coordinator.ended().now_or_never().map(|error| words(&error)),
        });
        let shown = self.client.as_ref().map(|it| {
            let state = *it.client.state().borrow();
            let way = match state.way {
                volume::provider::Way::Direct => Way::Direct,
                volume::provider::Way::BlockRedirected(Reason::NoPath) => Way::NoPath,
                volume::provider::Way::BlockRedirected(Reason::NoKey) => Way::NoKey,
                volume::provider::Way::FileRedirected => Way::FileRedirected,
                volume::provider::Way::Waiting => Way::Waiting,
            };
            Shown {
                path: it.at.clone(),
                device: it.direct,
                mounted: locked(&it.front.mount).is_some(),
                problem: locked(&it.front.problem).clone(),
                way,
                since: millis(state.since),
                space: *locked(&it.front.space),
            }
        });
        Told { volume: self.id, reign, shown }
    }
}

/// An error with all that it comes from.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn millis(time: SystemTime) -> UnixMillis {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Waits until no connection that is just being taken has the coordinator.
async fn alone(mut shared: Arc<Coordinator>) -> Result<Coordinator, String> {
    let begun = Instant::now();
    loop {
        shared = match Arc::try_unwrap(shared) {
            Ok(coordinator) => return Ok(coordinator),
            Err(shared) => shared,
        };
        if begun.elapsed() > LET_GO {
            // Cannot be: whoever takes one drops it at once.
            return Err("a connection does not let go of the coordinator".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Takes a mount point away once no order uses it.
async fn stop(mut shared: Arc<Mount>) -> io::Result<()> {
    loop {
        shared = match Arc::try_unwrap(shared) {
            Ok(mount) => return mount.stop().await,
            Err(shared) => shared,
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Mounts the volume as soon as there is a coordinator.
async fn show(client: Client, name: String, at: PathBuf, front: Arc<Front>) {
    loop {
        let place = at.clone();
        let made = tokio::task::spawn_blocking(move || {
            leftovers::take_away(&place)?;
            std::fs::create_dir_all(&place)
        });
        let made = made.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mounted = match made {
            Ok(()) => Mount::start(client.clone(), &name, &at).await,
            Err(error) => Err(error),
        };
        match mounted {
            Ok(mount) => {
                *locked(&front.problem) = None;
                *locked(&front.mount) = Some(Arc::new(mount));
                return;
            }
            Err(error) => {
                tracing::warn!(%error, at = %at.display(), "a volume cannot be mounted");
                *locked(&front.problem) = Some(error.to_string());
            }
        }
        tokio::time::sleep(MOUNT_AGAIN).await;
    }
}

/// Asks for the free space, one question at a time, however long it takes.
async fn ask_space(client: Client, front: std::sync::Weak<Front>) {
    client.root().await;
    loop {
        let space = match client.call(Call::Space).await {
            Reply::Space(it) => {
                let bytes = |blocks: u64| blocks.saturating_mul(u64::from(it.block));
                Some((bytes(it.blocks), bytes(it.available)))
            }
            _ => None,
        };
        let Some(front) = front.upgrade() else { return };
        *locked(&front.space) = space;
        drop(front);
        tokio::time::sleep(SPACE_EVERY).await;
    }
}
