//! Every operation of the API can be reached from a verb.

use api::endpoint::TABLE;

use crate::fake::Answer;
use crate::fake::Fake;
use crate::program::run;
use crate::program::start;
use crate::samples;

/// Which command calls which endpoint. A new row of the API's table needs one here.
const VERBS: &[(&str, &str)] = &[
    ("Version", "version"),
    ("OpenApi", "util openapi"),
    ("WhoAmI", "whoami"),
    ("Metrics", "metrics"),
    ("VmList", "vm list"),
    ("VmCreate", "vm create web-1"),
    ("VmFirstBoot", "vm create web-1 --user anna --show-first-boot"),
    ("VmShow", "vm show web-1"),
    ("VmMetrics", "vm metrics web-1"),
    ("VmHistory", "vm history web-1"),
    ("NodeMetrics", "node metrics host-1"),
    ("VmSet", "vm set web-1 --cpus 2"),
    ("VmDelete", "vm delete web-1"),
    ("VmUndelete", "vm undelete web-1"),
    ("VmUpgrade", "vm upgrade web-1 --yes"),
    ("VmRegister", "vm register /var/lib/muster/vms/1"),
    ("VmStart", "vm start web-1"),
    ("VmShutdown", "vm shutdown web-1"),
    ("VmOff", "vm off web-1"),
    ("VmPause", "vm pause web-1"),
    ("VmResume", "vm resume web-1"),
    ("VmSave", "vm save web-1"),
    ("VmReset", "vm reset web-1"),
    ("VmFreeze", "vm freeze web-1"),
    ("VmThaw", "vm thaw web-1"),
    ("VmScreenshot", "vm screenshot web-1"),
    ("VmSerial", "vm console web-1"),
    ("DiskAdd", "vm disk add web-1 --size 1G"),
    ("DiskRemove", "vm disk remove web-1 data --yes"),
    ("DiskResize", "vm disk resize web-1 data 2G"),
    ("NicAdd", "vm nic add web-1"),
    ("NicRemove", "vm nic remove web-1 net0"),
    ("NicSet", "vm nic set web-1 net0 --link off"),
    ("ImageList", "image list"),
    ("ImageImport", "image import debian https://example.org/a.qcow2"),
    ("ImageShow", "image show debian"),
    ("ImageDelete", "image delete debian --yes"),
    ("OpList", "op list"),
    ("OpShow", "op show 1"),
    ("OpCancel", "op cancel 1"),
    ("EventList", "event list"),
    ("NodeList", "node list"),
    ("NodeShow", "node show host-1"),
    ("NodeEvict", "cluster evict host-1"),
    ("ClusterShow", "cluster status"),
    ("ClusterCreate", "cluster create lab"),
    ("ClusterJoin", "cluster join mjt_x"),
    ("ClusterLeave", "cluster leave"),
    ("ClusterForce", "cluster force-quorum --lost host-2 --typed lab"),
    ("ClusterValidate", "cluster validate"),
    ("ValidationShow", "cluster validate --last"),
    ("JoinTokenList", "cluster token --list"),
    ("JoinTokenCreate", "cluster token"),
    ("JoinTokenRevoke", "cluster token --revoke 1"),
    ("WitnessShow", "cluster witness show"),
    ("WitnessSet", "cluster witness set --directory /srv/witness"),
    ("WitnessRemove", "cluster witness remove"),
    ("NodeFencing", "node fencing host-1"),
    ("NodeFence", "node fence host-1 --typed host-1"),
    ("NodeConfirmOff", "cluster confirm-off host-1 --typed host-1"),
    ("FenceDeviceList", "fence device list"),
    (
        "FenceDeviceAdd",
        "fence device add bmc-1 --agent fence_ipmilan --node host-1=2 --option ip=192.0.2.1",
    ),
    ("FenceDeviceShow", "fence device show bmc-1"),
    ("FenceDeviceTest", "fence device test bmc-1"),
    ("FenceDeviceRemove", "fence device remove bmc-1"),
    ("NodeSetMode", "node standby host-1"),
    ("NodePlan", "node drain host-1 --dry-run"),
    ("EvacuationPlan", "cluster evacuate host-1 host-2 --dry-run"),
    ("Evacuate", "cluster evacuate host-1 host-2"),
    ("BalanceShow", "cluster balance --dry-run"),
    ("BalanceSet", "cluster balance --automatic on"),
    ("Capacity", "cluster capacity"),
    ("ClusterCpu", "cluster cpu"),
    ("ClusterNetworkList", "cluster network list"),
    ("ClusterNetworkSet", "cluster network set 10.90.2.0/24 --name fast --migration 1"),
    ("ClusterNetworkForget", "cluster network forget fast"),
    ("MigrationStrict", "cluster network strict on"),
    ("RuleList", "rule list"),
    ("RuleCreate", "rule create apart --tag web --apart"),
    ("RuleDelete", "rule delete apart"),
    ("VmMigrate", "vm migrate web-1 --to host-2"),
    ("VmMoveStorage", "vm move-storage web-1 --to fast"),
    ("VmMove", "vm move web-1 --to host-2"),
    ("NetworkList", "network list"),
    ("NetworkCreate", "network create lab --subnet 10.78.0.0/24"),
    ("NetworkShow", "network show nat"),
    ("NetworkDelete", "network delete lab"),
    ("VolumeList", "volume list"),
    ("VolumeCreate", "volume create shared --share /srv/muster"),
    ("VolumeShow", "volume show shared"),
    ("VolumeDelete", "volume delete shared"),
    ("VolumeRelease", "volume release fast"),
    ("VolumeMove", "volume move fast --to host-2"),
    ("VolumeMaintenance", "volume maintenance fast on"),
    ("VolumeCheck", "volume check fast"),
    ("DiskList", "disk list"),
    ("TokenList", "token list"),
    ("TokenCreate", "token create ci"),
    ("TokenRevoke", "token revoke ci"),
    ("SessionList", "session list"),
    ("SessionEnd", "session end 1"),
    ("WebLinkCreate", "web"),
];

/// Those that do not end by themselves; their own tests end them.
const ENDLESS: &[(&str, &str)] =
    &[("VmVnc", "vm console web-1 --vnc"), ("EventStream", "event list --follow")];

/// Called by every verb that waits; its own tests stand in `outcome`.
const ALONG: &[&str] = &["OpWait"];

/// What only a browser has a use for: it turns a token or a link into a cookie, and the command line
/// shows the token itself.
const BROWSERS: &[&str] = &["SessionBegin"];

#[test]
fn the_map_names_each_endpoint_once() {
    let named =
        VERBS.iter().chain(ENDLESS).map(|(id, _)| *id).chain(ALONG.iter().chain(BROWSERS).copied());
    let mut named: Vec<_> = named.collect();
    let mut table: Vec<_> = TABLE.iter().map(|info| info.id).collect();
    named.sort_unstable();
    table.sort_unstable();
    assert_eq!(named, table, "each endpoint needs a verb, and a line in this map");
}

#[test]
fn each_verb_calls_its_endpoint_and_reads_the_answer() {
    for (id, line) in VERBS {
        for json in [false, true] {
            let fake = Fake::new();
            if *id == "ClusterForce" {
                // The verb waits until what is given up is seen to be.
                let mut after = samples::cluster();
                after["nodes"][1]["part"] = "lost".into();
                fake.on("ClusterShow", [Answer::Json(200, after)]);
            }
            let mut args: Vec<_> = line.split(' ').collect();
            if json {
                args.push("--json");
            }
            let ran = run(&fake, &args);
            let cancel = *id == "OpCancel";
            assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
            assert!(fake.ids().contains(id), "{line} called {:?}", fake.ids());
            let quiet = json && matches!(*id, "VmSerial");
            if json && !quiet {
                let value: Result<serde_json::Value, _> = serde_json::from_str(&ran.stdout);
                assert!(value.is_ok(), "{line}: not one JSON document: {}", ran.stdout);
            }
            assert!(!ran.stdout.is_empty() || cancel, "{line}: nothing on standard output");
        }
    }
}

#[test]
fn endless_verbs_call_their_endpoint() {
    for (id, line) in ENDLESS {
        let fake = Fake::new();
        let args: Vec<_> = line.split(' ').collect();
        let running = start(&fake, &args, "");
        fake.wait_for(id, 1);
        running.signal("-INT");
        assert_eq!(running.end().code, 130, "{line}");
    }
}
