//! What is printed: lists, sheets, JSON, colours, files.

use std::process::Stdio;

use serde_json::json;

use crate::fake::Answer;
use crate::fake::Fake;
use crate::program::command;
use crate::program::run;
use crate::program::spawn;
use crate::samples;

/// Times that depend on when the test runs.
fn without_times(text: &str) -> String {
    let keep = |line: &&str| !line.contains(" ago");
    text.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

#[test]
fn lists_and_sheets_are_readable_without_colour() {
    let fake = Fake::new();
    fake.on("VmMigrate", [Answer::Json(200, samples::migration_that_is_only_looked_at())]);
    for (name, line) in [
        ("vm_list", "vm list"),
        ("vm_show", "vm show web-1"),
        ("vm_disk_list", "vm disk list web-1"),
        ("vm_nic_list", "vm nic list web-1"),
        ("image_show", "image show debian"),
        ("network_list", "network list"),
        ("node_list", "node list"),
        ("node_show", "node show"),
        ("event_list", "event list"),
        ("top", "top"),
        ("node_drain", "node drain host-1 --dry-run"),
        ("cluster_evacuate", "cluster evacuate host-1 host-2 --dry-run"),
        ("cluster_balance", "cluster balance --dry-run"),
        ("vm_migrate", "vm migrate web-1 --dry-run"),
    ] {
        let ran = run(&fake, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
        assert!(!ran.stdout.contains('\u{1b}'), "{line}: {}", ran.stdout);
        insta::assert_snapshot!(name, without_times(&ran.stdout));
    }
}

#[test]
fn an_empty_list_says_what_to_do() {
    let fake = Fake::new();
    fake.on("VmList", [Answer::Json(200, json!([]))]);
    let ran = run(&fake, &["vm", "list"]);
    assert!(ran.stdout.contains("muster vm create"), "{}", ran.stdout);
    assert_eq!(run(&fake, &["vm", "list", "--json"]).stdout, "[]\n");
}

#[test]
fn json_is_what_the_daemon_wrote() {
    let fake = Fake::new();
    let odd = br#"[ ]  "#.to_vec();
    fake.on("VmList", [Answer::Raw(odd)]);
    assert_eq!(run(&fake, &["vm", "list", "--json"]).stdout, "[ ]\n");
    // Fields that this client does not know are not lost.
    let mut vm = samples::vm();
    vm["from_the_future"] = json!({ "a": 1 });
    fake.on("VmShow", [Answer::Json(200, vm.clone())]);
    assert_eq!(run(&fake, &["vm", "show", "web-1", "--json"]).stdout, format!("{vm}\n"));
}

#[test]
fn colours_are_there_only_when_wanted() {
    let fake = Fake::new();
    let colored = |args: &[&str]| run(&fake, args).stdout.contains('\u{1b}');
    assert!(!colored(&["vm", "list"]));
    assert!(colored(&["vm", "list", "--color", "always"]));
    assert!(!colored(&["vm", "list", "--color", "never"]));
    assert!(colored(&["vm", "show", "web-1", "--color", "always"]));
}

#[test]
fn a_guest_cannot_write_to_the_terminal_by_its_facts() {
    let fake = Fake::new();
    let mut vm = samples::vm();
    vm["guest"]["hostname"] = json!("\u{1b}]0;owned\u{7}\u{9b}2J\r\nphase  off");
    vm["guest"]["filesystems"][0]["mountpoint"] = json!("/\u{1b}[2J");
    vm["note"] = json!("\u{1b}[31mred");
    let failure = json!({
        "kind": "failed", "code": "x", "message": "\u{1b}[2Jgone", "hint": "\u{1b}[2J"
    });
    fake.on("VmShow", [Answer::Json(200, vm)])
        .on("EventList", [Answer::Json(200, json!([samples::event(1, "a\u{1b}[2Jb\nc")]))])
        .on("VmStart", [Answer::Json(500, failure)]);
    for line in ["vm show web-1", "event list", "vm start web-1"] {
        let ran = run(&fake, &line.split(' ').collect::<Vec<_>>());
        let all = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!all.contains(['\u{1b}', '\u{9b}', '\u{7}', '\r']), "{line}: {all:?}");
        assert!(!all.contains("\nphase  off") && !all.contains("\nc"), "{line}: {all}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let fake = Fake::new();
    let many: Vec<_> = (0..5000).map(|n| samples::summary(&format!("web-{n}"), "off")).collect();
    fake.on("VmList", [Answer::Json(200, json!(many))]);
    let mut command = command(&fake);
    let mut child =
        command.args(["vm", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_screenshot_is_written_whole_or_not_at_all() {
    let fake = Fake::new();
    let folder = fake.folder.path();
    assert_eq!(run(&fake, &["vm", "screenshot", "web-1"]).code, 0);
    assert_eq!(std::fs::read(folder.join("web-1.png")).unwrap(), b"\x89PNG picture");
    let ran = run(&fake, &["vm", "screenshot", "web-1", "-o", "-"]);
    assert!(ran.stdout.ends_with("PNG picture"));
    assert_eq!(run(&fake, &["vm", "screenshot", "web-1", "-o", "none/a.png"]).code, 1);
    std::fs::create_dir(folder.join("taken")).unwrap();
    assert_eq!(run(&fake, &["vm", "screenshot", "web-1", "-o", "taken"]).code, 1);
    let left: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_thaw_that_came_too_late_is_told() {
    let ran = run(&Fake::new(), &["vm", "thaw", "web-1"]);
    assert_eq!(ran.stdout, "thawed; a copy made meanwhile is as good as after a power cut\n");
}

#[test]
fn a_token_secret_stands_alone_on_standard_output() {
    let fake = Fake::new();
    let ran = run(&fake, &["token", "create", "ci", "--role", "operator", "--valid", "7d"]);
    assert_eq!((ran.code, &*ran.stdout), (0, "mst_secret\n"));
    assert!(ran.stderr.contains("shown this once"), "{}", ran.stderr);
    assert_eq!(fake.call("TokenCreate").body["valid_s"], 604_800);
}

#[test]
fn events_are_followed_without_a_gap() {
    let fake = Fake::new();
    let running = crate::program::start(&fake, &["event", "list", "--follow", "--json"], "");
    fake.wait_for("EventStream", 1);
    assert_eq!(fake.call("EventStream").query, "after=41");
    // The stream hangs after its event.
    running.signal("-INT");
    assert_eq!(running.end().code, 130);
}

#[test]
fn man_pages_and_completions_are_made() {
    let fake = Fake::new();
    assert_eq!(run(&fake, &["util", "man", "man"]).code, 0);
    let page = fake.folder.path().join("man/muster-vm-create.1");
    assert!(std::fs::read_to_string(page).unwrap().contains("Examples"));
    let root = std::fs::read_to_string(fake.folder.path().join("man/muster.1")).unwrap();
    assert!(root.contains("Exit codes"), "{root}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        for fixed in [false, true] {
            let mut args = vec!["util", "completions", shell];
            if fixed {
                args.push("--static");
            }
            let ran = run(&fake, &args);
            assert_eq!(ran.code, 0, "{shell}: {}", ran.stderr);
            assert!(ran.stdout.contains("muster"), "{shell}");
        }
    }
    let mut bash = std::process::Command::new("bash");
    bash.args(["-n", "-c", &run(&fake, &["util", "completions", "bash"]).stdout]);
    assert_eq!(spawn(bash, b"").end().code, 0);
    assert!(fake.calls().is_empty(), "no daemon is needed for that");
}
