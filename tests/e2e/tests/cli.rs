//! `muster` as people and scripts use it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::process::Stdio;

use api::endpoint as ep;
use e2e::Host;
use e2e::OWN;
use e2e::eventually;

#[tokio::test]
async fn exit_codes_tell_what_was_wrong() {
    let mut host = Host::start_fake().await;
    let cases: [(&[&str], i32); 4] = [
        (&["vm", "list"], 0),
        (&["vm", "create", "a/b"], 2),
        (&["vm", "show", "nobody"], 3),
        (&["no-such-command"], 2),
    ];
    for (args, code) in cases {
        let ran = host.cli(args).await;
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        assert_eq!(ran.err.is_empty(), code == 0, "{ran:?}");
    }
    host.cli(&["vm", "create", "x", "--no-network", "--memory", "128M"]).await.ok();
    let taken = host.cli(&["vm", "create", "x", "--no-network"]).await;
    assert_eq!(taken.code, 5, "{taken:?}");
    let not_running = host.cli(&["vm", "pause", "x"]).await;
    assert_eq!(not_running.code, 5, "{not_running:?}");
    host.kill9();
    let nobody = host.cli(&["vm", "list"]).await;
    assert_eq!(nobody.code, 6, "{nobody:?}");
}

#[tokio::test]
async fn json_is_the_only_thing_on_standard_output() {
    let host = Host::start_fake().await;
    let args = ["vm", "create", "j", "--no-network", "--memory", "128M", "--start", "--json"];
    let ran = host.cli(&args).await.ok();
    assert_eq!(ran.json()["state"], "done", "{ran:?}");
    let list = host.cli(&["vm", "list", "--json"]).await.ok().json();
    assert_eq!(list[0]["name"], "j");
    assert_eq!(list[0]["phase"], "running");
    let error = host.cli(&["vm", "show", "nobody", "--json"]).await;
    let error: serde_json::Value = serde_json::from_str(&error.err).unwrap();
    assert_eq!(error["error"]["kind"], "not_found");
}

#[tokio::test]
async fn ctrl_c_stops_an_import() {
    let host = Host::start_fake().await;
    let source = host.file("large.raw");
    // Sparse; reading and hashing it takes far longer than the test does.
    std::fs::File::create(&source).unwrap().set_len(8 << 30).unwrap();
    let mut command = host.muster();
    command.args(["image", "import", "large"]).arg(&source);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let images = async || host.client().get::<ep::ImageList>(&[]).await.unwrap();
    eventually("the import runs", OWN, async || (!images().await.is_empty()).then_some(())).await;
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap();
    assert_eq!(ended.unwrap().status.code(), Some(130));
    eventually("the import is gone", OWN, async || images().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_machine_is_made_and_used_by_commands_alone() {
    let host = Host::start().await;
    let image = e2e::guest_image("tiny.img").display().to_string();
    host.cli(&["image", "import", "tiny", &image, "--format", "raw"]).await.ok();
    let create = ["vm", "create", "c1", "--image", "tiny", "--memory", "128M", "--start"];
    host.cli(&create).await.ok();
    let vm = host.vm("c1");
    vm.wait_heartbeat().await;
    let list = host.cli(&["vm", "list", "--json"]).await.ok().json();
    assert_eq!(list[0]["heartbeat"], "ok", "{list}");
    eventually("its guest says what it is", OWN, async || {
        let show = host.cli(&["vm", "show", "c1"]).await.ok();
        show.out.contains("Muster tiny guest").then_some(())
    })
    .await;
    // A script talks to the console through a pipe.
    let mut console = host.muster();
    console.args(["vm", "console", "c1", "--linger", "5"]);
    console.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = console.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"echo $((6 * 7))-is-it\n").unwrap();
    drop(input);
    let said =
        tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("42-is-it"), "{said}");
    host.cli(&["vm", "off", "c1"]).await.ok();
    host.cli(&["vm", "delete", "c1", "--yes"]).await.ok();
    assert_eq!(host.cli(&["vm", "list", "--json"]).await.ok().json(), serde_json::json!([]));
}
