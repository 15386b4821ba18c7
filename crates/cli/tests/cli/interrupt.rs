//! Ctrl-C while a verb waits.

use crate::fake::Answer;
use crate::fake::Fake;
use crate::program::start;
use crate::samples;
use crate::samples::OP;

fn waiting(verb: &'static str, endpoint: &'static str, wait: Vec<Answer>) -> Fake {
    let fake = Fake::new();
    fake.on(endpoint, [Answer::Json(200, samples::running(verb))]).on("OpWait", wait);
    fake
}

#[test]
fn an_import_is_stopped() {
    let fake = waiting(
        "image_import",
        "ImageImport",
        vec![Answer::Hang, Answer::Json(200, samples::cancelled("image_import"))],
    );
    fake.on("OpCancel", [Answer::Json(200, samples::running("image_import"))]);
    let running = start(&fake, &["image", "import", "debian", "/a.qcow2"], "");
    fake.wait_for("OpWait", 1);
    running.signal("-INT");
    let ran = running.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert_eq!(fake.call("OpCancel").values, [OP]);
    assert!(ran.stderr.contains("stopping it; press Ctrl-C again"), "{}", ran.stderr);
    assert!(ran.stderr.contains("error: image_import web-1: stopped"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_stopped_any_more_is_done_and_130() {
    let fake = waiting(
        "vm_save",
        "VmSave",
        vec![Answer::Hang, Answer::Json(200, samples::done("vm_save"))],
    );
    fake.on("OpCancel", [samples::error(409, "conflict")]);
    let running = start(&fake, &["vm", "save", "web-1"], "");
    fake.wait_for("OpWait", 1);
    running.signal("-INT");
    let ran = running.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("done before it could be stopped"), "{}", ran.stderr);
}

#[test]
fn a_second_ctrl_c_leaves_it_to_itself() {
    let fake = waiting("vm_shutdown", "VmShutdown", vec![Answer::Hang]);
    fake.on("OpCancel", [Answer::Json(200, samples::running("vm_shutdown"))]);
    let running = start(&fake, &["vm", "shutdown", "web-1"], "");
    fake.wait_for("OpWait", 1);
    running.signal("-INT");
    fake.wait_for("OpWait", 2);
    running.signal("-INT");
    let ran = running.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("muster op wait {OP}")), "{}", ran.stderr);
}

#[test]
fn a_second_ctrl_c_works_while_the_daemon_does_not_answer_the_first() {
    let fake = waiting("vm_save", "VmSave", vec![Answer::Hang]);
    fake.on("OpCancel", [Answer::Hang]);
    let running = start(&fake, &["vm", "save", "web-1"], "");
    fake.wait_for("OpWait", 1);
    running.signal("-INT");
    fake.wait_for("OpCancel", 1);
    running.signal("-INT");
    assert_eq!(running.end().code, 130);
}

#[test]
fn a_start_is_left_to_itself_at_once() {
    let fake = waiting("vm_start", "VmStart", vec![Answer::Hang]);
    let running = start(&fake, &["vm", "start", "web-1", "--json"], "");
    fake.wait_for("OpWait", 1);
    running.signal("-INT");
    let ran = running.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(!fake.ids().contains(&"OpCancel"));
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["code"], "interrupted");
    assert_eq!(error["error"]["hint"], format!("see how it ends: muster op wait {OP}"));
}

#[test]
fn between_two_steps_nothing_more_is_begun() {
    let fake = Fake::new();
    fake.on("VmCreate", [Answer::Json(200, samples::running("vm_create"))])
        .on("OpWait", [samples::answer("OpWait")])
        .on("VmStart", [Answer::Hang]);
    let running = start(&fake, &["vm", "create", "web-1", "--image", "debian", "--start"], "");
    fake.wait_for("VmStart", 1);
    running.signal("-INT");
    let ran = running.end();
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("interrupted between two steps"), "{}", ran.stderr);
    assert!(ran.stderr.contains("muster op list"), "{}", ran.stderr);
}
