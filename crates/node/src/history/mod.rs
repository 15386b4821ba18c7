//! What machines and this node used, for a year: measured every second, kept at falling resolution.
//!
//! ```text
//!   /proc, cgroups, balloon --probe--> one point a second --pending--> ring (a file for each object)
//!                                                                       1 s    for 10 minutes
//!                                                                       10 s   for 2 hours
//!                                                                       1 min  for 2 days
//!                                                                       10 min for 30 days
//!                                                                       1 h    for 1 year
//! ```
//!
//! Decision 0030. `probe` measures, `ring` keeps, `follow` is the task between them, [`History`] is what
//! the API reads. Nothing here is part of the cluster's state: each node keeps what it saw itself, of a
//! machine that moved each node has a part, and who asks for it is given all parts (`http::metrics`).
//!
//! How it fails: a file that is damaged is thrown away and begun anew, a torn point is a gap; a disk that
//! hangs holds up the writer and nobody else, and points are lost meanwhile. No machine depends on it.

mod follow;
mod probe;
mod ring;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use api::history::Figure;
use model::VmId;

pub(crate) use follow::follow;
pub(crate) use ring::LEVELS;
pub(crate) use ring::Level;
use ring::Ring;
pub(crate) use ring::Slot;

/// How many figures a point has.
pub(crate) const FIGURES: usize = Figure::ALL.len();

/// Values of one moment in the order of [`Figure::ALL`]; what was not measured is not a number.
pub(crate) type Values = [f32; FIGURES];

/// Points that wait for the disk: three flushes. Older ones are dropped.
const PENDING_MAX: usize = 30;

/// Of what a history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// This node.
    Node,
    /// A machine.
    Vm(VmId),
}

impl Object {
    fn file_name(self) -> String {
        match self {
            Self::Node => "node.ring".to_owned(),
            Self::Vm(vm) => format!("vm-{vm}.ring"),
        }
    }

    /// The object of a file; none for what is not ours.
    fn of_file(name: &str) -> Option<Self> {
        match name.strip_suffix(".ring")? {
            "node" => Some(Self::Node),
            other => other.strip_prefix("vm-")?.parse().ok().map(Self::Vm),
        }
    }

    fn id(self) -> u128 {
        match self {
            Self::Node => 0,
            Self::Vm(vm) => vm.uuid().as_u128(),
        }
    }
}

/// Seconds that what was used "lately" is the mean of: one second alone jumps.
const RECENT: usize = 10;

/// What is not yet on disk, and where the ring of an object stands.
#[derive(Default)]
struct Kept {
    /// Second of the newest point that is in the file; none before it was looked at.
    last: Option<u64>,
    /// Newest last.
    pending: Vec<(u64, Values)>,
    /// The newest points, the newest last.
    recent: VecDeque<Values>,
}

/// All histories of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct History {
    dir: PathBuf,
    kept: Arc<Mutex<HashMap<Object, Kept>>>,
}

impl History {
    /// Makes the folder for them below the daemon's data.
    pub(crate) fn new(data_dir: &std::path::Path) -> Self {
        let dir = data_dir.join("history");
        if let Err(error) = std::fs::create_dir_all(&dir) {
            tracing::warn!(%error, "no history of figures is kept");
        }
        Self { dir, kept: Arc::default() }
    }

    /// Notes the values of a second.
    pub(crate) fn note(&self, object: Object, second: u64, values: Values) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { pending, recent, .. } = kept.entry(object).or_default();
        if pending.len() >= PENDING_MAX {
            pending.remove(0);
        }
        pending.push((second, values));
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back(values);
    }

    /// What it used lately: the mean of the newest points, not a number where nothing was measured. None
    /// before the first point.
    pub(crate) fn recent(&self, object: Object) -> Option<Values> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = &kept.get(&object)?.recent;
        let slots: Vec<Slot> = recent.iter().map(|it| Slot { mean: *it, peak: *it }).collect();
        (!slots.is_empty()).then(|| Slot::together(&slots).mean)
    }

    /// Brings everything that waits to disk. Blocks.
    fn flush(&self) {
        let objects: Vec<Object> = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().filter(|(_, it)| !it.pending.is_empty()).map(|(it, _)| *it).collect()
        };
        for object in objects {
            if let Err(error) = self.flush_one(object) {
                tracing::warn!(?object, %error, "figures were not kept");
            }
        }
    }

    fn flush_one(&self, object: Object) -> io::Result<()> {
        let (last, points) = self.snapshot(object);
        let Some(&(newest, _)) = points.last() else { return Ok(()) };
        let mut ring = Ring::open(&self.dir.join(object.file_name()), object.id(), last)?;
        let kept = points.iter().try_for_each(|(second, values)| ring.append(*second, values));
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = all.get_mut(&object) {
            entry.last = ring.last();
            // Those that came meanwhile wait for the next time; a disk that is full loses these.
            entry.pending.retain(|(second, _)| *second > newest);
        }
        kept
    }

    fn snapshot(&self, object: Object) -> (Option<u64>, Vec<(u64, Values)>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&object).map_or((None, Vec::new()), |it| (it.last, it.pending.clone()))
    }

    /// The windows `from..to` of a level, each with its mean and peak where there is one. Blocks.
    ///
    /// # Errors
    /// The file cannot be read. One that is damaged is not an error: it is empty.
    pub(crate) fn read(
        &self,
        object: Object,
        level: usize,
        windows: std::ops::Range<u64>,
    ) -> io::Result<Vec<Option<Slot>>> {
        let (last, pending) = self.snapshot(object);
        let path = self.dir.join(object.file_name());
        let empty = || windows.clone().map(|_| None).collect();
        let mut slots: Vec<Option<Slot>> = match Ring::look(&path, object.id(), last)? {
            Some(ring) => ring.read(level, windows.clone())?,
            None => empty(),
        };
        if level == 0 {
            for (second, values) in pending {
                if windows.contains(&second)
                    && let Ok(place) = usize::try_from(second - windows.start)
                {
                    slots[place] = Some(Slot { mean: values, peak: values });
                }
            }
        }
        Ok(slots)
    }

    /// Removes what belongs to machines that are no more. Blocks.
    fn tidy(&self, lives: impl Fn(VmId) -> bool) {
        let gone = |object: &Object| matches!(object, Object::Vm(vm) if !lives(*vm));
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).retain(|it, _| !gone(it));
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let object = entry.file_name().to_str().and_then(Object::of_file);
            if object.as_ref().is_some_and(gone)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "a history is left");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(value: f32) -> Values {
        [value; FIGURES]
    }

    #[test]
    fn what_waits_for_the_disk_is_read_and_what_is_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let (one, other) =
            (VmId::new(uuid::Uuid::from_u128(1)), VmId::new(uuid::Uuid::from_u128(2)));
        for second in 1_000..1_005 {
            history.note(Object::Vm(one), second, values(second as f32));
            history.note(Object::Vm(other), second, values(1.0));
        }
        let mean = |slots: &[Option<Slot>]| -> Vec<f32> {
            slots.iter().map(|slot| slot.map_or(-1.0, |it| it.mean[0])).collect()
        };
        let expected = [-1.0, 1_000.0, 1_001.0, 1_002.0, 1_003.0, 1_004.0, -1.0];
        let read = |history: &History| history.read(Object::Vm(one), 0, 999..1_006).unwrap();
        assert_eq!(mean(&read(&history)), expected);
        let recent = || history.recent(Object::Vm(one)).map(|it| it[0]);
        assert_eq!(recent(), Some(1_002.0), "the mean of five");
        assert_eq!(history.recent(Object::Node), None);
        history.flush();
        assert_eq!(recent(), Some(1_002.0), "also when nothing waits");
        assert_eq!(mean(&read(&history)), expected);
        // Another daemon finds it.
        let again = History::new(dir.path());
        assert_eq!(mean(&read(&again)), expected);
        again.tidy(|vm| vm == other);
        assert_eq!(mean(&read(&again)), [-1.0; 7]);
        let left = again.read(Object::Vm(other), 0, 1_000..1_001).unwrap();
        assert_eq!(mean(&left), [1.0]);
    }

    #[test]
    fn a_disk_that_takes_nothing_costs_points_and_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        std::fs::remove_dir(dir.path().join("history")).unwrap();
        for second in 0..100 {
            history.note(Object::Node, 1_000 + second, values(1.0));
            if second % 10 == 0 {
                history.flush();
            }
        }
        assert_eq!(history.snapshot(Object::Node).1.len(), PENDING_MAX);
    }
}
