//! Network namespaces, entered by a thread that ends there: nothing has a name, so nothing is left
//! behind when a bench is killed.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sched::unshare;

/// A network namespace. It lasts as long as this and what was started inside.
#[derive(Debug)]
pub(crate) struct Space(File);

impl Space {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        })
    }

    /// The one that a file holds.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        File::open(path).map(Self).with_context(|| format!("cannot open {}", path.display()))
    }

    /// Does something inside: sockets that are made and programs that are started stay there.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            work()
        })
    }
}

/// A namespace is a thread's own; this one ends with the work.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().map_err(|_| anyhow!("a thread in a namespace failed"))?
    })
}
