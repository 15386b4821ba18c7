//! The SAN's process.
//!
//! Trust boundary: the lab's socket is root's own; those of nodes take lines from them: short, with a
//! deadline, few at a time, and only about the path of that node.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use volume::san::Fate;
use volume::san::Lun;
use volume::san::LunError;
use volume::san::SECTOR_BYTES;
use volume::san::Server;
use volume::san::serve_as;

use super::lun_name;
use super::no_san;
use super::words::Answer;
use super::words::CacheFate;
use super::words::LINE_MAX;
use super::words::LunStatus;
use super::words::Order;
use super::words::PathStatus;
use super::words::Reserve;
use super::words::SanStatus;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::programs::run;

/// Most lines at a time: a few of each of 64 nodes.
const LINES_MAX: usize = 256;

/// How long a line may take to arrive, and an answer to go.
const LINE_LIMIT: Duration = Duration::from_secs(5);

/// Longest delay, in milliseconds: longer is a cut path.
const DELAY_MS_MAX: u64 = 60_000;

/// The reservation, as it outlives the process.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Keys {
    keys: Vec<Option<u64>>,
    reserved: bool,
    /// The life of each path: a number is never used again.
    lives: Vec<u64>,
}

/// What all lines share.
struct San {
    lab: Lab,
    nodes: Vec<NodeName>,
    luns: Vec<Served>,
}

/// A LUN.
struct Served {
    name: String,
    server: Server,
    /// The device of each path that has one.
    devices: Mutex<BTreeMap<usize, String>>,
}

/// Serves until it is killed.
///
/// # Errors
/// The lab has no SAN; FUSE or a socket cannot be used.
pub fn serve(lab: &Lab) -> Result<(), LabError> {
    let state = lab.state()?;
    let plan = state.san.as_ref().ok_or_else(no_san)?;
    let nodes: Vec<_> = state.nodes.keys().copied().collect();
    let numbered = plan.sizes.iter().enumerate();
    let luns = numbered.map(|(number, size)| Served::open(lab, number, *size, nodes.len()));
    let luns = luns.collect::<Result<_, _>>()?;
    let san = San { lab: lab.clone(), nodes, luns };
    // All in the one thread of `main` until here; from now on one thread for each line.
    std::thread::scope(|scope| {
        let (san, open) = (&san, Arc::new(AtomicUsize::new(0)));
        for (path, node) in san.nodes.iter().enumerate() {
            let folder = lab.node_san(*node);
            fs::create_dir_all(&folder).map_err(LabError::io("make", &folder))?;
            for lun in &san.luns {
                let listener = listen(&folder.join(format!("{}.sock", lun.name)))?;
                let open = open.clone();
                scope.spawn(move || {
                    lines(&listener, &open, &|request: Reserve| lun.reserve(lab, path, &request))
                });
            }
        }
        let listener = listen(&lab.san_socket())?;
        lines(&listener, &open, &|order: Order| san.order(&order));
        Ok(())
    })
}

fn listen(path: &Path) -> Result<UnixListener, LabError> {
    let _ = fs::remove_file(path);
    UnixListener::bind(path).map_err(LabError::io("listen on", path))
}

/// Answers lines, each on a thread of its own.
fn lines<Q: DeserializeOwned>(
    listener: &UnixListener,
    open: &AtomicUsize,
    answer: &(dyn Fn(Q) -> Result<Answer, String> + Sync),
) {
    std::thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::Relaxed) >= LINES_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            scope.spawn(move || {
                // The caller went away: nobody is to be told.
                let _ = converse(stream, answer);
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}

fn converse<Q: DeserializeOwned>(
    mut stream: UnixStream,
    answer: &dyn Fn(Q) -> Result<Answer, String>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(LINE_LIMIT))?;
    stream.set_write_timeout(Some(LINE_LIMIT))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?.take(LINE_MAX)).read_line(&mut line)?;
    let said = match serde_json::from_str(&line) {
        Ok(request) => answer(request),
        Err(error) => Err(format!("no such request: {error}")),
    };
    let said = said.unwrap_or_else(|error| Answer { error: Some(error), ..Answer::default() });
    let text = serde_json::to_string(&said)?;
    stream.write_all(format!("{text}\n").as_bytes())
}

impl San {
    fn path_of(&self, node: NodeName) -> Result<usize, String> {
        let path = self.nodes.iter().position(|one| *one == node);
        path.ok_or_else(|| format!("the SAN has no path of {node}"))
    }

    fn order(&self, order: &Order) -> Result<Answer, String> {
        match order {
            Order::Status => {
                return Ok(Answer { status: Some(self.status()), ..Answer::default() });
            }
            Order::Attach { node } => {
                let path = self.path_of(*node)?;
                let devices = self.luns.iter().map(|lun| lun.attach(&self.lab, path));
                let devices = devices.collect::<Result<Vec<_>, _>>()?;
                return Ok(Answer { devices: Some(devices), ..Answer::default() });
            }
            Order::Detach { node } => {
                let path = self.path_of(*node)?;
                self.luns.iter().try_for_each(|lun| lun.detach(&self.lab, path))?;
            }
            Order::Path { node, up } => {
                let path = self.path_of(*node)?;
                self.each(|lun| lun.set_path(path, *up))?;
            }
            Order::Delay { ms } if *ms > DELAY_MS_MAX => {
                return Err(format!("{ms} ms are too long; give at most {DELAY_MS_MAX}"));
            }
            Order::Delay { ms } => self.each(|lun| {
                lun.set_delay(Duration::from_millis(*ms));
                Ok(())
            })?,
            Order::PowerLoss { cache } => {
                let mut draw = Draw::of(*cache);
                self.each(|lun| lun.power_loss(|_| draw.next()).map(drop))?;
            }
        }
        Ok(Answer::default())
    }

    fn each(&self, mut deed: impl FnMut(&mut Lun) -> Result<(), LunError>) -> Result<(), String> {
        let deed = |served: &Served| deed(&mut served.server.lun());
        self.luns.iter().try_for_each(deed).map_err(|error| error.to_string())
    }

    fn status(&self) -> SanStatus {
        SanStatus { luns: self.luns.iter().map(|lun| lun.status(&self.nodes)).collect() }
    }
}

impl Served {
    /// Serves the paths of a LUN, with what outlived the process before.
    fn open(lab: &Lab, number: usize, size: u64, paths: usize) -> Result<Self, LabError> {
        let name = lun_name(number);
        let dir = lab.san_dir().join(&name);
        let files = dir.join("paths");
        fs::create_dir_all(&files).map_err(LabError::io("make", &files))?;
        let medium = dir.join("medium.img");
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&medium);
        let file = file.map_err(LabError::io("open", &medium))?;
        let length = file.metadata().map_err(LabError::io("read", &medium))?.len();
        file.set_len(length.max(size)).map_err(LabError::io("extend", &medium))?;
        let mut lun = Lun::in_file(file, size, paths);
        let keys: Keys = match fs::read(dir.join("keys.json")) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                LabError::failed(format!("keys.json is damaged: {error}"), "muster lab down")
            })?,
            Err(_) => Keys::default(),
        };
        lun.restore_reservation(&keys.keys, keys.reserved);
        for (path, lives) in keys.lives.iter().enumerate() {
            for _ in 0..*lives {
                let _ = lun.end_life(path);
            }
        }
        let prefix = format!("{}{name}-", lab.loop_prefix());
        let server = serve_as(lun, &files, &prefix).map_err(LabError::io("serve", &files))?;
        Ok(Self { name, server, devices: Mutex::default() })
    }

    fn reserve(&self, lab: &Lab, path: usize, request: &Reserve) -> Result<Answer, String> {
        let mut lun = self.server.lun();
        let done = match request {
            Reserve::Keys => {
                let keys = lun.keys(path).map_err(|error| error.to_string())?;
                return Ok(Answer { keys: Some(keys), ..Answer::default() });
            }
            Reserve::Own => {
                let key = lun.key_of(path).map_err(|error| error.to_string())?;
                return Ok(Answer { keys: Some(key.into_iter().collect()), ..Answer::default() });
            }
            Reserve::Register { key } => lun.register(path, *key),
            Reserve::Unregister => lun.unregister(path),
            Reserve::Clear => lun.clear(path),
            Reserve::PreemptAndAbort { key } => lun.preempt_and_abort(path, *key),
        };
        done.map_err(|error| error.to_string())?;
        self.keep(lab, &lun)?;
        Ok(Answer::default())
    }

    /// Writes down what outlives the process, before anybody is told of it.
    fn keep(&self, lab: &Lab, lun: &Lun) -> Result<(), String> {
        let (keys, reserved) = lun.reservation();
        let lives = (0..keys.len()).filter_map(|path| lun.life(path)).collect();
        let kept = Keys { keys, reserved, lives };
        let dir = lab.san_dir().join(&self.name);
        let write = || -> io::Result<()> {
            let part = dir.join("keys.json.new");
            fs::write(&part, serde_json::to_vec(&kept)?)?;
            fs::rename(&part, dir.join("keys.json"))
        };
        write().map_err(|error| format!("keys cannot be written: {error}"))
    }

    fn detach(&self, lab: &Lab, path: usize) -> Result<(), String> {
        {
            let mut lun = self.server.lun();
            lun.end_life(path).map_err(|error| error.to_string())?;
            self.keep(lab, &lun)?;
        }
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
        // Also those of a process before this one.
        for device in Lab::loops(&self.files_of(lab, path)) {
            run("losetup", ["--detach", &device]).map_err(|error| error.message)?;
        }
        Ok(())
    }

    /// A device for a path, in a new life: whatever had the old one is refused from here on.
    fn attach(&self, lab: &Lab, path: usize) -> Result<String, String> {
        self.detach(lab, path)?;
        let life = self.server.lun().life(path).unwrap_or_default();
        let name = format!("{}{life}", self.files_of(lab, path));
        let file = lab.san_dir().join(&self.name).join("paths").join(name);
        let file = file.display().to_string();
        let said = run("losetup", ["--find", "--show", "--direct-io=on", &file]);
        let device = said.map_err(|error| error.message)?.trim().to_owned();
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.insert(path, device.clone());
        Ok(device)
    }

    /// What the files of a path in all its lives begin with.
    fn files_of(&self, lab: &Lab, path: usize) -> String {
        format!("{}{}-path-{path}.", lab.loop_prefix(), self.name)
    }

    fn status(&self, nodes: &[NodeName]) -> LunStatus {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let lun = self.server.lun();
        let (keys, reserved) = lun.reservation();
        let paths = nodes.iter().enumerate().map(|(path, node)| PathStatus {
            node: *node,
            up: lun.is_up(path),
            device: devices.get(&path).cloned(),
            life: lun.life(path).unwrap_or_default(),
            key: keys.get(path).copied().flatten(),
        });
        LunStatus {
            name: self.name.clone(),
            size: lun.size(),
            cached: lun.cached(),
            flushes: lun.flushes(),
            delay_ms: u64::try_from(lun.delay().as_millis()).unwrap_or(u64::MAX),
            reserved,
            paths: paths.collect(),
        }
    }
}

/// Draws the fate of each cached block.
struct Draw {
    cache: CacheFate,
    state: u64,
}

impl Draw {
    fn of(cache: CacheFate) -> Self {
        let seed = if let CacheFate::Drawn { seed } = cache { seed } else { 0 };
        Self { cache, state: seed }
    }

    /// A step of splitmix64.
    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn next(&mut self) -> Fate {
        let sector = usize::try_from(SECTOR_BYTES).unwrap_or(4096);
        match self.cache {
            CacheFate::Lost => Fate::Lost,
            CacheFate::Kept => Fate::Kept,
            CacheFate::Drawn { .. } => {
                let number = usize::try_from(self.number() >> 1).unwrap_or(0);
                match number % 3 {
                    0 => Fate::Lost,
                    1 => Fate::Kept,
                    // Media write 512 bytes whole.
                    _ => Fate::Torn((number / 3) % sector / 512 * 512),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_draws_the_same_fates_and_all_kinds_of_them() {
        let draw = |seed| {
            let mut draw = Draw::of(CacheFate::Drawn { seed });
            (0..300).map(|_| draw.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let fates = draw(1);
        assert!(fates.contains(&Fate::Lost) && fates.contains(&Fate::Kept));
        assert!(fates.iter().any(|fate| matches!(fate, Fate::Torn(bytes) if *bytes > 0)));
        assert_eq!(Draw::of(CacheFate::Kept).next(), Fate::Kept);
    }
}
