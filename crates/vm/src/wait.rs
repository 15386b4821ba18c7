//! Waiting for a disk without holding up anybody else.

use tokio::runtime::Handle;
use tokio::runtime::RuntimeFlavor;

/// Does something that may wait for a disk, from an async function too short to be worth a task.
///
/// A file on a shared volume answers when the volume has a coordinator, and it may be this very daemon
/// that has to name one: the thread's other tasks go on elsewhere meanwhile.
pub fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // A runtime of one thread, of a test, or none.
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn one_that_waits_holds_up_no_other_task() {
        let (sender, receiver) = sync_channel(1);
        let waiting = tokio::spawn(async move {
            // In the slot of the thread that waits, from which nobody takes it.
            tokio::spawn(async move { sender.send(()).unwrap() });
            on_disk(|| receiver.recv().unwrap());
        });
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_it_itself() {
        assert_eq!(on_disk(|| 7), 7);
        assert_eq!(std::thread::spawn(|| on_disk(|| 8)).join().unwrap(), 8);
    }
}
