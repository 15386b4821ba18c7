//! One virtual machine of a host.

use api::ApiError;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::model::Power;
use api::model::VmChange;
use api::types::DiskAddBody;
use api::types::Heartbeat;
use api::types::NicAddBody;
use api::types::OpView;
use api::types::Phase;
use api::types::RunView;
use api::types::ShutdownBody;
use api::types::VmCreateBody;
use api::types::VmDeleteQuery;
use api::types::VmView;

use crate::BOOT;
use crate::GUEST;
use crate::Host;
use crate::OWN;
use crate::Serial;
use crate::eventually;

/// A machine with a thin copy of the tiny guest, 128 MiB, one processor, one adapter.
///
/// # Panics
/// If the name cannot be one.
pub fn tiny(name: &str) -> VmCreateBody {
    let disk = DiskAddBody { image: Some("tiny".to_owned()), ..DiskAddBody::default() };
    VmCreateBody {
        memory: Some(Bytes::mib(128)),
        disks: vec![disk],
        nics: vec![NicAddBody::default()],
        ..blank(name)
    }
}

fn blank(name: &str) -> VmCreateBody {
    VmCreateBody {
        name: name.parse().expect("a name"),
        cpus: None,
        cpus_max: None,
        cpu_compat: Default::default(),
        memory: None,
        memory_max: None,
        firmware: Default::default(),
        profile: Default::default(),
        disks: Vec::new(),
        nics: Vec::new(),
        services: Default::default(),
        cloud_init: None,
        on_crash: Default::default(),
        description: String::new(),
        tags: Vec::new(),
        keys: Default::default(),
        volume: None,
        ha: Default::default(),
    }
}

/// A machine, by name.
#[derive(Clone)]
pub struct Vm<'a> {
    host: &'a Host,
    name: String,
}

impl<'a> Vm<'a> {
    pub(crate) fn new(host: &'a Host, name: &str) -> Self {
        Self { host, name: name.to_owned() }
    }

    /// Everything that is known of it.
    ///
    /// # Panics
    /// If it is not there.
    pub async fn show(&self) -> VmView {
        let view = self.host.client().get::<ep::VmShow>(&[&self.name]).await;
        view.unwrap_or_else(|error| panic!("{}: {error:?}", self.name))
    }

    /// Its present run.
    ///
    /// # Panics
    /// If it has none.
    pub async fn run(&self) -> RunView {
        let view = self.show().await;
        view.run.unwrap_or_else(|| panic!("{} is {:?}, {:?}", self.name, view.phase, view.note))
    }

    /// Begins a verb that takes nothing and waits for its end.
    ///
    /// # Errors
    /// The daemon does not take it.
    pub async fn try_verb<E>(&self) -> Result<OpView, ApiError>
    where
        E: Endpoint<Reply = OpView, Body = Nothing>,
    {
        self.host.try_op::<E>(&[&self.name], &Nothing {}).await
    }

    /// Does a verb that takes nothing.
    ///
    /// # Panics
    /// If it is not done.
    pub async fn verb<E>(&self)
    where
        E: Endpoint<Reply = OpView, Body = Nothing>,
    {
        self.host.op::<E>(&[&self.name], &Nothing {}).await;
    }

    /// Starts it.
    pub async fn start(&self) {
        self.verb::<ep::VmStart>().await;
    }

    /// Turns it off.
    pub async fn off(&self) {
        self.verb::<ep::VmOff>().await;
        assert_eq!(self.show().await.power, Power::Off);
    }

    /// Shuts the guest down, within a minute and without force.
    pub async fn shutdown(&self) {
        let body = ShutdownBody { patience_s: 60, then_off: false };
        self.host.op::<ep::VmShutdown>(&[&self.name], &body).await;
        assert_eq!(self.show().await.power, Power::Off);
    }

    /// Changes its configuration.
    pub async fn set(&self, change: VmChange) {
        self.host.op::<ep::VmSet>(&[&self.name], &change).await;
    }

    /// Deletes it for good.
    ///
    /// # Panics
    /// If that fails.
    pub async fn purge(&self) {
        let id = self.show().await.id.to_string();
        for purge in [false, true] {
            let query = VmDeleteQuery { purge };
            let op = self.host.client().call::<ep::VmDelete>(&[&id], &query, &Nothing {}).await;
            self.host.ended(&op.expect("it can be deleted")).await;
        }
    }

    /// Waits until its guest answers.
    ///
    /// # Panics
    /// If it does not.
    pub async fn wait_heartbeat(&self) {
        eventually(&format!("the guest of {} answers", self.name), BOOT, async || {
            (self.show().await.guest.heartbeat == Heartbeat::Ok).then_some(())
        })
        .await;
    }

    /// Waits until it is seen in a phase.
    ///
    /// # Panics
    /// If that does not happen.
    pub async fn wait_phase(&self, phase: Phase) -> VmView {
        self.wait(&format!("{} is {phase:?}", self.name), |view| view.phase == phase).await
    }

    /// Waits until what is known of it fits.
    ///
    /// # Panics
    /// If that does not happen.
    pub async fn wait(&self, what: &str, fits: impl Fn(&VmView) -> bool) -> VmView {
        eventually(what, GUEST, async || Some(self.show().await).filter(|view| fits(view))).await
    }

    /// The IPv4 address of its first adapter.
    ///
    /// # Panics
    /// If none is seen.
    pub async fn address(&self) -> String {
        eventually(&format!("{} has an address", self.name), GUEST, async || {
            let view = self.show().await;
            view.nics.first()?.addresses.iter().find(|it| it.contains('.')).cloned()
        })
        .await
    }

    /// Opens its serial console.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn serial(&self) -> Serial {
        let socket = eventually("the console opens", OWN, async || {
            self.host.client().socket::<ep::VmSerial>(&[&self.name]).await.ok()
        })
        .await;
        Serial::new(socket, self.host.serial_log(&self.name))
    }

    /// Opens its serial console and waits for the guest's shell.
    ///
    /// # Panics
    /// If that does not come.
    pub async fn shell(&self) -> Serial {
        let mut serial = self.serial().await;
        serial.expect("MUSTER-GUEST-READY", BOOT).await;
        // What is typed before the shell has its terminal may be thrown away.
        serial.expect("# ", BOOT).await;
        serial
    }

    /// The host it is on.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
