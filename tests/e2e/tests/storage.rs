//! Storage of a running machine goes from volume to volume: real daemon, QEMU and guest. The guest
//! writes patterns and checks them all the time; what it checks is what it got acknowledged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::migrate::VmMoveStorageBody;
use api::migrate::VmMoveStorageView;
use api::model::Bytes;
use api::model::ImageFormat;
use api::model::ImageSource;
use api::model::OpState;
use api::types::DiskAddBody;
use api::types::ImageImportBody;
use api::types::VmCreateBody;
use api::types::VolumeCreateBody;
use api::volume::VolumeSource;
use e2e::GUEST;
use e2e::Host;
use e2e::Serial;
use e2e::Vm;
use e2e::eventually;
use e2e::guest_image;
use e2e::tiny;

/// Writes and checks until it is told to stop, and says how often it has; when something is not as it
/// was written, it says that.
const LOAD: &str = "mkdir -p /run; echo 0 > /run/rounds; (n=0; while [ ! -e /run/stop ] && guestload \
                    write /dev/vdb 64 $n && guestload verify /dev/vdb 64 $n; do n=$((n+1)); echo $n > \
                    /run/rounds; done > /run/said 2>&1; [ -e /run/stop ] || echo broken > /run/broken; \
                    touch /run/over) < /dev/null & true";

async fn volume(host: &Host, name: &str) -> PathBuf {
    let path = host.file(name);
    std::fs::create_dir_all(&path).unwrap();
    let kind = VolumeSource::Share { path: path.to_str().unwrap().to_owned() };
    let body = VolumeCreateBody { name: name.parse().unwrap(), kind };
    host.client().call::<ep::VolumeCreate>(&[], &Nothing {}, &body).await.unwrap();
    path
}

/// A machine on the first of two volumes, with a disk for patterns, that works.
async fn at_work(host: &Host) -> (Vm<'_>, PathBuf, PathBuf) {
    let (first, second) = (volume(host, "first").await, volume(host, "second").await);
    let import = ImageImportBody {
        name: "tiny".parse().unwrap(),
        source: ImageSource::File { path: guest_image("tiny.img").display().to_string() },
        format: Some(ImageFormat::Raw),
        sha256: None,
        volume: Some("first".to_owned()),
    };
    host.op::<ep::ImageImport>(&[], &import).await;
    let data = DiskAddBody { size: Some(Bytes::mib(32)), ..DiskAddBody::default() };
    let mut body = VmCreateBody { volume: Some("first".to_owned()), ..tiny("m") };
    body.disks.push(data);
    let vm = host.boot(&body).await;
    (vm, first, second)
}

async fn rounds(shell: &mut Serial) -> u64 {
    let said = shell.run("cat /run/rounds; cat /run/broken /run/said 2>/dev/null; true").await;
    assert!(!said.contains("broken"), "{said}");
    // It may be about to write the number.
    said.lines().next().and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// That the guest finds what it has written, and goes on.
async fn works(shell: &mut Serial) {
    let before = rounds(shell).await;
    eventually("it writes and checks", GUEST, async || {
        (rounds(shell).await > before + 1).then_some(())
    })
    .await;
}

async fn begin(host: &Host, to: &str) -> VmMoveStorageView {
    let body = VmMoveStorageBody { to: Some(to.to_owned()), dry_run: false };
    host.client().call::<ep::VmMoveStorage>(&["m"], &Nothing {}, &body).await.unwrap()
}

fn directories(top: &std::path::Path) -> usize {
    std::fs::read_dir(top.join("vms")).map_or(0, |dirs| dirs.flatten().count())
}

/// Where the machine's directory is, and that it is nowhere else.
async fn lies_only(on: &std::path::Path, not: &std::path::Path) {
    eventually("what was left is removed", GUEST, async || {
        ((directories(on), directories(not)) == (1, 0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_guest_at_work_moves_its_disks_and_loses_nothing_whatever_dies() {
    let mut host = Host::start().await;
    let (first, second);
    let mut shell;
    let run;
    {
        let (vm, one, two) = at_work(&host).await;
        (first, second) = (one, two);
        shell = vm.shell().await;
        run = vm.show().await.generation;
        shell.run(LOAD).await;
        works(&mut shell).await;
        let body = VmMoveStorageBody { to: Some("second".to_owned()), dry_run: true };
        let dry = host.client().call::<ep::VmMoveStorage>(&["m"], &Nothing {}, &body).await;
        let dry = dry.unwrap();
        assert!(dry.fits && dry.op.is_none(), "{dry:?}");
        assert_eq!((directories(&first), directories(&second)), (1, 0), "nothing was begun");
        let there = VmMoveStorageBody { to: Some("first".to_owned()), dry_run: false };
        let there = host.client().call::<ep::VmMoveStorage>(&["m"], &Nothing {}, &there).await;
        assert!(there.unwrap_err().to_string().contains("lies there already"));

        let begun = Instant::now();
        let op = begin(&host, "second").await.op.unwrap();
        let ended = host.ended(&op).await;
        eprintln!("moved in {:?}", begun.elapsed());
        assert!(matches!(ended.state, OpState::Done { .. }), "{ended:?}");
        lies_only(&second, &first).await;
        works(&mut shell).await;
        assert_eq!(vm.show().await.generation, run, "it is the same run");
    }
    // The daemon is killed at some moment of it, again and again.
    for (round, to) in ["first", "second", "first"].into_iter().enumerate() {
        let op = begin(&host, to).await.op.unwrap();
        tokio::time::sleep(Duration::from_millis(20 + 120 * round as u64)).await;
        host.kill9();
        host.restart().await;
        let ended = host.ended(&op).await;
        assert!(matches!(ended.state, OpState::Done { .. }), "{ended:?}");
        match to {
            "first" => lies_only(&first, &second).await,
            _ => lies_only(&second, &first).await,
        }
        shell = host.vm("m").serial().await;
        works(&mut shell).await;
    }
    // Stopped, it stays where it is.
    let op = begin(&host, "second").await.op.unwrap();
    let _ =
        host.client().call::<ep::OpCancel>(&[&op.id.to_string()], &Nothing {}, &Nothing {}).await;
    let ended = host.ended(&op).await;
    match ended.state {
        OpState::Done { .. } => lies_only(&second, &first).await,
        _ => lies_only(&first, &second).await,
    }
    works(&mut shell).await;
    // And from there it starts.
    let vm = host.vm("m");
    assert_eq!(vm.show().await.generation, run);
    shell.run("touch /run/stop; while [ ! -e /run/over ]; do sleep 0.1; done").await;
    assert!(rounds(&mut shell).await > 0);
    shell.run("guestload write /dev/vdb 64 4711 && sync").await;
    vm.off().await;
    vm.start().await;
    let mut shell = vm.shell().await;
    shell.run("guestload verify /dev/vdb 64 4711").await;
}
