//! Hardware that was plugged is put to use in the guest, where it does not do that by itself.
//!
//! All of it is help: a guest without an agent, or one whose agent refuses, has its hardware all
//! the same, and its administrator can bring it online.

use std::time::Duration;

use tokio::time::Instant;

use crate::guest::GuestServices;
use crate::guest::PartKind;
use crate::guest::Parts;
use crate::guest::ServiceError;
use crate::lifecycle::devices::LOOK_EVERY;
use crate::lifecycle::devices::SPARE;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::Task;
use crate::lifecycle::ops::race;

/// How long the guest's kernel may take to see what was plugged and to bring it online. It is
/// interrupted at once; under emulation on a busy host it needs seconds.
const ONLINE_LIMIT: Duration = Duration::from_secs(15);

impl Driver {
    /// Waits, for a while, until the guest uses all it has: at least `wanted` processors or bytes.
    pub(crate) async fn await_online(
        &mut self,
        task: &Task<'_>,
        kind: PartKind,
        wanted: u64,
    ) -> Step<()> {
        let until = self.help_until(task);
        let mut before = None;
        loop {
            let Some(parts) = self.bring_online(task, kind).await? else { return Ok(()) };
            // Seen twice: the last block of memory may not be there yet, and the ones before it
            // hide that, since memory is counted in whole blocks.
            let settled = before == Some(parts) || kind == PartKind::Processors;
            if parts.offline == 0 && parts.in_use() >= wanted && settled {
                return Ok(());
            }
            if Instant::now() >= until {
                self.note(model::Severity::Warning, not_online(kind, parts));
                return Ok(());
            }
            before = Some(parts);
            self.event(task, Instant::now() + LOOK_EVERY, |_| None::<()>).await?;
        }
    }

    /// Asks the guest to use all it has. Nothing where it cannot be asked.
    pub(crate) async fn bring_online(
        &mut self,
        task: &Task<'_>,
        kind: PartKind,
    ) -> Step<Option<Parts>> {
        self.ask_guest(task, async move |guest| guest.bring_online(kind).await).await
    }

    /// Asks the guest to let processors go that are about to be taken away: it does so with more
    /// patience than when they are pulled.
    pub(crate) async fn take_offline(&mut self, task: &Task<'_>, keep: u32) -> Step<()> {
        self.ask_guest(task, async move |guest| guest.take_offline(keep).await).await.map(drop)
    }

    async fn ask_guest(
        &mut self,
        task: &Task<'_>,
        ask: impl AsyncFnOnce(GuestServices) -> Result<Parts, ServiceError>,
    ) -> Step<Option<Parts>> {
        let Some(guest) = self.guest() else { return Ok(None) };
        let asked = tokio::time::timeout_at(self.help_until(task), ask(guest));
        match race(&mut self.wanted, task, asked).await? {
            Ok(Ok(parts)) => Ok(Some(parts)),
            Ok(Err(error)) => {
                tracing::info!(vm = %self.vm, %error, "the guest brings its hardware online alone");
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    /// After a change that stopped: what was taken out of use and is still there is put back.
    pub(crate) async fn bring_back_online(&self, kind: PartKind) {
        let Some(guest) = self.guest() else { return };
        if let Ok(Err(error)) = tokio::time::timeout(SPARE, guest.bring_online(kind)).await {
            tracing::info!(vm = %self.vm, %error, "the guest was not asked to use what it has");
        }
    }

    fn help_until(&self, task: &Task<'_>) -> Instant {
        let last = task.deadline.checked_sub(SPARE).unwrap_or(task.deadline);
        last.min(Instant::now() + ONLINE_LIMIT)
    }
}

fn not_online(kind: PartKind, parts: Parts) -> String {
    let (used, idle) = (parts.in_use(), parts.idle());
    match kind {
        PartKind::Processors => format!(
            "the guest uses {used} processors and {idle} stand idle; bring them online in the \
             guest: echo 1 > /sys/devices/system/cpu/cpuN/online"
        ),
        PartKind::Memory => format!(
            "the guest uses {} of memory and {} stand idle, in whole blocks; bring it online in \
             the guest: echo online > /sys/devices/system/memory/memoryN/state",
            model::Bytes::new(used),
            model::Bytes::new(idle)
        ),
    }
}
