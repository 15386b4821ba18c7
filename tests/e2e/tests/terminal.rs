//! Ctrl-C in everything that can be waited for: the terminal is as before, and what goes on in the
//! background is said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::CrashPolicy;
use api::model::OpState;
use api::types::OpListQuery;
use api::types::OpView;
use api::types::Phase;
use api::types::VmCreateBody;
use e2e::CTRL_C;
use e2e::GUEST;
use e2e::Host;
use e2e::OWN;
use e2e::Options;
use e2e::Terminal;
use e2e::eventually;
use e2e::tiny;

/// A host on which a machine called `mute-...` takes a minute to fail to start.
async fn slow_host() -> Host {
    let host = Host::start_with(Options { own_qemu: true, ..Options::default() }).await;
    let program = host.file("qemu-false");
    std::fs::copy(env!("CARGO_BIN_EXE_false-qemu"), &program).unwrap();
    host.qemu_is(Some(&program));
    host
}

fn mute(name: &str) -> VmCreateBody {
    VmCreateBody { disks: Vec::new(), nics: Vec::new(), on_crash: CrashPolicy::Stop, ..tiny(name) }
}

async fn running(host: &Host) -> Vec<OpView> {
    let query = OpListQuery { all: false };
    host.client().call::<ep::OpList>(&[], &query, &Nothing {}).await.unwrap()
}

/// Stops everything, so that the host can go.
async fn stop_all(host: &Host) {
    for op in running(host).await {
        // It may have ended by itself.
        let _ = host.client().get::<ep::OpCancel>(&[&op.id.to_string()]).await;
    }
    host.quiet().await;
}

#[tokio::test]
async fn a_start_that_is_waited_for_goes_on_in_the_background() {
    let host = slow_host().await;
    // As one command that makes and starts it.
    let words = "vm create mute-1 --no-network --memory 128M --start";
    let mut terminal = Terminal::new(&host, words);
    eventually("the start is under way", OWN, async || {
        running(&host).await.iter().any(|op| op.title.contains("start")).then_some(())
    })
    .await;
    terminal.press(CTRL_C);
    let seen = terminal.end(130).await;
    assert!(seen.contains("it goes on") && seen.contains("muster op wait"), "{seen}");
    let op = running(&host).await.remove(0);
    assert!(matches!(op.state, OpState::Running { .. }), "{op:?}");

    // Waiting for it by its id, and leaving that.
    let mut terminal = Terminal::new(&host, &format!("op wait {}", op.id));
    terminal.expect("start mute-1").await;
    terminal.press(CTRL_C);
    let seen = terminal.end(130).await;
    assert!(seen.contains("it goes on"), "{seen}");
    assert_eq!(running(&host).await.len(), 1);

    // The same with the verb alone, on another machine.
    host.create(&mute("mute-2")).await;
    let mut terminal = Terminal::new(&host, "vm start mute-2");
    terminal.expect("start mute-2").await;
    eventually("the start is under way", OWN, async || {
        (running(&host).await.len() == 2).then_some(())
    })
    .await;
    terminal.press(CTRL_C);
    let seen = terminal.end(130).await;
    assert!(seen.contains("it goes on"), "{seen}");
    assert_eq!(running(&host).await.len(), 2);
    stop_all(&host).await;
    eventually("no process of it is left", OWN, async || {
        host.traces().processes.is_empty().then_some(())
    })
    .await;
}

/// Says that it has a lot, sends a little, and then nothing, until `stop`.
fn stalling_server(host: &Host, stop: Arc<AtomicBool>) -> (String, std::thread::JoinHandle<()>) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = host.netns().inside(move || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sender.send(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut held = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n";
                let _ = std::io::Write::write_all(&mut stream, head.as_bytes());
                let _ = std::io::Write::write_all(&mut stream, &vec![7; 4 << 20]);
                held.push(stream);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    (format!("http://{}/big.raw", receiver.recv().unwrap()), thread)
}

#[tokio::test]
async fn an_import_is_stopped_and_a_view_is_left() {
    let host = Host::start_fake().await;
    host.create(&mute("seen")).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (url, server) = stalling_server(&host, stop.clone());
    let files = || host.traces().files.into_iter().filter(|file| file.contains("/images"));
    let before: Vec<_> = files().collect();
    let mut terminal = Terminal::new(&host, &format!("image import big {url}"));
    terminal.expect("%").await;
    terminal.press(CTRL_C);
    let seen = terminal.end(130).await;
    assert!(seen.contains("stopping it") && seen.contains("stopped"), "{seen}");
    assert!(host.client().get::<ep::ImageList>(&[]).await.unwrap().is_empty());
    assert_eq!(files().collect::<Vec<_>>(), before, "nothing of it is left");
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();

    let mut terminal = Terminal::new(&host, "top");
    terminal.expect("seen").await;
    terminal.press(CTRL_C);
    terminal.end(130).await;

    let mut terminal = Terminal::new(&host, "event list --follow");
    terminal.expect("seen").await;
    terminal.press(CTRL_C);
    terminal.end(130).await;

    // Questions: nothing was done.
    host.vm("seen").start().await;
    host.create(&mute("off")).await;
    for question in ["vm off seen", "vm reset seen", "vm disk remove off x", "image delete big"] {
        let mut terminal = Terminal::new(&host, question);
        terminal.expect("[y/N]").await;
        terminal.press(CTRL_C);
        terminal.end(130).await;
    }
    assert_eq!(host.vm("seen").show().await.phase, Phase::Running);
    assert_eq!(host.vm("off").show().await.phase, Phase::Off);
}

#[tokio::test]
async fn a_console_hands_ctrl_c_to_the_guest_and_a_screen_is_closed_by_it() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("c")).await;
    let mut terminal = Terminal::new(&host, "vm console c");
    terminal.expect("Ctrl-] leaves the console").await;
    // A program in the guest that tells which key it was given.
    terminal.press(b"\nstty -isig -icanon; echo press-$((6 * 7)); head -c 1 | od -An -b\n");
    terminal.expect("press-42").await;
    terminal.press(CTRL_C);
    terminal.expect("003").await;
    terminal.press(b"\nstty sane; echo and-on-it-goes-$((6 * 7))\n");
    terminal.expect("and-on-it-goes-42").await;
    terminal.press(b"\x1d");
    let seen = terminal.end(0).await;
    assert!(seen.contains("the guest goes on"), "{seen}");

    let door = host.file("screen.vnc");
    let words = format!("vm console c --vnc --listen {}", door.display());
    let mut terminal = Terminal::new(&host, &words);
    terminal.expect("Ctrl-C ends it; the guest goes on").await;
    let greeting = greeting(&door).await;
    assert!(greeting.starts_with(b"RFB 003."), "{greeting:?}");
    terminal.press(CTRL_C);
    terminal.end(130).await;
    assert!(!door.exists(), "the socket was left behind");

    // A patience of minutes, cut short: the guest is asked no more and runs.
    let mut shell = vm.serial().await;
    shell.run("killall -9 agent qemu-ga guestload").await;
    let mut terminal = Terminal::new(&host, "vm shutdown c --patience 600");
    eventually("it is under way", OWN, async || (!running(&host).await.is_empty()).then_some(()))
        .await;
    terminal.press(CTRL_C);
    let seen = terminal.end(130).await;
    assert!(seen.contains("stopp"), "{seen}");
    host.quiet().await;
    assert_eq!(vm.wait_phase(Phase::Running).await.phase, Phase::Running);
    shell.run("true").await;
}

/// What a screen's socket says first.
async fn greeting(door: &Path) -> Vec<u8> {
    let door = door.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut viewer = std::os::unix::net::UnixStream::connect(door).unwrap();
        viewer.set_read_timeout(Some(GUEST)).unwrap();
        let mut heard = vec![0; 12];
        viewer.read_exact(&mut heard).unwrap();
        heard
    });
    read.await.unwrap()
}
