//! `lab up`: from nothing to nodes that answer, and back to nothing if that fails.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;

use crate::Say;
use crate::daemon::DAEMON;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::LabNet;
use crate::names::NODES_MAX;
use crate::names::NodeName;
use crate::programs::check_programs;
use crate::state::Faults;
use crate::state::LabState;
use crate::state::Phase;
use crate::state::SanPlan;

/// Set when the user wants it to end; looked at between two steps.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error where the end was asked for.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(LabError::interrupted("interrupted"));
        }
        Ok(())
    }
}

/// What lab is to be made.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The binary of all nodes.
    pub exe: PathBuf,
    /// How many nodes, 1 to 64.
    pub nodes: u8,
    /// Addresses, a private network of 16 bits; the default is 10.90.0.0/16.
    pub net: Option<LabNet>,
    /// Whether the machine gets a cable into the lab.
    pub host_link: bool,
    /// Whether machines only pretend.
    pub fake: bool,
    /// Whether the nodes form one cluster.
    pub cluster: bool,
    /// Bytes of each LUN that all nodes share; none: no SAN.
    pub san: Vec<u64>,
    /// Further lines of each daemon's configuration.
    pub config: String,
}

/// What was made, and how long it took.
#[derive(Debug, Clone, Serialize)]
pub struct UpReport {
    /// Nodes that answer.
    pub nodes: Vec<NodeName>,
    /// Whether a lab that was broken or half made was made whole again.
    pub repaired: bool,
    /// Milliseconds from the begin until all nodes answered.
    pub ready_ms: u64,
    /// Milliseconds that forming the cluster took; none where there is none.
    pub formed_ms: Option<u64>,
}

impl Lab {
    /// Makes the lab, or repairs one that is not whole. On a failure and when it is cancelled,
    /// nothing is left of what it made.
    ///
    /// # Errors
    /// It is up already; the directory holds something else; a step fails.
    pub fn up(
        &self,
        options: &UpOptions,
        cancel: &Cancel,
        say: Say<'_>,
    ) -> Result<UpReport, LabError> {
        if !(1..=NODES_MAX).contains(&options.nodes) {
            return Err(LabError::usage(
                format!("a lab cannot have {} nodes", options.nodes),
                format!("give 1 to {NODES_MAX}: --nodes 3"),
            ));
        }
        check_san(&options.san)?;
        check_programs()?;
        check_path(&options.exe)?;
        self.check_dir()?;
        fs::create_dir_all(self.dir()).map_err(LabError::io("make", self.dir()))?;
        let _lock = self.lock()?;
        let old = self.try_state()?;
        let state = match &old {
            Some(old) => self.to_repair(old, options)?,
            None => new_state(options),
        };
        // Before anything is made: whatever happens from here on, `down` knows what there may be.
        self.save(&state)?;
        if old.is_some() {
            say("what is left of the lab is taken away and made anew; its data stays");
        }
        let made = self.unmake().and_then(|()| self.make(&state, cancel, say));
        match made {
            Ok((ready, formed)) => Ok(UpReport {
                nodes: state.nodes.keys().copied().collect(),
                repaired: old.is_some(),
                ready_ms: millis(ready),
                formed_ms: formed.map(millis),
            }),
            Err(error) => {
                say("clearing up");
                let cleared = if old.is_some() { self.unmake() } else { self.remove_all() };
                Err(match cleared {
                    Ok(()) => error,
                    Err(second) => LabError {
                        message: format!("{}; and clearing up: {}", error.message, second.message),
                        hint: "try again to clear up: muster lab down".to_owned(),
                        ..error
                    },
                })
            }
        }
    }

    /// Everything, in the order of need.
    fn make(
        &self,
        state: &LabState,
        cancel: &Cancel,
        say: Say<'_>,
    ) -> Result<(Duration, Option<Duration>), LabError> {
        let started = Instant::now();
        say("switches: mgmt, cluster, migration, vm");
        self.make_world(state)?;
        self.start_san(state)?;
        for node in state.nodes.keys() {
            cancel.check()?;
            self.make_node(state, *node)?;
            self.start_daemon(state, *node)?;
            say(&format!("{node}: cabled and started"));
        }
        self.start_bmc(state)?;
        for node in state.nodes.keys() {
            self.wait_ready(*node, cancel)?;
        }
        let ready = started.elapsed();
        let formed = state.cluster.then(|| self.form(state, cancel, say)).transpose()?;
        let mut state = state.clone();
        state.phase = Phase::Up;
        self.save(&state)?;
        Ok((ready, formed))
    }

    /// The state to go on with, where there is one already.
    fn to_repair(&self, old: &LabState, options: &UpOptions) -> Result<LabState, LabError> {
        let dir = self.dir().display();
        if old.phase == Phase::Ending {
            return Err(LabError::conflict(
                format!("the lab in {dir} was being ended"),
                "finish that first: muster lab down",
            ));
        }
        if old.nodes.len() != usize::from(options.nodes) {
            return Err(LabError::conflict(
                format!("the lab in {dir} has {} nodes, not {}", old.nodes.len(), options.nodes),
                "end it first (muster lab down), or use another --dir",
            ));
        }
        let whole = old.phase == Phase::Up
            && self.holds(&self.world_net())
            && old.nodes.iter().filter(|(_, it)| it.on).all(|(node, _)| self.is_running(*node));
        if whole {
            return Err(LabError::conflict(
                format!("the lab in {dir} is up already"),
                "see it with 'muster lab status', end it with 'muster lab down', or use another \
                 --dir",
            ));
        }
        let mut state = old.clone();
        state.phase = Phase::Building;
        state.faults = Faults::default();
        state.exe.clone_from(&options.exe);
        for node in state.nodes.values_mut() {
            node.on = true;
        }
        Ok(state)
    }

    fn is_running(&self, node: NodeName) -> bool {
        self.node_group(node).is_ok_and(|group| group.child(DAEMON).populated())
    }

    /// A directory with something else in it is not ours to use.
    fn check_dir(&self) -> Result<(), LabError> {
        let dir = self.dir();
        let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
        let foreign = |entry: &fs::DirEntry| !crate::down::is_ours(&entry.file_name());
        let has_state = dir.join(crate::layout::STATE_FILE).exists();
        match entries.flatten().find(foreign) {
            Some(entry) if !has_state => Err(LabError::conflict(
                format!("{} is not empty: {}", dir.display(), entry.path().display()),
                "give the lab a directory of its own: muster lab --dir /var/tmp/lab up",
            )),
            _ => Ok(()),
        }
    }
}

fn new_state(options: &UpOptions) -> LabState {
    let net = options.net.unwrap_or_default();
    LabState {
        host_link: options.host_link,
        fake: options.fake,
        cluster: options.cluster,
        san: (!options.san.is_empty()).then(|| SanPlan { sizes: options.san.clone() }),
        config: options.config.clone(),
        ..LabState::new(options.exe.clone(), net, options.nodes)
    }
}

/// Most LUNs of a lab: each is a loop device of every node.
const LUNS_MAX: usize = 8;

/// XFS wants 300 MiB; a file of 64 TiB is the most that file systems of labs take.
fn check_san(sizes: &[u64]) -> Result<(), LabError> {
    const SIZES: std::ops::RangeInclusive<u64> = 320 << 20..=64 << 40;
    if let Some(size) = sizes.iter().find(|size| !SIZES.contains(size)) {
        return Err(LabError::usage(
            format!("a LUN cannot have {size} bytes"),
            "give 320M to 64T: --san 8G",
        ));
    }
    if sizes.len() > LUNS_MAX {
        return Err(LabError::usage(
            format!("a lab cannot have {} LUNs", sizes.len()),
            format!("give --san at most {LUNS_MAX} times"),
        ));
    }
    Ok(())
}

/// Nodes have a `/run` of their own.
fn check_path(exe: &Path) -> Result<(), LabError> {
    let text = exe.display().to_string();
    if exe.starts_with("/run") || text.contains('\'') || !exe.exists() {
        return Err(LabError::usage(
            format!("nodes could not start {text}"),
            "install muster in a place that every node sees, such as /usr/bin, and start it there",
        ));
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
