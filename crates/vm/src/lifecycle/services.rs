//! The guest's integration services as the lifecycle uses them.

use std::path::PathBuf;

use model::VmRecord;

use crate::cloudinit::Seed;
use crate::cloudinit::SeedInput;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;

/// The services of a running guest.
#[derive(Debug, Clone)]
pub struct GuestHandle {}

impl GuestHandle {
    /// Freezes the guest's file systems for at most `limit`; gives how many.
    ///
    /// # Errors
    /// What the agent said.
    pub async fn freeze(&self, _limit: std::time::Duration) -> Result<u32, String> {
        Err("not yet".to_owned())
    }

    /// Thaws the guest's file systems; gives how many.
    ///
    /// # Errors
    /// What the agent said.
    pub async fn thaw(&self) -> Result<u32, String> {
        Err("not yet".to_owned())
    }
}

impl Driver {
    /// Makes the cloud-init disc, if the VM has one. A saved guest gets the disc it had: its
    /// devices must be what they were.
    pub(crate) fn make_seed(&self, record: &VmRecord, restored: bool) -> Step<Option<PathBuf>> {
        let Some(config) = &record.spec.cloud_init else { return Ok(None) };
        let path = self.files.seed();
        if restored && path.exists() {
            return Ok(Some(path));
        }
        let input =
            SeedInput { vm: record.id, name: &record.name, config, nics: &record.spec.nics };
        let seed = Seed::build(input).map_err(|error| {
            let hint = format!("change it: muster vm set {} --help", record.name);
            failed("cloud_init", error.to_string(), hint)
        })?;
        seed.write_iso(&path).map_err(file("the cloud-init disc cannot be written"))?;
        Ok(Some(path))
    }

    pub(crate) async fn start_services(&mut self) {}

    /// Asks the agent to shut the guest down. False where there is none that answers.
    pub(crate) async fn agent_shutdown(&mut self) -> bool {
        false
    }
}
