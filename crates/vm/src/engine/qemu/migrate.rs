//! Live migration over QMP.
//!
//! QEMU has a network of its own with nothing in it, so it reaches no other host, and needs not to:
//! it speaks through local sockets of which we hold the other end. Who carries the bytes from host to
//! host, encrypted, is the caller.
//!
//! ```text
//!   out   we listen in the jail's /tmp, QEMU connects: its second wall (Landlock) lets it reach no
//!         socket with an abstract name that is not its own
//!   in    QEMU listens under an abstract name in its network namespace, we connect there: a path in
//!         its /tmp could be a link of its making, and lead us anywhere
//! ```

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Bytes;
use serde_json::Value;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::machine::Shared;
use super::verbs::STATE_CHANNELS;
use crate::engine::Accel;
use crate::engine::EngineError;
use crate::engine::MigratePhase;
use crate::engine::MigrateProgress;
use crate::engine::MigrateTuning;
use crate::engine::Outgoing;
use crate::engine::Sending;
use crate::engine::Switch;
use crate::engine::sending::Cut;

/// Name of the socket, in the machine's network namespace; in its `/tmp` a number follows.
pub(super) const DOOR: &str = "muster-migrate";

/// Connections that QEMU may open at once: one for the state, one for each channel, and room.
const CONNECTIONS_MAX: usize = 8;

/// How long QEMU may take to put away what an earlier migration has left, and how often to look.
const PUT_AWAY_MAX: Duration = Duration::from_secs(10);
const PUT_AWAY_LOOK: Duration = Duration::from_millis(10);

/// More than any link carries, in bytes per second: QEMU's own default is 1 Gb/s.
const NO_CAP: u64 = 1 << 40;

/// How soon QEMU may open its first connection and its last one.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Pages of each gigabyte that are looked at for the dirty rate: QEMU's own default.
const SAMPLE_PAGES: u64 = 512;

/// How much longer than asked for a sample of the dirty rate may take.
const SAMPLE_MORE: Duration = Duration::from_secs(2);

/// Rounds of announcements after the first, and their pauses in milliseconds: at 50, 150, 350, 650
/// (FEATURES.md D1: repeated, since switches lose frames).
const ANNOUNCE: (u64, u64, u64, u64) = (50, 550, 5, 100);

/// Does something in the network namespace of a process, on a thread that ends with it: a thread
/// cannot be trusted to come back.
async fn inside<T: Send + 'static>(
    pid: u32,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("muster-netns".to_owned()).spawn(move || {
        let enter = || -> io::Result<T> {
            let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            work()
        };
        // Nobody waits any more: fine.
        let _ = tell.send(enter());
    })?;
    told.await.map_err(|_| io::Error::other("the thread has ended"))?
}

/// The way out, listened to by us. The name is no link: binding follows none, and nobody but us can
/// put another file in its place (the jail's `/tmp` is sticky).
///
/// Each has a name of its own: what is left of one must not take the next one's away.
pub(super) fn way_out(pid: u32, door: &str) -> io::Result<(UnixListener, PathBuf, String)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let inside = format!("/tmp/{door}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = PathBuf::from(format!("/proc/{pid}/root{inside}"));
    // Of an earlier daemon.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    Ok((listener, path, inside))
}

/// Where QEMU is to listen (under an abstract name), or to connect.
fn channel(name: &str, incoming: bool) -> Value {
    let addr = json!({ "transport": "socket", "type": "unix", "path": name, "abstract": incoming });
    json!({ "channels": [{ "channel-type": "main", "addr": addr }] })
}

/// Sets what a migration is, on either side.
async fn prepare(shared: &Shared, incoming: bool, switch: Switch) -> Result<(), EngineError> {
    let set = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let capabilities = json!({ "capabilities": [
        set("mapped-ram", false), set("multifd", true), set("events", true),
        // The source learns whether the target has loaded everything.
        set("return-path", true), set("auto-converge", !incoming),
        // The target takes the disks when it goes on, and not before.
        set("late-block-activate", incoming),
        set("pause-before-switchover", switch == Switch::OnWord),
    ] });
    shared.run("migrate-set-capabilities", capabilities).await?;
    let parameters = json!({ "multifd-channels": STATE_CHANNELS, "max-bandwidth": NO_CAP });
    shared.run("migrate-set-parameters", parameters).await.map(drop)
}

/// Waits for the source's connections.
pub(super) async fn listen(shared: &Shared) -> Result<(), EngineError> {
    prepare(shared, true, Switch::AtOnce).await?;
    shared.run("migrate-incoming", channel(DOOR, true)).await.map(drop)
}

/// One connection to a door of a machine that waits for them.
pub(super) async fn connect(
    shared: &Shared,
    door: &'static str,
) -> Result<UnixStream, EngineError> {
    let pid = shared.lock().record.run.pid;
    let connect = move || {
        let stream = StdStream::connect_addr(&SocketAddr::from_abstract_name(door)?)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let work = async { UnixStream::from_std(inside(pid, connect).await?) };
    work.await.map_err(EngineError::io("connect to the machine that waits"))
}

pub(super) async fn begin(
    shared: &Shared,
    tuning: MigrateTuning,
    switch: Switch,
) -> Result<Outgoing, EngineError> {
    if loses_writes(shared) {
        return Err(EngineError::Unsupported {
            what: "its live migration".to_owned(),
            why: LOSES_WRITES.to_owned(),
        });
    }
    put_away(shared).await?;
    prepare(shared, false, switch).await?;
    tune(shared, tuning).await?;
    let pid = shared.lock().record.run.pid;
    let (listener, path, inside) =
        way_out(pid, DOOR).map_err(EngineError::io("open a way out of the machine"))?;
    let (tell, connections) = mpsc::channel(CONNECTIONS_MAX);
    let cut = Arc::<Cut>::default();
    {
        let mut inner = shared.lock();
        inner.migrating = true;
        inner.cut = Arc::downgrade(&cut);
    }
    tokio::spawn(accept_all(listener, path, tell, cut));
    let begun = shared.run("migrate", channel(&inside, false)).await;
    if begun.is_err() {
        shared.lock().migrating = false;
    }
    begun.map(|_| Outgoing { connections })
}

/// Waits until QEMU has put away what belongs to an earlier migration or a save: it tells the end of one
/// before that, while its threads still run. The next `migrate` must not be given until then, not even to be
/// refused: it sets what those threads work with back to nothing before it looks (`migrate_init` of 10.0),
/// and ends QEMU. What can be torn off (`query-yank`) is the last thing that goes.
pub(super) async fn put_away(shared: &Shared) -> Result<(), EngineError> {
    let end = Instant::now() + PUT_AWAY_MAX;
    loop {
        let told = shared.run("query-yank", json!({})).await?;
        let mut instances = told.as_array().into_iter().flatten();
        if !instances.any(|instance| instance["type"] == "migration") {
            return Ok(());
        }
        if Instant::now() > end {
            let why = "QEMU has not put away an earlier migration or save; try again, and if that \
                       fails, shut the guest down and start it";
            let command = "migrate".to_owned();
            return Err(EngineError::Command { command, why: why.to_owned() });
        }
        tokio::time::sleep(PUT_AWAY_LOOK).await;
    }
}

/// Lets one go on whose guest stands and that waits for our word.
pub(super) async fn switch(shared: &Shared) -> Result<(), EngineError> {
    let state = json!({ "state": "pre-switchover" });
    shared.run("migrate-continue", state).await.map(drop)
}

/// Stops one that sends.
pub(super) async fn cancel(shared: &Shared) -> Result<(), EngineError> {
    shared.run("migrate_cancel", json!({})).await?;
    // That ends the first connection only: a channel would wait for as long as nobody reads from it.
    let cut = shared.lock().cut.upgrade();
    if let Some(cut) = cut {
        cut.end();
        return Ok(());
    }
    // Of an earlier daemon, whose end closed all connections.
    let all = json!({ "instances": [{ "type": "migration" }] });
    if let Err(error) = shared.run("yank", all).await {
        tracing::debug!(%error, "a migration had ended when it was stopped");
    }
    Ok(())
}

/// Takes the connections of a migration: one that leads, and one for each channel. Also when nobody carries
/// them any more, since QEMU must not see a channel break ([`crate::engine::Sending`]).
async fn accept_all(
    listener: UnixListener,
    path: PathBuf,
    tell: mpsc::Sender<Sending>,
    cut: Arc<Cut>,
) {
    let all = async {
        for _ in 0..=STATE_CHANNELS {
            let (stream, _) = listener.accept().await?;
            // One that nobody takes is dropped, which ends the migration.
            let _ = tell.send(Sending::of(stream, &cut)?).await;
        }
        std::io::Result::Ok(())
    };
    // One that does not come is missed by the migration itself.
    if let Ok(Err(error)) = tokio::time::timeout(CONNECT_LIMIT, all).await {
        tracing::warn!(%error, "a connection of a migration could not be taken");
        cut.end();
    }
    // It goes with the machine otherwise.
    let _ = std::fs::remove_file(path);
}

/// Takes the connections that QEMU opens for disks, which it does at the beginning only.
pub(super) async fn accept(
    listener: UnixListener,
    path: PathBuf,
    tell: mpsc::Sender<Sending>,
    count: usize,
) {
    let all = async {
        for _ in 0..count {
            let Ok((stream, _)) = listener.accept().await else { return };
            if tell.send(stream.into()).await.is_err() {
                return;
            }
        }
    };
    let limit = tokio::time::timeout(CONNECT_LIMIT, all);
    tokio::select! {
        // One that does not come is missed by the migration itself.
        _ = limit => {}
        () = tell.closed() => {}
    }
    // It goes with the machine otherwise.
    let _ = std::fs::remove_file(path);
}

pub(super) async fn tune(shared: &Shared, tuning: MigrateTuning) -> Result<(), EngineError> {
    let most = tuning.throttle_max.clamp(1, 99);
    let parameters = json!({
        "downtime-limit": tuning.budget.get(),
        "cpu-throttle-initial": most.min(20), "cpu-throttle-increment": 20,
        "max-cpu-throttle": most,
    });
    shared.run("migrate-set-parameters", parameters).await.map(drop)
}

pub(super) async fn progress(shared: &Shared) -> Result<MigrateProgress, EngineError> {
    if !shared.lock().migrating {
        return Ok(MigrateProgress::idle());
    }
    let info = shared.run("query-migrate", json!({})).await?;
    let ram = &info["ram"];
    let number = |name: &str| ram[name].as_u64().unwrap_or_default();
    // Pages of zeroes, which QEMU calls duplicates.
    let empty = number("duplicate").saturating_mul(number("page-size"));
    // Megabits of a million bits per second.
    let mbps = ram["mbps"].as_f64().unwrap_or_default().clamp(0.0, 1e9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
    let bandwidth = (mbps * 125_000.0) as u64;
    Ok(MigrateProgress {
        phase: match info["status"].as_str() {
            Some("completed") => MigratePhase::Done,
            Some("cancelled") => MigratePhase::Cancelled,
            Some("failed") => MigratePhase::Failed(reason(&info)),
            Some("none") | None => MigratePhase::Idle,
            Some("pre-switchover") => MigratePhase::Waiting,
            Some(_) => MigratePhase::Running,
        },
        pass: number("dirty-sync-count"),
        sent: Bytes::new(number("transferred")),
        empty: Bytes::new(empty.min(number("total"))),
        remaining: Bytes::new(number("remaining")),
        total: Bytes::new(number("total")),
        bandwidth: Bytes::new(bandwidth),
        // There is one only when it is done.
        stood: info["downtime"].as_u64().map(Duration::from_millis),
    })
}

fn reason(info: &Value) -> String {
    info["error-desc"].as_str().unwrap_or("QEMU gives no reason").to_owned()
}

/// What keeps the machine from being migrated, in QEMU's words or ours.
pub(super) async fn blockers(shared: &Shared) -> Result<Vec<String>, EngineError> {
    let info = shared.run("query-migrate", json!({})).await?;
    let reasons = info["blocked-reasons"].as_array().into_iter().flatten();
    let ours = loses_writes(shared).then_some(LOSES_WRITES);
    let theirs = reasons.filter_map(Value::as_str);
    Ok(ours.into_iter().chain(theirs).map(str::to_owned).collect())
}

/// Why an emulated machine with room for more memory is not migrated.
const LOSES_WRITES: &str = "it is emulated (no KVM) and has room for more memory: this QEMU would \
                            lose writes of its guest, or end; give it no more than it has \
                            (--memory-max) while it is off";

/// Whether QEMU would look in the wrong place for memory that the guest has changed. Under emulation
/// it tells the translators of each block of memory as if it began at zero
/// (`cpu_physical_memory_sync_dirty_bitmap` of 10.0 gives an offset in the block where an address is
/// wanted). With one large block that is right; with a second one, for memory that comes and goes,
/// changes are lost, or an assertion ends QEMU.
fn loses_writes(shared: &Shared) -> bool {
    let inner = shared.lock();
    let (boot, most) = inner.record.memory;
    inner.record.run.accel == Accel::Tcg && most > boot
}

/// Memory that the guest changes in `window`, per second. By samples of pages: the other ways end
/// QEMU 7.2 and give nothing under emulation (BASELINES.md).
pub(super) async fn dirty_rate(shared: &Shared, window: Duration) -> Result<Bytes, EngineError> {
    let milliseconds = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).clamp(50, 60_000);
    let arguments = json!({
        "calc-time": milliseconds, "calc-time-unit": "millisecond", "sample-pages": SAMPLE_PAGES,
        "mode": "page-sampling",
    });
    shared.run("calc-dirty-rate", arguments).await?;
    let end = Instant::now() + window + SAMPLE_MORE;
    let mut pause = window;
    loop {
        tokio::time::sleep(pause).await;
        pause = Duration::from_millis(20);
        let told = shared.run("query-dirty-rate", json!({})).await?;
        if told["status"] == "measured" {
            return Ok(Bytes::mib(told["dirty-rate"].as_u64().unwrap_or_default()));
        }
        if Instant::now() > end {
            let (command, why) = ("query-dirty-rate".to_owned(), "it takes too long".to_owned());
            return Err(EngineError::Command { command, why });
        }
    }
}

/// Tells the network where the machine's adapters are now, again and again for a second.
pub(super) async fn announce(shared: &Shared) -> Result<(), EngineError> {
    let (initial, max, rounds, step) = ANNOUNCE;
    let arguments = json!({ "initial": initial, "max": max, "rounds": rounds, "step": step });
    shared.run("announce-self", arguments).await.map(drop)
}
