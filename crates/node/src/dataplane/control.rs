//! The control socket: takes the daemon's orders and has them carried out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use model::VolumeId;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Mutex;
use tokio::sync::Notify;
use tokio::sync::Semaphore;

use super::Settings;
use super::hosted::Hosted;
use super::hosted::Process;
use super::kept::Kept;
use super::streams::Streams;
use super::words::Answer;
use super::words::Frame;
use super::words::Order;
use super::words::Told;
use super::words::VERSION;
use super::words::receive;
use super::words::send;

/// Connections at a time: a daemon has a few.
const CONNECTIONS_MAX: usize = 32;

/// How long an order that has begun may take to arrive, and an answer to go.
const FRAME_LIMIT: Duration = Duration::from_secs(10);

/// Most volumes of a node.
const VOLUMES_MAX: usize = 256;

/// How long a process that is told to end waits for those who use its files: less than the service that it
/// belongs to gives it (muster-machines.service), so that it says itself what kept it.
const END_LIMIT: Duration = Duration::from_secs(45);

/// Pause between two attempts to end.
const END_AGAIN: Duration = Duration::from_millis(500);

type Slot = Arc<Mutex<Hosted>>;

struct Control {
    process: Arc<Process>,
    volumes: std::sync::Mutex<BTreeMap<VolumeId, Slot>>,
    /// How each was at the last look, for a look while an order takes its time.
    seen: std::sync::Mutex<BTreeMap<VolumeId, Told>>,
    end: Notify,
}

fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Only whole values are put in and taken out.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Serves until it is told to end and may.
///
/// # Errors
/// The socket cannot be made; the node's disk cannot be written.
pub(super) async fn serve(settings: Arc<Settings>) -> anyhow::Result<()> {
    let kept = Kept::new(&settings.data_dir).context("the data directory")?;
    let socket = settings.socket();
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let streams = Streams::new(settings.clone());
    let control = Arc::new(Control {
        process: Arc::new(Process { settings, streams, kept }),
        volumes: std::sync::Mutex::default(),
        seen: std::sync::Mutex::default(),
        end: Notify::new(),
    });
    tracing::info!(socket = %socket.display(), "serving volumes");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(listen(control.clone(), listener));
    tokio::select! {
        _ = terminate.recv() => {
            let begun = Instant::now();
            // Machines that end with the host write their caches back through here.
            while let Err(why) = control.leave_all().await {
                if begun.elapsed() > END_LIMIT {
                    anyhow::bail!("ended while volumes were in use: {why}");
                }
                tokio::time::sleep(END_AGAIN).await;
            }
        }
        () = control.end.notified() => {}
    }
    let _ = fs::remove_file(&socket);
    Ok(())
}

async fn listen(control: Arc<Control>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = control.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(&control, stream).await {
                        tracing::debug!(%error, "a control connection is over");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a control connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One order, one answer.
async fn converse(control: &Arc<Control>, mut stream: UnixStream) -> std::io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if stream.peer_cred()?.uid() != own {
        return Err(std::io::Error::other("the caller is another user"));
    }
    let read = tokio::time::timeout(FRAME_LIMIT, receive::<Order>(&mut stream)).await;
    let frame = read.map_err(|_| std::io::Error::other("no order in time"))??;
    let node = control.process.settings.node;
    let stranger = frame.version != VERSION || frame.node != node;
    let mut ends = false;
    let answer = match frame.body {
        Order::End => match control.leave_all().await {
            Ok(()) => {
                ends = true;
                Answer::Done
            }
            Err(why) => failed(why),
        },
        _ if stranger => Answer::Stranger { version: VERSION, node },
        order => {
            // A daemon that dies meanwhile must not leave half a deed.
            let control = control.clone();
            let done = tokio::spawn(async move { control.carry_out(order).await });
            done.await.unwrap_or_else(|error| failed(error.to_string()))
        }
    };
    let frame = Frame { version: VERSION, node, body: answer };
    let sent = tokio::time::timeout(FRAME_LIMIT, send(&mut stream, &frame)).await;
    if ends {
        control.end.notify_one();
    }
    sent.map_err(|_| std::io::Error::other("the answer was not taken in time"))?
}

fn failed(why: String) -> Answer {
    Answer::Failed { why }
}

impl Control {
    fn slot(&self, volume: VolumeId) -> Result<Slot, String> {
        let mut volumes = locked(&self.volumes);
        if volumes.len() >= VOLUMES_MAX && !volumes.contains_key(&volume) {
            return Err(format!("more than {VOLUMES_MAX} volumes are in use on this node"));
        }
        let new = || Arc::new(Mutex::new(Hosted::new(volume, self.process.clone())));
        Ok(volumes.entry(volume).or_insert_with(new).clone())
    }

    async fn carry_out(&self, order: Order) -> Answer {
        match self.try_carry_out(order).await {
            Ok(answer) => answer,
            Err(why) => {
                tracing::warn!(why, "an order could not be carried out");
                failed(why)
            }
        }
    }

    async fn try_carry_out(&self, order: Order) -> Result<Answer, String> {
        let (volume, answer) = match order {
            Order::Members { members, gone } => {
                let told = self.process.streams.told(&members, &gone).await;
                return told.map(|()| Answer::Done).map_err(|error| format!("{error:#}"));
            }
            Order::States => return Ok(Answer::States { states: self.states() }),
            // Taken by the connection.
            Order::End => return Ok(Answer::Done),
            Order::Follow(order) => {
                let volume = order.volume;
                let slot = self.slot(volume)?;
                let done = slot.lock().await.follow(order).await;
                (volume, done.map(|()| Answer::Done))
            }
            Order::Coordinate(order) => {
                let volume = order.volume;
                let slot = self.slot(volume)?;
                let mut hosted = slot.lock().await;
                (volume, Ok(hosted.coordinate(order).await))
            }
            Order::Resign { volume, device, fences } => {
                let slot = self.slot(volume)?;
                let done = slot.lock().await.resign(device.as_deref(), fences).await;
                (volume, done.map(|()| Answer::Done))
            }
            Order::Hold { volume, files } => {
                let front = self.slot(volume)?.lock().await.front();
                let held = async { front?.hold(&files).await };
                (volume, held.await.map(|()| Answer::Done))
            }
            Order::Free { volume, files } => {
                let front = self.slot(volume)?.lock().await.front();
                (volume, front.and_then(|front| front.free(&files)).map(|()| Answer::Done))
            }
            Order::Detach { volume } => {
                let slot = self.slot(volume)?;
                let done = slot.lock().await.detach().await;
                (volume, done.map(|()| Answer::Done))
            }
        };
        self.forget_idle(volume).await;
        answer
    }

    /// A volume of which nothing is here any more takes no room.
    async fn forget_idle(&self, volume: VolumeId) {
        let Ok(slot) = self.slot(volume) else { return };
        let hosted = slot.lock().await;
        if hosted.is_idle() {
            let mut volumes = locked(&self.volumes);
            // Nobody else is about to do something with it: the map's, and this one.
            if Arc::strong_count(&slot) == 2 {
                volumes.remove(&volume);
                locked(&self.seen).remove(&volume);
            }
        }
    }

    /// How all volumes are; of one that an order is just changing, as it was before.
    fn states(&self) -> Vec<Told> {
        let slots = locked(&self.volumes).clone();
        let mut seen = locked(&self.seen);
        for (volume, slot) in &slots {
            if let Ok(hosted) = slot.try_lock() {
                seen.insert(*volume, hosted.told());
            }
        }
        seen.retain(|volume, _| slots.contains_key(volume));
        seen.values().cloned().collect()
    }

    /// Leaves all volumes, if nobody uses any.
    async fn leave_all(&self) -> Result<(), String> {
        let slots = locked(&self.volumes).clone();
        for slot in slots.values() {
            slot.lock().await.detach().await?;
        }
        for slot in slots.values() {
            slot.lock().await.resign(None, true).await?;
        }
        Ok(())
    }
}
