//! Network namespaces without names, and machines that are only a tap and a pump.

use std::fs::File;
use std::io::PipeReader;
use std::io::PipeWriter;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sched::unshare;
use switch::Host;
use switch::LinkName;
use switch::LinuxHost;

/// Everything here answers in milliseconds; a loaded machine gets a lot more.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// A virtio-net header without options.
const VNET_HEADER_BYTES: usize = 10;

/// A network namespace that lives as long as this value.
pub(crate) struct Ns {
    file: File,
}

impl Ns {
    pub(crate) fn new() -> Arc<Self> {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // A new namespace takes this over from the machine's, which may forward.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let ns = Arc::new(Self { file: made.join().unwrap() });
        ns.run("ip link set lo up");
        ns
    }

    /// Runs a function on a thread that is in the namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Drives a future on a runtime of which every thread is in the namespace.
    pub(crate) fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    /// Runs a shell command in the namespace: whether it succeeded, and what it said.
    pub(crate) fn try_run(&self, command: &str) -> (bool, String) {
        self.enter(|| {
            let output = Command::new("sh").args(["-c", command]).output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        })
    }

    pub(crate) fn run(&self, command: &str) -> String {
        let (good, text) = self.try_run(command);
        assert!(good, "{command}: {text}");
        text
    }

    /// A path by which iproute2 finds the namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// A shell command in a namespace, without holding up the runtime that serves it.
pub(crate) async fn run_in(ns: &Arc<Ns>, command: &str) -> (bool, String) {
    let (ns, command) = (Arc::clone(ns), command.to_owned());
    tokio::task::spawn_blocking(move || ns.try_run(&command)).await.unwrap()
}

/// A function in a namespace, without holding up the runtime that serves it.
pub(crate) async fn call_in<T: Send + 'static>(
    ns: &Arc<Ns>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let ns = Arc::clone(ns);
    tokio::task::spawn_blocking(move || ns.enter(work)).await.unwrap()
}

/// Waits for a condition, asking again and again until the deadline.
pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A guest without a machine: a namespace whose `eth0` is joined to the switch's tap by a thread
/// that copies frames, as QEMU does. Both ends carry the virtio-net header.
pub(crate) struct Guest {
    pub(crate) ns: Arc<Ns>,
    tap: Arc<OwnedFd>,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Option<PipeWriter>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    pub(crate) fn plug(tap: OwnedFd, mac: &str) -> Self {
        let ns = Ns::new();
        let name = LinkName::new("eth0");
        let card = ns.block_on(async || LinuxHost::new().unwrap().open_tap(&name).await).unwrap();
        ns.run(&format!("ip link set eth0 address {mac} && ip link set eth0 up"));
        let tap = Arc::new(tap);
        let received = Arc::new(Mutex::new(Vec::new()));
        let (stopped, stop) = std::io::pipe().unwrap();
        let pump = {
            let (tap, received) = (Arc::clone(&tap), Arc::clone(&received));
            thread::spawn(move || pump(&tap, &card, &stopped, &received))
        };
        Self { ns, tap, received, stop: Some(stop), pump: Some(pump) }
    }

    /// Sends a frame past the guest's kernel.
    pub(crate) fn inject(&self, frame: &[u8]) {
        let mut packet = vec![0; VNET_HEADER_BYTES];
        packet.extend_from_slice(frame);
        assert_eq!(nix::unistd::write(&self.tap, &packet), Ok(packet.len()));
    }

    /// Whether a frame that contains these bytes has come in.
    pub(crate) fn has_received(&self, bytes: &[u8]) -> bool {
        let received = self.received.lock().unwrap();
        received.iter().any(|frame| frame.windows(bytes.len()).any(|window| window == bytes))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.take();
        let ended = self.pump.take().map(JoinHandle::join);
        assert!(!matches!(ended, Some(Err(_))) || thread::panicking(), "the pump panicked");
    }
}

fn pump(tap: &OwnedFd, card: &OwnedFd, stopped: &PipeReader, received: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = vec![0; 70_000];
    loop {
        let mut fds = [
            PollFd::new(tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(card.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let ready = fds.map(|fd| fd.any() == Some(true));
        // A tap that was deleted under us is always "ready" and never readable.
        if ready[2] {
            return;
        }
        if ready[0]
            && let Ok(length) = nix::unistd::read(tap, &mut buffer)
        {
            received.lock().unwrap().push(buffer[VNET_HEADER_BYTES..length].to_vec());
            let _ = nix::unistd::write(card, &buffer[..length]);
        }
        if ready[1]
            && let Ok(length) = nix::unistd::read(card, &mut buffer)
        {
            let _ = nix::unistd::write(tap, &buffer[..length]);
        }
    }
}
