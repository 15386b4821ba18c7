//! Guests that hang are started again, where their record asks for it.
//!
//! Two witnesses decide: the guest's heartbeat was there and is silent for `hung_after`, and its
//! disks had no request meanwhile. An agent that was stopped by hand in a guest that works is no
//! hang; neither is a guest that boots, since it reads. What is on its screen is kept before it is
//! ended. How often this may happen is the state's to say (`VmRecord::may_restart_hung`).
//!
//! A daemon that begins while a guest hangs has never heard it, and leaves it alone.

use std::time::Duration;

use model::ExitKind;
use model::Severity;
use model::VmRecord;
use tokio::time::Instant;

use crate::guest::GuestConfig;
use crate::guest::Heartbeat;
use crate::lifecycle::Phase;
use crate::lifecycle::driver::Driver;
use crate::wait::on_disk;

/// How often a guest is looked at that is to be started again when it hangs.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long the engine may take for the picture of the screen.
const PICTURE_LIMIT: Duration = Duration::from_secs(5);

/// A guest that is silent.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// When it is looked at next.
    pub(crate) look_at: Option<Instant>,
    silence: Option<Silence>,
}

#[derive(Debug)]
struct Silence {
    /// When it counts as hung if nothing is heard until then.
    due: Instant,
    /// How many requests its disks had when the clock was set.
    requests: u64,
    /// It was said already that it is left alone.
    told: bool,
}

impl Driver {
    /// Sets or stops the clock, as the record has it now.
    pub(crate) fn watch_for_hangs(&mut self, record: &VmRecord) {
        if record.spec.ha.restart_hung && self.run.is_some() {
            self.hung.look_at.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
        } else {
            self.hung = Watch::default();
        }
    }

    /// Looks at the guest. True if it was ended.
    pub(crate) async fn look_for_hang(&mut self) -> bool {
        self.hung.look_at = Some(Instant::now() + LOOK_EVERY);
        let (Some(record), Some(run)) = (self.record(), &self.run) else { return false };
        let heartbeat = self.guest().map(|services| services.status().borrow().heartbeat);
        let silent = matches!(heartbeat, Some(Heartbeat::NoContact | Heartbeat::Lost));
        if !silent || self.publisher.now() != Phase::Running {
            self.hung.silence = None;
            return false;
        }
        // Its process does not answer: that is another trouble, and shown as one.
        let Ok(requests) = run.machine.disk_requests().await else { return false };
        let after = Duration::from_millis(record.spec.ha.hung_after.get());
        let now = Instant::now();
        let Some(silence) = &mut self.hung.silence else {
            // What is shown as silent has been silent for so long already.
            let due = now + after.saturating_sub(GuestConfig::default().no_contact_after);
            self.hung.silence = Some(Silence { due, requests, told: false });
            return false;
        };
        if silence.requests != requests {
            *silence = Silence { due: now + after, requests, told: silence.told };
        }
        if now < silence.due {
            return false;
        }
        if !record.may_restart_hung(self.host.ledger.now()) {
            if !std::mem::replace(&mut silence.told, true) {
                let text = "its guest hangs again and is left alone now: muster vm screenshot, \
                            muster vm reset";
                self.note(Severity::Error, text.to_owned());
            }
            return false;
        }
        self.restart_hung(&record, after).await;
        true
    }

    async fn restart_hung(&mut self, record: &VmRecord, after: Duration) {
        let seconds = after.as_secs();
        let picture = match self.keep_picture().await {
            Ok(()) => "its screen is kept in its directory as hung.png".to_owned(),
            Err(why) => format!("no picture of its screen: {why}"),
        };
        let detail = format!("its guest was silent and idle for {seconds} s; {picture}");
        tracing::warn!(vm = %record.name, detail, "a guest that hangs is started again");
        // First the state: it starts the VM again also if this daemon dies in between.
        self.report_exit(record.generation, ExitKind::Hung, detail).await;
        let _ = self.end_machine().await;
    }

    async fn keep_picture(&self) -> Result<(), String> {
        let Some(run) = &self.run else { return Err("it is gone".to_owned()) };
        let taken = tokio::time::timeout(PICTURE_LIMIT, run.machine.screenshot()).await;
        let png = taken.map_err(|_| "it took too long")?.map_err(|error| error.to_string())?;
        on_disk(|| std::fs::write(self.files.hung_picture(), png))
            .map_err(|error| error.to_string())
    }
}
