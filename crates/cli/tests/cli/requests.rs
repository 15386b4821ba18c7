//! What is asked of the daemon: bodies, order, and what is not asked without a yes.

use serde_json::Value;
use serde_json::json;

use crate::fake::Answer;
use crate::fake::Fake;
use crate::program::run;
use crate::samples;
use crate::samples::VM;

fn ok(value: Value) -> Answer {
    Answer::Json(200, value)
}

#[test]
fn a_plain_machine_has_an_image_and_an_adapter() {
    let fake = Fake::new();
    let ran = run(&fake, &["vm", "create", "web-1", "--image", "debian"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let body = fake.call("VmCreate").body;
    assert_eq!(body["disks"][0]["image"], "debian");
    assert_eq!(body["disks"].as_array().unwrap().len(), 1);
    assert_eq!(body["nics"], json!([{ "network": "nat" }]));
    assert_eq!((&body["cpus"], &body["memory"]), (&json!(1), &json!(1 << 30)));
    assert_eq!(body["cloud_init"], Value::Null);
    assert!(ran.stderr.contains("muster vm start web-1"), "{}", ran.stderr);
}

#[test]
fn every_option_of_create_arrives() {
    let fake = Fake::new();
    std::fs::write(fake.folder.path().join("key.pub"), "ssh-ed25519 AAAA anna\n").unwrap();
    let line = "vm create web-1 --image debian --disk-size 20G --disk size=1G,name=data \
                --disk image=tools,ro --cpus 2 --cpus-max 4 --memory 1G --memory-max 4G \
                --network lan --nic network=nat,mac=52:54:00:12:34:56,address=10.77.0.9 --uefi \
                --legacy --stop-on-crash --tag web --key role=web --description text --user anna \
                --ssh-key key.pub --password-hash $6$x --hostname www \
                --fixed-address net0=10.0.0.2/24,gateway=10.0.0.1";
    let ran = run(&fake, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let body = fake.call("VmCreate").body;
    insta::assert_snapshot!(serde_json::to_string_pretty(&body).unwrap());
}

#[test]
fn create_and_start_takes_the_machine_by_its_id() {
    let fake = Fake::new();
    fake.on("VmCreate", [ok(samples::running("vm_create"))])
        .on("OpWait", [ok(samples::done("vm_create"))]);
    let ran = run(&fake, &["vm", "create", "web-1", "--no-network", "--start"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(fake.ids(), ["VmCreate", "OpWait", "VmStart"]);
    assert_eq!(fake.call("VmStart").values, [VM]);
    assert_eq!(fake.call("VmCreate").body["nics"], json!([]));
}

#[test]
fn set_sends_only_what_was_named() {
    let fake = Fake::new();
    let line = "vm set web-1 --memory 2G --service time-sync=off --key role= --if-revision 7";
    assert_eq!(run(&fake, &line.split(' ').collect::<Vec<_>>()).code, 0);
    let call = fake.call("VmSet");
    assert_eq!(call.query, "if_revision=7");
    assert_eq!(
        call.body,
        json!({
            "memory": 2_147_483_648_u64, "services": { "time_sync": false }, "keys": { "role": "" }
        })
    );
    let ran = run(&fake, &["vm", "set", "web-1"]);
    assert_eq!(ran.code, 2);
    assert_eq!(fake.ids(), ["VmSet"]);
}

#[test]
fn what_is_lost_for_good_needs_a_yes() {
    for line in ["vm delete web-1 --purge", "vm disk remove web-1 data", "image delete debian"] {
        let fake = Fake::new();
        let args: Vec<_> = line.split(' ').collect();
        let ran = run(&fake, &args);
        assert_eq!(ran.code, 2, "{line}");
        assert!(ran.stderr.contains("hint: add --yes"), "{}", ran.stderr);
        assert!(ran.stderr.contains("for good"), "{}", ran.stderr);
        assert!(fake.calls().is_empty(), "{line}");
        let ran = run(&fake, &[&args[..], &["--yes"]].concat());
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    }
    for line in ["vm off web-1", "vm reset web-1", "token revoke ci", "vm delete web-1"] {
        let fake = Fake::new();
        let ran = run(&fake, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    }
}

#[test]
fn purge_goes_through_the_recycle_bin_and_by_the_id() {
    let fake = Fake::new();
    let line = ["vm", "delete", "web-1", "--purge", "--yes"];
    assert_eq!(run(&fake, &line).code, 0);
    let calls = fake.calls();
    assert_eq!(fake.ids(), ["VmShow", "VmDelete", "VmDelete"]);
    assert_eq!((&*calls[1].query, &*calls[1].values[0]), ("purge=false", VM));
    assert_eq!((&*calls[2].query, &*calls[2].values[0]), ("purge=true", VM));

    let fake = Fake::new();
    fake.on("VmShow", [samples::error(404, "not_found")])
        .on("VmList", [ok(json!([samples::summary("Web-1", "deleted")]))]);
    assert_eq!(run(&fake, &line).code, 0);
    assert_eq!(fake.ids(), ["VmShow", "VmList", "VmDelete"]);
    assert_eq!(fake.call("VmDelete").query, "purge=true");

    let two = json!([samples::summary("web-1", "deleted"), samples::summary("web-1", "deleted")]);
    fake.on("VmList", [ok(two)]);
    let ran = run(&fake, &line);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("give the id"), "{}", ran.stderr);
}

#[test]
fn an_import_names_the_file_by_its_whole_path() {
    let fake = Fake::new();
    assert_eq!(run(&fake, &["image", "import", "debian", "a.qcow2"]).code, 0);
    let here = fake.folder.path().canonicalize().unwrap();
    let source = fake.call("ImageImport").body["source"].clone();
    assert_eq!(source, json!({ "from": "file", "path": here.join("a.qcow2") }));
}

#[test]
fn another_machine_needs_fingerprint_and_token() {
    let fake = Fake::new();
    let print = "ab".repeat(32);
    let cases: [(&[&str], &str); 4] = [
        (&["--host", "h:1", "vm", "list"], "fingerprint"),
        (&["--host", "h:1", "--fingerprint", "xyz", "vm", "list"], "64 hexadecimal"),
        (&["--host", "h:1", "--fingerprint", &print, "vm", "list"], "token"),
        (
            &["--host", "h:1", "--fingerprint", &print, "--token-file", "none", "vm", "list"],
            "cannot read",
        ),
    ];
    for (args, word) in cases {
        let mut command = crate::program::command(&fake);
        command.env_remove("MUSTER_SOCKET").args(args);
        let ran = crate::program::spawn(command, b"").end();
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}
