//! What the scripted daemon answers if a test says nothing else.

use serde_json::Value;
use serde_json::json;

use crate::fake::Answer;

pub(crate) const VM: &str = "0191f6a0-7c1e-7d2a-8f00-000000000001";
pub(crate) const OP: &str = "0191f6a0-7c1e-7d2a-8f00-000000000002";
const OTHER: &str = "0191f6a0-7c1e-7d2a-8f00-000000000003";
const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// An operation that runs.
pub(crate) fn running(verb: &str) -> Value {
    json!({
        "id": OP, "verb": verb, "title": format!("{} web-1", verb.trim_start_matches("vm_")),
        "target": "web-1", "vm": VM, "image": null, "actor": "root",
        "begun": 1_000_000, "deadline": 2_000_000, "state": "running", "cancel_requested": false,
        "progress": null
    })
}

/// An operation that is at a step.
pub(crate) fn at(verb: &str, step: &str, done: u64, total: u64) -> Value {
    let mut op = running(verb);
    op["progress"] = json!({ "step": step, "done": done, "total": total });
    op
}

/// An operation that has ended well.
pub(crate) fn done(verb: &str) -> Value {
    let mut op = running(verb);
    op.as_object_mut().unwrap().remove("cancel_requested");
    op["state"] = json!("done");
    op["at"] = json!(1_002_500);
    op
}

/// An operation that was stopped.
pub(crate) fn cancelled(verb: &str) -> Value {
    let mut op = done(verb);
    op["state"] = json!("cancelled");
    op
}

/// An operation that has failed.
pub(crate) fn failed(verb: &str) -> Value {
    let mut op = done(verb);
    op["state"] = json!("failed");
    op["failure"] = json!({
        "code": "no_space", "message": "the disk is full", "hint": "make room on /var/lib/muster"
    });
    op
}

fn join_token() -> Value {
    json!({ "id": OTHER, "created": 1_000_000, "expires": 2_000_000, "uses": 3, "by": "root" })
}

/// A cluster of three, one of which is silent.
pub(crate) fn cluster() -> Value {
    let node = |n: u32, part: &str, reachable: bool| {
        json!({
            "id": format!("0191f6a0-7c1e-7d2a-8f00-00000000010{n}"), "name": format!("host-{n}"),
            "part": part, "reachable": reachable, "behind": reachable.then_some(0),
            "addresses": [format!("10.0.0.{n}:7444")], "version": "0.1.0",
            "certificate_ends": null, "problem": null
        })
    };
    json!({
        "id": OTHER, "name": "lab", "created": 1_000_000,
        "node": "0191f6a0-7c1e-7d2a-8f00-000000000101", "health": "degraded",
        "words": [
            "host-1 leads, since election 4.",
            "3 nodes vote (host-1, host-2, host-3), 2 of them answer; 2 must agree to a change.",
            "No further voter may be lost. Bring host-3 back.",
        ],
        "leader": "0191f6a0-7c1e-7d2a-8f00-000000000101", "term": 4, "voters": 3, "majority": 2,
        "may_lose": 0,
        "nodes": [node(1, "leader", true), node(2, "voter", true), node(3, "voter", false)]
    })
}

/// An error.
pub(crate) fn error(status: u16, kind: &str) -> Answer {
    let error = json!({
        "kind": kind, "code": "some_code", "message": "it does not work", "hint": "do this instead"
    });
    Answer::Json(status, error)
}

/// A machine in a list.
pub(crate) fn summary(name: &str, phase: &str) -> Value {
    json!({
        "id": VM, "name": name, "phase": phase, "heartbeat": "ok", "cpus": 2,
        "memory": 1_073_741_824, "cpu_percent": 7, "addresses": ["10.77.0.2"], "node": "host-1",
        "tags": ["web"], "busy": null
    })
}

/// A machine in full.
pub(crate) fn vm() -> Value {
    json!({
        "id": VM, "name": "web-1", "phase": "running", "power": "running", "note": null,
        "node": "host-1",
        "pinned": { "config_version": 1, "machine_type": "pc-q35-10.0", "cpu_model": "qemu64" },
        "generation": 3, "revision": 7,
        "cpus": { "count": 2, "max": 4, "weight": 100, "cap_percent": null },
        "memory": { "size": 1_073_741_824, "max": 4_294_967_296_u64, "balloon": null },
        "firmware": "bios", "profile": "virtio",
        "disks": [{
            "id": OTHER, "name": "disk0", "size": 21_474_836_480_u64, "allocated": 1_310_720,
            "image": "debian", "format": "qcow2", "read_only": false
        }],
        "nics": [{
            "id": OTHER, "name": "net0", "mac": "52:54:00:12:34:56", "network": "nat",
            "reserved_address": "10.77.0.2", "addresses": ["10.77.0.2"], "link_up": true
        }],
        "services": {
            "shutdown": true, "heartbeat": true, "exchange": true, "time_sync": false,
            "backup": true
        },
        "on_crash": "restart", "description": "the web", "tags": ["web"],
        "keys": { "role": "web" }, "cloud_init": null, "saved": null, "op": null,
        "last_exit": null, "created": 1_000_000, "deleted": null,
        "run": {
            "pid": 4711, "started": 1_000_000, "accelerator": "tcg",
            "accelerator_reason": "/dev/kvm does not exist", "qemu": "10.0.2", "cpus": 2,
            "memory": 1_073_741_824, "cpu_percent": 7, "resident": 314_572_800,
            "missing_limits": ["memory.max"]
        },
        "guest": {
            "heartbeat": "ok", "agent": "7.2.0", "hostname": "web-1",
            "os": "Debian GNU/Linux 12 (bookworm)", "kernel": "6.1.0", "timezone": "UTC",
            "users": ["anna"],
            "filesystems": [{
                "mountpoint": "/", "kind": "ext4", "total": 21_474_836_480_u64,
                "used": 1_073_741_824
            }],
            "frozen": false
        }
    })
}

fn node() -> Value {
    json!({
        "id": OTHER, "name": "host-1", "version": "0.1.0", "started": 1_000_000, "cpus": 2,
        "memory": 8_589_934_592_u64, "memory_available": 4_294_967_296_u64,
        "memory_promised": 1_073_741_824, "storage": 107_374_182_400_u64,
        "storage_available": 53_687_091_200_u64, "vms_running": 1, "qemu": "10.0.2",
        "accelerator": "tcg", "accelerator_reason": "/dev/kvm does not exist",
        "missing_limits": [], "problems": [], "tls_fingerprint": SHA,
        "tls_address": "0.0.0.0:7443",
        "reconcilers": [{ "name": "networks", "last_run": 1_000_000, "result": "ok" }]
    })
}

fn image() -> Value {
    json!({
        "id": OTHER, "name": "debian", "source": { "from": "file", "path": "/srv/debian.qcow2" },
        "format": "qcow2", "state": "ready", "virtual_size": 2_147_483_648_u64,
        "file_size": 1_073_741_824, "sha256": SHA, "created": 1_000_000, "used_by": ["web-1"], "place": { "on": "node", "node": OTHER }
    })
}

fn volume() -> Value {
    json!({
        "id": OTHER, "name": "shared", "kind": "share", "path": "/srv/muster",
        "created": 1_000_000, "used_by": ["web-1"], "size": 1_000_000, "free": 500_000,
        "problem": null
    })
}

/// A volume on a LUN that one of two nodes coordinates.
pub(crate) fn volume_on_lun() -> Value {
    json!({
        "id": OTHER, "name": "fast", "kind": "lun", "path": "/muster/volumes/fast",
        "lun": "naa.6001", "fs": "xfs", "uuid": OTHER, "fences": true,
        "created": 1_000_000, "used_by": [], "size": 1_000_000, "free": 500_000, "problem": null,
        "coordination": {
            "epoch": 3, "coordinator": "host-2", "wanted": null, "maintenance": false,
            "phase": "ready", "nodes": [
                { "node": "host-1", "access": "none", "path": true, "why": "it is not mounted",
                  "since": null },
                { "node": "host-2", "access": "direct", "path": true, "why": null,
                  "since": null }
            ]
        }
    })
}

fn disk() -> Value {
    json!({
        "lun": "naa.6001", "size": 1_073_741_824_u64, "volume": "fast", "problem": null, "nodes": [
            { "node": "host-1", "paths": ["/dev/sdb"], "holds": "nothing", "read_only": false,
              "fences": true },
            { "node": "host-2", "paths": [], "holds": null, "read_only": false, "fences": false }
        ]
    })
}

fn network() -> Value {
    json!({
        "id": OTHER, "name": "nat", "kind": "nat", "subnet": "10.77.0.0/24", "created": 1_000_000,
        "adapters": ["web-1 net0"], "problem": null
    })
}

fn token() -> Value {
    json!({
        "id": OTHER, "name": "ci", "role": "operator", "created": 1_000_000, "expires": null
    })
}

/// An event.
pub(crate) fn event(seq: u64, text: &str) -> Value {
    json!({
        "seq": seq, "at": 1_000_000, "kind": "vm.power", "severity": "info",
        "subject": { "type": "vm", "id": VM, "name": "web-1" }, "text": text, "actor": "root"
    })
}

/// A fence device.
fn fence_device() -> Value {
    json!({
        "id": OTHER, "name": "bmc-1", "agent": "fence_ipmilan", "options": { "ip": "192.0.2.1" },
        "secrets": ["password"], "nodes": { "host-1": "2" }, "level": 1, "timeout_s": 20,
        "created": 1_000_000
    })
}

/// The fencing of a node that is fenced.
fn fencing() -> Value {
    json!({
        "node": OTHER, "name": "host-1", "epoch": 3,
        "certainty": { "kind": "self_fencing", "watchdog": true, "takeover_ms": 36_250 },
        "wish": null, "failure": null,
        "fenced": { "at": 1_000_000, "by": "lease_over", "waited": 36_300 }
    })
}

/// Where the machines of a node go.
fn plan() -> Value {
    json!({
        "node": "host-1", "local": ["db-1"], "moving": [],
        "steps": [{ "id": OTHER, "vm": "web-1", "to": "host-2", "start": true }],
        "unplaced": [{ "vm": "big-1", "why": "no node that it may run on has the memory" }],
        "estimate": { "vms": 1, "total_ms": 355, "slow": [], "unknown": [] }
    })
}

/// What is expected of a migration.
fn forecast() -> Value {
    json!({
        "total_ms": 435, "pause_ms": 25, "bandwidth": 200_u64 << 20, "dirty_rate": 1_u64 << 20,
        "converges": true
    })
}

/// A dry run of a migration.
pub(crate) fn migration_that_is_only_looked_at() -> Value {
    json!({
        "vm": "web-1", "from": "host-1", "to": "host-2", "fits": true,
        "checks": [{ "what": "place", "ok": true, "detail": "room" }], "predicted": forecast()
    })
}

/// A validation that has ended, with findings of these verdicts.
pub(crate) fn validation(verdicts: &[&str]) -> Value {
    let count = |verdict: &str| verdicts.iter().filter(|it| **it == verdict).count();
    let findings: Vec<Value> = verdicts
        .iter()
        .map(|verdict| {
            json!({
                "check": "mtu", "verdict": verdict, "text": "packets of 1500 bytes arrive",
                "subject": { "kind": "pair", "from": "n1", "to": "n2", "network": "10.0.0.0/24" },
                "advice": "set one MTU", "measured": { "value": 1_400, "unit": "bytes" }
            })
        })
        .collect();
    json!({
        "running": null,
        "report": {
            "started": 1_000_000, "took_ms": 2_500, "cluster": "lab", "asked_by": "n1",
            "version": "0.1.0", "checks": ["mtu"], "passed": count("pass"),
            "warned": count("warn"), "failed": count("fail"), "findings": findings,
            "nodes": [], "links": []
        }
    })
}

fn witness() -> Value {
    json!({
        "id": OTHER, "place": { "kind": "remote", "address": "192.0.2.9:7446" },
        "since": 1_000_000, "by": "root", "votes": true, "retired": false, "reachable": true,
        "problem": null
    })
}

fn rule() -> Value {
    json!({
        "id": OTHER, "name": "apart", "tag": "web", "kind": "apart", "hard": false,
        "vms": ["web-1", "web-2"]
    })
}

fn processors() -> Value {
    let node = |name: &str, more: Value, lowers: Value| {
        json!({
            "id": OTHER, "name": name, "engine": "QEMU 10.0.2", "machine": "pc-q35-10.0",
            "more": more, "lowers": lowers
        })
    };
    json!({
        "groups": [{
            "accelerator": "kvm", "base": "Nehalem-v1", "baseline": ["aes", "avx"],
            "nodes": [
                node("host-1", json!(["avx2"]), json!([])), node("host-2", json!([]), json!(["avx2"]))
            ]
        }],
        "unknown": ["host-3"],
        "machine": "pc-q35-10.0",
        "vms": [{
            "id": OTHER, "name": "web-1", "node": "host-1", "kept_from": ["host-2"], "gains": [],
            "loses": ["avx2"], "newer_machine": "pc-q35-10.0"
        }]
    })
}

/// What an endpoint answers.
pub(crate) fn answer(id: &str) -> Answer {
    let value = match id {
        "Version" => json!({ "version": "0.1.0", "api": "v1" }),
        "OpenApi" => json!({ "openapi": "3.1.0" }),
        "WhoAmI" => json!({ "actor": "root", "role": "administrator" }),
        "VmList" => json!([summary("web-1", "running"), summary("web-2", "off")]),
        "VmShow" | "VmUndelete" | "VmUpgrade" | "VmRegister" => vm(),
        "ClusterCpu" => processors(),
        "VmFirstBoot" => json!({ "files": [
            { "name": "user-data", "text": "#cloud-config\n{\"hostname\":\"web-1\"}" }
        ] }),
        "VmHistory" => json!([{
            "revision": 3, "at": 1_000_000, "by": "token anna", "fields": [
                { "field": "memory", "old": "1 GiB", "new": "2 GiB", "withheld": false },
                { "field": "key role", "old": null, "new": null, "withheld": true },
                { "field": "disk data: size", "old": null, "new": "10 GiB", "withheld": false }
            ], "back": { "memory": 1_u64 << 30 }
        }]),
        "VmMetrics" | "NodeMetrics" => json!({
            "from": 1_000_000, "resolution_s": 1, "points": 3, "series": [{
                "figure": "cpu_percent", "mean": [null, 10.0, 20.0], "peak": [null, 10.0, 20.0]
            }]
        }),
        "ClusterNetworkList" | "ClusterNetworkSet" | "ClusterNetworkForget" | "MigrationStrict" => {
            json!({ "strict": false, "networks": [{
                "subnet": "10.90.2.0/24", "name": "fast", "cluster": false, "migration": 1,
                "nodes": [{ "node": "host-1", "address": "10.90.2.11" }], "missing": ["host-2"]
            }] })
        }
        "VmFreeze" => json!({ "filesystems": 1, "frozen": true, "consistency": null }),
        "VmThaw" => json!({ "filesystems": 1, "frozen": false, "consistency": "crash" }),
        "VmScreenshot" => return Answer::Raw(b"\x89PNG picture".to_vec()),
        "Metrics" => return Answer::Raw(b"muster_node_cpus 2.0\n# EOF\n".to_vec()),
        "VmSerial" | "VmVnc" => return Answer::Echo("hello\r\n"),
        "ImageList" => json!([image()]),
        "ImageShow" => image(),
        "OpList" => json!([at("vm_save", "writing memory", 1 << 30, 2 << 30)]),
        "OpCancel" => cancelled("vm_save"),
        "EventList" => json!([event(41, "is running")]),
        "EventStream" => return Answer::Events(vec![event(42, "is off")]),
        "NodeList" => json!([node()]),
        "NodeShow" => node(),
        "NodeFencing" | "NodeFence" | "NodeConfirmOff" => fencing(),
        "WitnessShow" | "WitnessSet" => witness(),
        "ClusterValidate" => json!({
            "running": { "started": 1_000_000, "step": "asking hosts", "done": 0, "total": 1 },
            "report": null
        }),
        "ValidationShow" => validation(&["warn", "pass"]),
        "NodePlan" | "NodeSetMode" => plan(),
        "EvacuationPlan" | "Evacuate" => json!({
            "plans": [{
                "node": "host-1", "steps": [], "unplaced": [], "local": [], "moving": []
            }],
            "estimate": { "vms": 2, "total_ms": 4_000, "slow": ["db-1"], "unknown": [] }
        }),
        "BalanceShow" | "BalanceSet" => json!({
            "automatic": true,
            "nodes": [{
                "node": "host-1", "told": true, "vms": 3, "cpu_percent": 98,
                "cpu_waits_percent": 43, "memory_waits_percent": 0
            }],
            "steps": [{
                "id": OTHER, "vm": "web-1", "from": "host-1", "to": "host-2",
                "why": "a machine there waits", "predicted": forecast()
            }],
            "stay": [{ "vm": "db-1", "why": "it is busy" }]
        }),
        "Capacity" => json!([{
            "node": "host-1", "restarted": 3, "unplaced": [], "local": ["db-1"]
        }]),
        "RuleList" => json!([rule()]),
        "RuleCreate" => rule(),
        "VmMigrate" => json!({
            "vm": "web-1", "from": "host-1", "to": "host-2", "fits": true,
            "checks": [{ "what": "place", "ok": true, "detail": "room" }],
            "op": done("vm_migrate")
        }),
        "VmMoveStorage" => json!({
            "vm": "web-1", "from": "shared", "to": "fast", "fits": true,
            "checks": [{ "what": "room", "ok": true, "detail": "room" }],
            "op": done("vm_move_storage")
        }),
        "VmMove" => json!({ "vm": "web-1", "owner": OTHER, "to": "host-2" }),
        "FenceDeviceList" => json!([fence_device()]),
        "FenceDeviceAdd" | "FenceDeviceShow" => fence_device(),
        "FenceDeviceTest" => json!([{
            "node": "host-1", "ok": true, "says": "on", "output": "Status: ON", "took_ms": 120
        }]),
        "FenceDeviceRemove" => json!({}),
        "NetworkList" => json!([network()]),
        "NetworkCreate" | "NetworkShow" => network(),
        "VolumeList" => json!([volume()]),
        "VolumeCreate" | "VolumeShow" => volume(),
        "VolumeMove" | "VolumeMaintenance" => volume_on_lun(),
        "VolumeCheck" => {
            json!({ "clean": true, "said": "Phase 1 - find and verify superblock..." })
        }
        "DiskList" => json!([disk()]),
        "VolumeRelease" | "NetworkDelete" | "TokenRevoke" | "SessionEnd" | "VolumeDelete"
        | "NodeEvict" | "ClusterLeave" | "JoinTokenRevoke" | "RuleDelete" | "WitnessRemove" => {
            json!({})
        }
        "ClusterShow" | "ClusterCreate" => cluster(),
        "ClusterJoin" => json!({
            "id": OTHER, "name": "lab", "node": "0191f6a0-7c1e-7d2a-8f00-000000000101",
            "members": ["host-1", "host-2"]
        }),
        "ClusterForce" => json!({ "node": OTHER, "lost": ["host-2"], "stay": ["host-1"] }),
        "JoinTokenList" => json!([join_token()]),
        "JoinTokenCreate" => {
            let mut token = join_token();
            token["text"] = json!("mjt_secret");
            token
        }
        "SessionList" => json!([{
            "id": OTHER, "stage": "open", "actor": "user root", "role": "administrator",
            "created": 1_000_000, "expires": 2_000_000, "own": false
        }]),
        "WebLinkCreate" => json!({
            "id": OTHER, "url": "https://192.0.2.1:7443/sign-in#5ec2e7", "fingerprint": SHA,
            "role": "administrator", "expires": 2_000_000
        }),
        "TokenList" => json!([token()]),
        "TokenCreate" => {
            let mut token = token();
            token["secret"] = json!("mst_secret");
            token
        }
        // All others begin an operation, or show one.
        _ => done("vm_start"),
    };
    Answer::Json(200, value)
}
