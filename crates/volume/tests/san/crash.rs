//! Crash replay: all that is written to the LUN is recorded, with its flushes. Then each state in which
//! the power could have left it is made, mounted and looked at.
//!
//! A crash leaves all that was flushed, and any part of what was written after. Between two marks one
//! or two operations were at work, so each block of each file must be as before them, as in between or
//! as after them (or zero, where space was new); at a mark nothing else is allowed. So no flushed write
//! is lost, and no byte of another file or of the LUN's past is ever shown. The file system check must
//! find nothing.
//!
//! ```text
//! MUSTER_CRASHES=2000 cargo nextest run --workspace -E 'package(volume) and test(crash)'         # so many
//! MUSTER_CRASH_ALL=1 cargo nextest run --workspace -E 'package(volume) and test(crash)'   # all pairs, all flushes
//! ```

use std::collections::BTreeSet;

use volume::san::Entry;
use volume::san::Store;

use crate::rig::Rig;
use crate::rig::run;
use crate::work::Op;
use crate::work::SECRET;
use crate::work::State;
use crate::work::Work;
use crate::work::direct;
use crate::work::read_all;

const SIZE: u64 = 320 << 20;

/// Crashes that are tried for a file system in each run of the tests.
const CRASHES: usize = 36;

/// Of the writes after the last flush, subsets for each flush when all is tried.
const SUBSETS: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext4,
    Xfs,
}

/// One recorded run.
struct Recorded {
    base: Store,
    log: Vec<Entry>,
    /// For each mark the states since the one before, the last of which is settled.
    windows: Vec<Vec<State>>,
}

struct Lot(u64);

impl Lot {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        usize::try_from(self.0 >> 33).unwrap_or(0) % n.max(1)
    }
}

fn mount(rig: &Rig, device: &str) {
    let root = rig.root().to_string_lossy().into_owned();
    run("mount", &[device, &root]);
}

fn unmount(rig: &Rig) {
    run("umount", &[&rig.root().to_string_lossy()]);
}

fn groups(all: bool) -> Vec<Vec<Op>> {
    let mut groups: Vec<Vec<Op>> = Op::ALL.iter().map(|op| vec![*op]).collect();
    for (at, one) in Op::ALL.iter().enumerate() {
        for (other, two) in Op::ALL.iter().enumerate() {
            if all || other == (at + 3) % Op::ALL.len() {
                groups.push(vec![*one, *two]);
            }
        }
    }
    groups
}

fn record(rig: &Rig, kind: Kind, all: bool) -> Recorded {
    let device = rig.device(0).to_string_lossy().into_owned();
    match kind {
        Kind::Ext4 => run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", "nodiscard", &device]),
        Kind::Xfs => run("mkfs.xfs", &["-q", "-f", "-K", "-m", "reflink=1", &device]),
    };
    mount(rig, &device);
    let mut work = Work::new(rig.root(), direct(rig.device(1)), kind == Kind::Xfs);
    work.perform(Op::Write);
    work.settle();
    let mut windows = vec![vec![work.state()]];
    let base = rig.server().lun().record();
    rig.server().lun().mark(0);
    for group in groups(all) {
        let mut states = Vec::new();
        for op in group {
            work.perform(op);
            // What the page cache has is the state, too; the crash may show any part of it.
            states.push(work.state());
        }
        work.settle();
        states.push(work.state());
        rig.server().lun().mark(windows.len() as u64);
        windows.push(states);
    }
    let log = rig.server().lun().recorded();
    drop(work);
    unmount(rig);
    Recorded { base, log, windows }
}

/// The blocks that a file may have there.
fn allowed<'a>(states: &'a [&'a State], name: &str, at: usize) -> BTreeSet<&'a [u8]> {
    let files = states.iter().filter_map(|state| state.get(name));
    files.filter_map(|file| file.get(at..).map(|rest| &rest[..rest.len().min(4096)])).collect()
}

fn check(found: &State, states: &[&State], at_mark: bool, words: &str) {
    if at_mark {
        let last = states.last().expect("a mark has a state");
        let same = found.keys().eq(last.keys());
        assert!(same, "{words}: files {:?}, not {:?}", found.keys(), last.keys());
        for (name, file) in found {
            assert!(file == &last[name], "{words}: {name} is not what was flushed");
        }
        return;
    }
    for name in states[0].keys() {
        let everywhere = states.iter().all(|state| state.contains_key(name));
        assert!(!everywhere || found.contains_key(name), "{words}: {name} is lost");
    }
    for (name, file) in found {
        let known = states.iter().any(|state| state.contains_key(name));
        assert!(known, "{words}: {name} has come from nowhere");
        for (number, block) in file.chunks(4096).enumerate() {
            assert!(!block.contains(&SECRET), "{words}: {name} shows another tenant's bytes");
            let may = allowed(states, name, number * 4096);
            let settled = may.len() == 1
                && states
                    .iter()
                    .all(|state| state.get(name).is_some_and(|file| file.len() > number * 4096));
            let zero = !settled && block.iter().all(|byte| *byte == 0);
            let good = zero || may.iter().any(|it| *it == block || it.starts_with(block));
            let starts: Vec<_> = may.iter().map(|it| &it[..it.len().min(4)]).collect();
            assert!(
                good,
                "{words}: block {number} of {name} begins with {:x?} and ends with {:x?}, which it \
                 never was: {starts:x?}",
                &block[..block.len().min(4)],
                &block[block.len() - 1..],
            );
        }
    }
}

/// One crash: all of the log's first part, and some writes of what comes after it.
fn crash(rig: &Rig, kind: Kind, recorded: &Recorded, flushed: usize, some: &[usize]) {
    let device = rig.device(0).to_string_lossy().into_owned();
    let log = &recorded.log;
    let picked = log[..flushed].iter().chain(some.iter().map(|at| &log[*at]));
    rig.server().lun().image(recorded.base.after(picked));
    let mark_before = |end: usize| {
        let mut before = log[..end].iter().rev();
        let mark = before.find_map(|entry| match entry {
            Entry::Mark(mark) => usize::try_from(*mark).ok(),
            _ => None,
        });
        mark.unwrap_or(0)
    };
    // What came after the last mark may be of the operations behind the next one already.
    let reached = mark_before(flushed);
    let begun = mark_before(some.last().map_or(flushed, |last| *last));
    let after_mark = matches!(log[..flushed].last(), Some(Entry::Mark(_))) && some.is_empty();
    let doing = &groups(std::env::var_os("MUSTER_CRASH_ALL").is_some());
    let doing = doing.get(reached);
    let words = format!("{kind:?}, {flushed} of {} entries and {some:?}, {doing:?}", log.len());
    let mut states: Vec<&State> = recorded.windows[reached].last().into_iter().collect();
    if !after_mark {
        let last = (begun + 2).min(recorded.windows.len());
        states.extend(recorded.windows[reached + 1..last].iter().flatten());
    }
    mount(rig, &device);
    let found = read_all(&rig.root());
    unmount(rig);
    match kind {
        Kind::Ext4 => run("e2fsck", &["-f", "-n", &device]),
        Kind::Xfs => run("xfs_repair", &["-n", &device]),
    };
    check(&found, &states, after_mark, &words);
}

/// Where the log may be cut: behind each flush, and behind each mark.
fn cuts(log: &[Entry]) -> Vec<usize> {
    let ends = log.iter().enumerate();
    ends.filter(|(_, it)| !matches!(it, Entry::Write { .. })).map(|(at, _)| at + 1).collect()
}

fn some_of(log: &[Entry], flushed: usize, lot: &mut Lot) -> Vec<usize> {
    let loose = log[flushed..].iter().take_while(|entry| !matches!(entry, Entry::Flush));
    let writes = loose.enumerate().filter(|(_, entry)| matches!(entry, Entry::Write { .. }));
    let mut some: Vec<usize> = writes.map(|(at, _)| flushed + at).collect();
    // The same block twice: a cache keeps the order for one block.
    some.retain(|_| lot.below(2) == 0);
    some
}

fn survives(kind: Kind) {
    let all = std::env::var_os("MUSTER_CRASH_ALL").is_some();
    let rig = Rig::new(SIZE, 2, SECRET);
    let recorded = record(&rig, kind, all);
    let cuts = cuts(&recorded.log);
    assert!(cuts.len() > 100, "too few flushes: {}", cuts.len());
    let wanted = std::env::var("MUSTER_CRASHES").ok().and_then(|text| text.parse().ok());
    let crashes = wanted.unwrap_or(CRASHES);
    let mut lot = Lot(1);
    let mut tried = 0;
    for at in 0..if all { cuts.len() } else { crashes } {
        let cut = if all { cuts[at] } else { cuts[at * cuts.len() / crashes] };
        // By turns behind the flush itself, and with some of what comes after it.
        if all || at % 2 == 0 {
            crash(&rig, kind, &recorded, cut, &[]);
            tried += 1;
        }
        for _ in 0..if all { SUBSETS } else { at % 2 } {
            let some = some_of(&recorded.log, cut, &mut lot);
            crash(&rig, kind, &recorded, cut, &some);
            tried += 1;
        }
    }
    println!(
        "{kind:?}: {} entries, {} flushes and marks, {tried} crashes",
        recorded.log.len(),
        cuts.len()
    );
}

#[test]
fn ext4_survives_every_crash() {
    survives(Kind::Ext4);
}

#[test]
fn xfs_survives_every_crash() {
    survives(Kind::Xfs);
}
