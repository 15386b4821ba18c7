//! The fence devices: one for all hosts, with a plug for each.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use cluster::fence::Action;
use cluster::fence::Called;
use cluster::fence::Instead;
use cluster::fence::Outcome;
use model::FenceDevice;

use crate::ground::Ground;
use crate::ground::lock;
use crate::plant::Plant;

/// What a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Works,
    Fails,
    Hangs,
    /// Says off and does nothing. A device may do so while its node is heard: then it is not
    /// believed.
    Lies,
}

/// The plugs.
pub(crate) struct Plugs {
    pub(crate) mood: Mood,
    pub(crate) on: Vec<bool>,
    /// Hosts that shall lose their power.
    pub(crate) wishes: Vec<usize>,
}

/// The devices as the daemons call them.
pub(crate) struct Devices {
    pub(crate) ground: Arc<Ground>,
    pub(crate) plugs: Arc<Mutex<Plugs>>,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Devices")
    }
}

#[async_trait]
impl Instead for Devices {
    async fn call(&self, _device: &FenceDevice, plug: Option<&str>, action: Action) -> Called {
        let took = Duration::from_millis(self.ground.between(10, 400));
        tokio::time::sleep(took).await;
        let called = |outcome| Called { outcome, output: "simulated".to_owned(), took };
        let Some(plug) = plug.and_then(|plug| plug.parse::<usize>().ok()) else {
            return called(Outcome::Failed);
        };
        let mood = if self.ground.has(Plant::LyingDevice) { Mood::Lies } else { self.mood() };
        self.ground.trace("-", &format!("device {} n{} {mood:?}", action.as_str(), plug + 1));
        match (mood, action) {
            (Mood::Fails, _) => called(Outcome::Failed),
            (Mood::Hangs, _) => std::future::pending().await,
            (Mood::Lies, Action::Status) => called(Outcome::IsOff),
            (Mood::Works, Action::Off) => {
                lock(&self.plugs).wishes.push(plug);
                while lock(&self.plugs).on[plug] {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                called(Outcome::Done)
            }
            (Mood::Works, Action::Status) if !lock(&self.plugs).on[plug] => called(Outcome::IsOff),
            _ => called(Outcome::Done),
        }
    }
}

impl Devices {
    fn mood(&self) -> Mood {
        lock(&self.plugs).mood
    }
}
