//! Nodes in one process: each with a path to one LUN, a client and a mount point; one coordinates.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use model::NodeId;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use volume::lease::Epoch;
use volume::lease::Limits;
use volume::provider::Client;
use volume::provider::ClientConfig;
use volume::provider::Coordinator;
use volume::provider::CoordinatorConfig;
use volume::provider::CoordinatorError;
use volume::provider::Dial;
use volume::provider::Dialing;
use volume::provider::LunPath;
use volume::provider::Mount;
use volume::provider::Stream;
use volume::provider::Way;

use crate::rig::Rig;
use crate::rig::run;

pub(crate) const VOLUME: uuid::Uuid = uuid::Uuid::from_u128(77);

/// What a stream holds that nobody has read.
const PIPE_BYTES: usize = 1 << 20;

pub(crate) fn node(number: usize) -> NodeId {
    NodeId::new(uuid::Uuid::from_u128(number as u128 + 1))
}

pub(crate) fn limits() -> Limits {
    Limits {
        recall: Duration::from_millis(500),
        silence: Duration::from_millis(800),
        resend: Duration::from_millis(50),
        grace: Duration::from_millis(1500),
        growth_blocks: 1024,
        ..Limits::default()
    }
}

/// The network between the nodes.
#[derive(Default)]
struct Net {
    serving: Option<(NodeId, Arc<Coordinator>)>,
    cut: BTreeSet<NodeId>,
    links: Vec<(NodeId, AbortHandle)>,
}

struct Dialer {
    own: NodeId,
    net: Arc<Mutex<Net>>,
}

impl Dial for Dialer {
    fn dial(&self, coordinator: NodeId) -> Dialing {
        let (own, net) = (self.own, self.net.clone());
        Box::pin(async move {
            let mut net = net.lock().expect("the net");
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let (at, serving) = net.serving.clone().ok_or_else(refused)?;
            if at != coordinator || net.cut.contains(&own) {
                return Err(refused());
            }
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let task = tokio::spawn(async move {
                let _ = serving.serve(own, far).await;
            });
            net.links.push((own, task.abort_handle()));
            let near: Box<dyn Stream> = Box::new(near);
            Ok(near)
        })
    }
}

pub(crate) struct Node {
    pub(crate) path: LunPath,
    pub(crate) client: Client,
    pub(crate) mount: Mount,
    pub(crate) at: PathBuf,
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Option<Node>>,
    net: Arc<Mutex<Net>>,
    pub(crate) epoch: u32,
    xfs: bool,
    limits: Limits,
    /// Of coordinators that died; they are still mounted.
    dead: Vec<PathBuf>,
    pub(crate) runtime: Runtime,
    pub(crate) rig: Rig,
}

pub(crate) const EXT4: &[&str] = &["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard"];
pub(crate) const XFS: &[&str] = &["mkfs.xfs", "-q", "-f", "-K"];

/// The same on both file systems.
pub(crate) fn on_both(nodes: usize, size: u64, test: fn(&mut Cluster)) {
    for mkfs in [EXT4, XFS] {
        let mut cluster = Cluster::new(nodes, size, mkfs);
        test(&mut cluster);
        cluster.end();
    }
}

impl Cluster {
    pub(crate) fn new(nodes: usize, size: u64, mkfs: &[&str]) -> Self {
        Self::with(nodes, size, mkfs, limits())
    }

    pub(crate) fn with(nodes: usize, size: u64, mkfs: &[&str], limits: Limits) -> Self {
        let rig = Rig::new(size, nodes, 0x5E);
        let device = rig.device(0).to_string_lossy().into_owned();
        let arguments: Vec<&str> = mkfs[1..].iter().copied().chain([&*device]).collect();
        run(mkfs[0], &arguments);
        // After the name space is this thread's own: its threads have the same one.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let mut cluster = Self {
            nodes: (0..nodes).map(|_| None).collect(),
            net: Arc::default(),
            epoch: 0,
            xfs: mkfs[0] == "mkfs.xfs",
            limits,
            dead: Vec::new(),
            runtime,
            rig,
        };
        let paths: Vec<LunPath> = (0..nodes).map(|number| cluster.path(number)).collect();
        cluster.coordinate_with(0, &paths[0]).expect("a coordinator");
        for (number, path) in paths.into_iter().enumerate() {
            cluster.join(number, path);
        }
        for number in 0..nodes {
            cluster.until(number, Way::Direct);
        }
        cluster
    }

    fn path(&self, number: usize) -> LunPath {
        LunPath::new(self.rig.device(number), self.rig.server().fence(number))
    }

    fn folder(&self, name: &str, number: usize) -> PathBuf {
        let folder = self.rig.folder.path().join(format!("{name}{number}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn join(&mut self, number: usize, path: LunPath) {
        let dialer = Dialer { own: node(number), net: self.net.clone() };
        let first_hello = u64::from(self.epoch) << 32;
        let limits = self.limits.clone();
        let config = ClientConfig { volume: VOLUME, node: node(number), first_hello, limits };
        let at = self.folder("mount", number);
        let coordinator = self.net.lock().expect("the net").serving.as_ref().map(|it| it.0);
        let epoch = Epoch(self.epoch);
        let (own, place) = (path.clone(), at.clone());
        let (client, mount) = self.runtime.block_on(async move {
            let client = Client::start(config, Some(own), dialer);
            client.view(epoch, coordinator.expect("a coordinator")).await;
            let mount = Mount::start(client.clone(), "test", &place).await.expect("a mount");
            (client, mount)
        });
        self.nodes[number] = Some(Node { path, client, mount, at });
    }

    fn coordinate_with(&mut self, number: usize, path: &LunPath) -> Result<(), CoordinatorError> {
        self.epoch += 1;
        let config = CoordinatorConfig {
            volume: VOLUME,
            epoch: Epoch(self.epoch),
            members: (0..self.nodes.len()).map(node).collect(),
            mount: self.folder("inner", number),
            // All nodes have one kernel, which sees the same file system several times.
            mount_options: if self.xfs { "nouuid" } else { "" }.to_owned(),
            uuid: None,
            limits: self.limits.clone(),
        };
        let coordinator =
            self.runtime.block_on(Coordinator::start(path.clone(), config)).map(Arc::new)?;
        self.net.lock().expect("the net").serving = Some((node(number), coordinator));
        Ok(())
    }

    pub(crate) fn try_coordinate(&mut self, number: usize) -> Result<(), CoordinatorError> {
        let path = self.node(number).path.clone();
        self.coordinate_with(number, &path)
    }

    /// Makes a node the coordinator, of a new epoch, and tells all.
    pub(crate) fn coordinate(&mut self, number: usize) {
        self.try_coordinate(number).expect("a coordinator");
        for one in self.nodes.iter().flatten() {
            self.runtime.block_on(one.client.view(Epoch(self.epoch), node(number)));
        }
    }

    pub(crate) fn coordinator(&self) -> Arc<Coordinator> {
        self.net.lock().expect("the net").serving.clone().expect("a coordinator").1
    }

    fn take_coordinator(&self) -> Arc<Coordinator> {
        let mut net = self.net.lock().expect("the net");
        for (_, link) in net.links.drain(..) {
            link.abort();
        }
        net.serving.take().expect("a coordinator").1
    }

    /// The coordinator ends as it should.
    pub(crate) fn stop(&self) {
        let coordinator = self.take_coordinator();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Arc::strong_count(&coordinator) > 1 {
            assert!(Instant::now() < deadline, "a connection does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let coordinator = Arc::into_inner(coordinator).expect("nobody else has it");
        self.runtime.block_on(coordinator.stop()).expect("a clean end");
    }

    /// Waits until the coordinator says that it cannot go on, and stops it.
    pub(crate) fn failed(&self) -> CoordinatorError {
        let coordinator = self.coordinator();
        let ended = coordinator.ended();
        let wait = async { tokio::time::timeout(Duration::from_secs(20), ended).await };
        let why = self.runtime.block_on(wait).expect("it does not notice");
        drop(coordinator);
        self.stop();
        why
    }

    /// A node loses its power: its path, its tasks, its mounts.
    pub(crate) fn kill(&mut self, number: usize) {
        self.rig.server().lun().set_path(number, false).expect("a path");
        let serves = self
            .net
            .lock()
            .expect("the net")
            .serving
            .as_ref()
            .is_some_and(|it| it.0 == node(number));
        if serves {
            let coordinator = self.take_coordinator();
            self.dead.push(self.folder("inner", number));
            drop(coordinator);
        }
        let Some(dead) = self.nodes[number].take() else { return };
        drop(dead.mount);
    }

    /// A node cannot speak to others any more; or can again.
    pub(crate) fn cut(&self, number: usize, cut: bool) {
        let mut net = self.net.lock().expect("the net");
        if cut {
            net.cut.insert(node(number));
            net.links.iter().filter(|it| it.0 == node(number)).for_each(|it| it.1.abort());
        } else {
            net.cut.remove(&node(number));
        }
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        self.nodes[number].as_ref().expect("a living node")
    }

    pub(crate) fn at(&self, number: usize, name: &str) -> PathBuf {
        self.node(number).at.join(name)
    }

    pub(crate) fn way(&self, number: usize) -> Way {
        self.node(number).client.state().borrow().way
    }

    pub(crate) fn until(&self, number: usize, way: Way) {
        let begun = Instant::now();
        while self.way(number) != way {
            let now = self.way(number);
            assert!(begun.elapsed() < Duration::from_secs(20), "node {number} is {now:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends all, checks the file system, and lets the test look at it as on any Linux machine.
    pub(crate) fn look(&mut self, look: impl FnOnce(&Path)) {
        for one in &mut self.nodes {
            if let Some(one) = one.take() {
                self.runtime.block_on(one.mount.stop()).expect("nobody uses it");
            }
        }
        if self.net.lock().expect("the net").serving.is_some() {
            self.stop();
        }
        // What the dead still have mounted may write nothing any more.
        for dead in std::mem::take(&mut self.dead) {
            let dead = dead.to_string_lossy().into_owned();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !std::process::Command::new("umount")
                .arg(&dead)
                .stderr(std::process::Stdio::null())
                .status()
                .expect("umount")
                .success()
            {
                assert!(Instant::now() < deadline, "what is dead stays mounted");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let last = self.nodes.len() - 1;
        let lun = self.rig.server();
        lun.lun().set_path(last, true).expect("a path");
        lun.lun().register(last, 99).expect("a key");
        let device = self.rig.device(last).to_string_lossy().into_owned();
        run("blockdev", &["--flushbufs", &device]);
        match self.xfs {
            true => run("xfs_repair", &["-n", &device]),
            false => run("e2fsck", &["-f", "-n", &device]),
        };
        let root = self.rig.root();
        let options = if self.xfs { "ro,norecovery,nouuid" } else { "ro,noload" };
        run("mount", &["-o", options, &device, &root.to_string_lossy()]);
        look(&root);
        run("umount", &[&root.to_string_lossy()]);
    }

    pub(crate) fn end(&mut self) {
        if self.nodes.iter().any(Option::is_some) {
            self.look(|_| {});
        }
    }
}

impl Drop for Cluster {
    /// After a failed test: a file system that is still mounted when its LUN goes would hold this
    /// process for ever.
    fn drop(&mut self) {
        self.nodes.clear();
        if let Ok(mut net) = self.net.lock() {
            net.links.drain(..).for_each(|(_, link)| link.abort());
            net.serving = None;
        }
        for inner in 0..self.rig.paths() {
            let inner = self.rig.folder.path().join(format!("inner{inner}"));
            for _ in 0..100 {
                let mut umount = std::process::Command::new("umount");
                let status = umount.arg(&inner).stderr(std::process::Stdio::piped()).output();
                if status.is_ok_and(|it| !String::from_utf8_lossy(&it.stderr).contains("busy")) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Past the cache, as QEMU opens an image.
pub(crate) fn direct(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
