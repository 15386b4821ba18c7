//! Exit codes, messages and hints; progress without a terminal.

use serde_json::Value;

use crate::fake::Answer;
use crate::fake::Fake;
use crate::program::run;
use crate::samples;
use crate::samples::OP;

fn ok(value: Value) -> Answer {
    Answer::Json(200, value)
}

#[test]
fn the_kind_of_an_error_decides_the_exit_code() {
    let cases = [
        (400, "bad_request", 2),
        (401, "unauthenticated", 4),
        (403, "forbidden", 4),
        (404, "not_found", 3),
        (409, "conflict", 5),
        (413, "too_large", 2),
        (500, "failed", 1),
        (503, "unavailable", 6),
    ];
    for (status, kind, code) in cases {
        let fake = Fake::new();
        fake.on("VmShow", [samples::error(status, kind)]);
        let ran = run(&fake, &["vm", "show", "web-1"]);
        assert_eq!(ran.code, code, "{kind}");
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr, "error: it does not work\nhint: do this instead\n");
        let ran = run(&fake, &["vm", "show", "web-1", "--json"]);
        assert_eq!(ran.code, code, "{kind}");
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["error"]["kind"], kind);
        assert_eq!(error["error"]["hint"], "do this instead");
    }
}

#[test]
fn a_wrong_command_line_is_2_and_json_where_asked() {
    let fake = Fake::new();
    for line in ["vm start", "vm create ../etc", "vm create web-1 --memory lots", "colour"] {
        let args: Vec<_> = line.split(' ').collect();
        let ran = run(&fake, &args);
        assert_eq!(ran.code, 2, "{line}: {}", ran.stderr);
        let ran = run(&fake, &[&args[..], &["--json"]].concat());
        assert_eq!(ran.code, 2, "{line}");
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["error"]["kind"], "bad_request", "{line}");
    }
    assert!(fake.calls().is_empty());
}

#[test]
fn no_daemon_is_6_with_a_next_step() {
    let fake = Fake::new();
    std::fs::remove_file(fake.socket()).unwrap();
    let ran = run(&fake, &["vm", "list"]);
    assert_eq!(ran.code, 6);
    assert!(ran.stderr.contains("hint: start it (systemctl start muster)"), "{}", ran.stderr);
}

#[test]
fn a_verb_waits_and_tells_progress_in_lines() {
    let fake = Fake::new();
    fake.on("VmSave", [ok(samples::running("vm_save"))]).on(
        "OpWait",
        [
            ok(samples::at("vm_save", "stopping", 0, 0)),
            ok(samples::at("vm_save", "writing memory", 1 << 29, 1 << 30)),
            ok(samples::at("vm_save", "writing memory", (1 << 29) + 4096, 1 << 30)),
            ok(samples::at("vm_save", "writing memory", 1 << 30, 1 << 30)),
            ok(samples::done("vm_save")),
        ],
    );
    let ran = run(&fake, &["vm", "save", "web-1"]);
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stdout, "save web-1: done (2.5 s)\n");
    assert_eq!(
        ran.stderr,
        "save web-1: stopping\n\
         save web-1: writing memory 50% (512 MiB of 1 GiB)\n\
         save web-1: writing memory 100% (1 GiB of 1 GiB)\n"
    );
    assert!(
        fake.calls().iter().all(|call| call.id != "OpWait" || call.query == "timeout_ms=20000")
    );
    let quiet = run(&fake, &["vm", "save", "web-1", "--quiet"]);
    assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (0, "", ""));
}

#[test]
fn an_operation_that_fails_is_1_with_its_hint() {
    let fake = Fake::new();
    fake.on("VmStart", [ok(samples::running("vm_start"))])
        .on("OpWait", [ok(samples::failed("vm_start"))]);
    let ran = run(&fake, &["vm", "start", "web-1"]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "error: start web-1: the disk is full\nhint: make room on /var/lib/muster\n"
    );
    let ran = run(&fake, &["vm", "start", "web-1", "--json"]);
    let op: Value = serde_json::from_str(&ran.stdout).unwrap();
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((ran.code, &op["state"]), (1, &Value::from("failed")));
    assert_eq!(error["error"]["code"], "no_space");
}

#[test]
fn an_operation_that_somebody_stopped_is_1() {
    let fake = Fake::new();
    fake.on("VmSave", [ok(samples::running("vm_save"))])
        .on("OpWait", [ok(samples::cancelled("vm_save"))]);
    let ran = run(&fake, &["vm", "save", "web-1"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("somebody stopped it"), "{}", ran.stderr);
}

#[test]
fn no_wait_prints_the_id_and_does_not_wait() {
    let fake = Fake::new();
    fake.on("VmStart", [ok(samples::running("vm_start"))]);
    let ran = run(&fake, &["vm", "start", "web-1", "--no-wait"]);
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stdout.lines().next(), Some(OP));
    assert_eq!(fake.ids(), ["VmStart"]);
}

#[test]
fn a_daemon_that_restarts_is_waited_for() {
    let fake = Fake::new();
    fake.on("VmStart", [ok(samples::running("vm_start"))])
        .on("OpWait", [Answer::HangUp, Answer::HangUp, ok(samples::done("vm_start"))]);
    let ran = run(&fake, &["vm", "start", "web-1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("waiting for the daemon").count(), 1, "{}", ran.stderr);
}

#[test]
fn one_of_several_that_is_refused_does_not_stop_the_others() {
    let fake = Fake::new();
    fake.on("VmStart", [samples::error(409, "conflict"), ok(samples::running("vm_start"))])
        .on("OpWait", [ok(samples::done("vm_start"))]);
    let ran = run(&fake, &["vm", "start", "web-1", "web-2"]);
    assert_eq!(ran.code, 5);
    assert_eq!(ran.stdout, "start web-1: done (2.5 s)\n");
    assert_eq!(fake.ids(), ["VmStart", "VmStart", "OpWait"]);
}

#[test]
fn nonsense_from_the_server_is_an_error_and_no_panic() {
    for nonsense in [&b"{"[..], b"null", b"[1,2", b"\xff\xfe", b"{\"id\": 7}"] {
        let fake = Fake::new();
        fake.on("VmShow", [Answer::Raw(nonsense.to_vec())])
            .on("VmStart", [Answer::Raw(nonsense.to_vec())]);
        for verb in ["show", "start"] {
            let ran = run(&fake, &["vm", verb, "web-1"]);
            assert_eq!(ran.code, 1, "{}", ran.stderr);
            assert!(ran.stderr.contains("cannot be read"), "{}", ran.stderr);
        }
    }
}

#[test]
fn a_validation_fails_where_something_failed_and_warnings_stop_nothing() {
    let fake = Fake::new();
    let ran = run(&fake, &["cluster", "validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("warn  n1 -> n2 on 10.0.0.0/24: packets"), "{ran:?}");
    assert!(ran.stdout.contains("-> set one MTU"), "{ran:?}");
    fake.on("ValidationShow", [ok(samples::validation(&["fail", "pass"]))]);
    let ran = run(&fake, &["cluster", "validate", "--check", "mtu", "--node", "n1"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("FAIL  n1 -> n2") && ran.stderr.contains("hint: "), "{ran:?}");
    let asked = fake.calls().into_iter().rfind(|call| call.id == "ClusterValidate").unwrap();
    assert_eq!(asked.body, serde_json::json!({ "checks": ["mtu"], "nodes": ["n1"] }));
    // JSON is the report alone, failed or not.
    let ran = run(&fake, &["cluster", "validate", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &report["failed"]), (1, &1.into()));
    // A report of another time is not the one that was asked for: the daemon started anew.
    let mut other = samples::validation(&["pass"]);
    other["report"]["started"] = 7.into();
    fake.on("ValidationShow", [ok(other)]);
    let ran = run(&fake, &["cluster", "validate"]);
    assert!(ran.code == 1 && ran.stderr.contains("without a report"), "{ran:?}");
}

#[test]
fn a_report_is_written_in_the_form_that_its_name_says() {
    let fake = Fake::new();
    let files = [("a.txt", "mtu"), ("a.json", "\"findings\""), ("a.html", "<!DOCTYPE html>")];
    for (name, word) in files {
        let ran = run(&fake, &["cluster", "validate", "-o", name]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains(&format!("{name} written")), "{ran:?}");
        let text = std::fs::read_to_string(fake.folder.path().join(name)).unwrap();
        assert!(text.contains(word), "{text}");
    }
    let before = fake.calls().len();
    let ran = run(&fake, &["cluster", "validate", "-o", "a.doc"]);
    assert!(ran.code == 2 && ran.stderr.contains(".html"), "{ran:?}");
    assert_eq!(fake.calls().len(), before, "nothing is asked for what cannot be written");
    let ran = run(&fake, &["cluster", "validate", "--check", "mut"]);
    assert!(ran.code == 2 && ran.stderr.contains("latency"), "{ran:?}");
}
