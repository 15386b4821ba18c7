//! The guest's integration services as the lifecycle uses them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::VmRecord;

use crate::cloudinit::Seed;
use crate::cloudinit::SeedInput;
use crate::engine::Machine;
use crate::guest::AgentStream;
use crate::guest::Connect;
use crate::guest::GuestConfig;
use crate::guest::GuestServices;
use crate::guest::Heartbeat;
use crate::guest::HostClock;
use crate::guest::HostFacts;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::ops::Step;
use crate::lifecycle::ops::failed;
use crate::lifecycle::ops::file;

/// How long an agent may take until it answers after a resume or restore.
const AGENT_BACK_LIMIT: Duration = Duration::from_secs(60);

/// How long until a guest's clock is set again that could not be set.
const CLOCK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The way to the agent of one machine.
struct AgentPort(Arc<dyn Machine>);

#[async_trait]
impl Connect for AgentPort {
    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        match self.0.agent().await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(io::Error::other(error)),
        }
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

    /// Starts the services of a machine that was launched or adopted.
    pub(crate) fn start_services(&self, machine: Arc<dyn Machine>) {
        let Some(record) = self.record() else { return };
        let services = GuestServices::start(
            Arc::new(AgentPort(machine)),
            Arc::new(HostClock),
            record.spec.services,
            GuestConfig::default(),
        );
        self.services.send_replace(Some(services));
        self.tell_guest(&record);
    }

    /// Switches and facts as the record has them now. Telling the same again costs nothing.
    pub(crate) fn tell_guest(&self, record: &VmRecord) {
        let Some(services) = self.guest() else { return };
        let facts = HostFacts {
            host: self.host.host_name.clone(),
            vm: record.id,
            name: record.name.clone(),
            platform_version: env!("CARGO_PKG_VERSION").to_owned(),
            keys: record.spec.keys.clone(),
        };
        let told = services
            .configure(record.spec.services)
            .and_then(|()| services.tell(record.spec.services.exchange.then_some(facts)));
        if let Err(error) = told {
            tracing::debug!(vm = %record.name, %error, "the guest's services were not told");
        }
    }

    /// The guest's processors stand, or go on.
    pub(crate) fn services_paused(&self, paused: bool) {
        if let Some(services) = self.guest()
            && let Err(error) = services.set_paused(paused)
        {
            tracing::debug!(vm = %self.vm, %error, "the guest's services were not told");
        }
    }

    /// Sets the guest's clock after it stood still, if that is switched on, as soon as its agent
    /// answers.
    pub(crate) fn sync_time_soon(&self, record: &VmRecord) {
        let Some(services) = self.guest() else { return };
        if !record.spec.services.time_sync {
            return;
        }
        let name = record.name.clone();
        // The agent needs a moment to be heard again after a restore; nobody has to wait for that.
        tokio::spawn(async move {
            let setting = async {
                let mut status = services.status();
                // One that has just answered may be lost again at once: it catches up, too.
                while status.wait_for(|seen| seen.heartbeat == Heartbeat::Ok).await.is_ok() {
                    match services.sync_time().await {
                        Ok(()) => return,
                        Err(error) => tracing::info!(vm = %name, %error, "clock not set yet"),
                    }
                    tokio::time::sleep(CLOCK_AGAIN_AFTER).await;
                }
            };
            if tokio::time::timeout(AGENT_BACK_LIMIT, setting).await.is_err() {
                tracing::info!(vm = %name, "the guest's clock was not set: no agent answers");
            }
        });
    }

    /// Asks the agent to shut the guest down. False where there is none that answers.
    pub(crate) async fn agent_shutdown(&self) -> bool {
        let Some(services) = self.guest() else { return false };
        match services.shut_down().await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(vm = %self.vm, %error, "the power button is pressed instead");
                false
            }
        }
    }

    pub(crate) fn guest(&self) -> Option<GuestServices> {
        self.services.borrow().clone()
    }

    pub(crate) fn record(&self) -> Option<Arc<VmRecord>> {
        self.wanted.borrow().as_ref().map(|wanted| wanted.record.clone())
    }
}
