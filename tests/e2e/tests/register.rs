//! A VM comes back from its directory after the state was lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::path::Path;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::types::DiskAddBody;
use api::types::Phase;
use api::types::VmRegisterBody;
use e2e::Host;
use e2e::OWN;
use e2e::eventually;
use e2e::tiny;

/// Loses the database: the daemon starts with an empty one beside the same files.
async fn lose_the_state(host: &mut Host) {
    host.kill9();
    for entry in std::fs::read_dir(host.data_dir()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("state") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    host.restart().await;
    assert!(
        host.client()
            .call::<ep::VmList>(&[], &Default::default(), &Nothing {})
            .await
            .unwrap()
            .is_empty()
    );
}

async fn register(host: &Host, dir: &Path, name: Option<&str>) -> Result<String, api::ApiError> {
    let dir = dir.to_string_lossy().into_owned();
    let body = VmRegisterBody { dir, name: name.map(|name| name.parse().unwrap()) };
    host.client().send::<ep::VmRegister>(&[], &body).await.map(|vm| vm.name.to_string())
}

#[tokio::test]
async fn a_vm_is_registered_again_after_the_state_was_lost_with_its_data() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    let mut body = tiny("r");
    body.disks.push(DiskAddBody { size: Some(Bytes::mib(24)), ..DiskAddBody::default() });
    let (id, generation) = {
        let vm = host.boot(&body).await;
        vm.shell().await.run("guestload write /dev/vdb 256 5").await;
        vm.shutdown().await;
        let view = vm.show().await;
        (view.id, view.generation)
    };
    let dir = host.data_dir().join("vms").join(id.to_string());
    let known = register(&host, &dir, None).await.unwrap_err();
    assert_eq!(known.code, "id_taken", "{known:?}");
    lose_the_state(&mut host).await;

    // What is not a directory of this node's is refused, and so is one with a file missing.
    for wrong in [Path::new("/tmp"), &dir.join(".."), &dir.join("disks")] {
        let error = register(&host, wrong, None).await.unwrap_err();
        assert_eq!(error.code, "not_registrable", "{error:?}");
    }
    let disks: Vec<_> = std::fs::read_dir(dir.join("disks")).unwrap().flatten().collect();
    let away = host.file("away");
    std::fs::rename(disks[0].path(), &away).unwrap();
    assert_eq!(register(&host, &dir, None).await.unwrap_err().code, "not_registrable");
    std::fs::rename(&away, disks[0].path()).unwrap();

    // A name that is in use is given another one. By the command line, from within the directory.
    host.create(&tiny_without_image("r")).await;
    let taken = register(&host, &dir, None).await.unwrap_err();
    assert!(taken.code == "name_taken" && taken.hint.contains("--name"), "{taken:?}");
    let ran =
        host.muster().args(["vm", "register", ".", "--name", "back"]).current_dir(&dir).output();
    let ran = ran.unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let vm = host.vm("back");
    let view = vm.wait_phase(Phase::Off).await;
    assert!(view.id == id && view.generation > generation, "{view:?}");
    let images = host.client().get::<ep::ImageList>(&[]).await.unwrap();
    assert_eq!(images.len(), 1, "the image came back with it: {images:?}");

    vm.start().await;
    vm.wait_heartbeat().await;
    vm.shell().await.run("guestload verify /dev/vdb 256 5").await;
    assert!(vm.show().await.generation.get() > generation.get() + 1);
}

#[tokio::test]
async fn a_saved_guest_goes_on_and_a_running_one_is_not_taken_over() {
    let mut host = Host::start().await;
    host.import_tiny().await;
    let id = {
        let vm = host.boot(&tiny("s")).await;
        vm.shell().await.run("echo kept >/run/mark").await;
        vm.verb::<ep::VmSave>().await;
        vm.wait_phase(Phase::Saved).await.id
    };
    let dir = host.data_dir().join("vms").join(id.to_string());
    // The copy of the record follows in a moment.
    eventually("the copy of the record tells of the save", OWN, async || {
        let copy = std::fs::read_to_string(dir.join("vm.json")).unwrap();
        copy.contains("\"boot_memory\"").then_some(())
    })
    .await;
    lose_the_state(&mut host).await;
    assert_eq!(register(&host, &dir, None).await.unwrap(), "s");
    let vm = host.vm("s");
    vm.wait_phase(Phase::Saved).await;
    vm.start().await;
    let mut shell = vm.serial().await;
    assert_eq!(shell.run("cat /run/mark").await, "kept");
    drop(shell);

    // Lost again while the guest runs: it goes on, and nobody else gets its disks.
    let pid = vm.run().await.pid;
    lose_the_state(&mut host).await;
    let error = register(&host, &dir, None).await.unwrap_err();
    assert_eq!(error.code, "runs", "{error:?}");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the guest goes on");
}

fn tiny_without_image(name: &str) -> api::types::VmCreateBody {
    let mut body = tiny(name);
    body.disks.clear();
    body
}
