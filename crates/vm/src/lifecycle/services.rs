//! The guest's integration services as the lifecycle uses them.

use std::path::PathBuf;

use model::VmRecord;

use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;

/// The services of a running guest.
#[derive(Debug, Clone)]
pub struct GuestHandle {}

impl Driver {
    /// Makes the cloud-init disc, if the VM has one.
    pub(crate) fn make_seed(&self, _record: &VmRecord) -> Step<Option<PathBuf>> {
        Ok(None)
    }

    pub(crate) async fn start_services(&mut self) {}

    /// Asks the agent to shut the guest down. False where there is none that answers.
    pub(crate) async fn agent_shutdown(&mut self) -> bool {
        false
    }
}
