//! What only a real guest and a real process can show.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::Bytes;
use model::MacAddr;
use model::Millis;
use model::NicId;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use uuid::Uuid;
use vm::engine::Adopted;
use vm::engine::CpuPlan;
use vm::engine::DiskBus;
use vm::engine::EngineError;
use vm::engine::FirmwarePlan;
use vm::engine::ImageFile;
use vm::engine::ImageFormat;
use vm::engine::ImageSlot;
use vm::engine::LaunchPlan;
use vm::engine::Launched;
use vm::engine::Machine;
use vm::engine::MachineEvent;
use vm::engine::MigrateTuning;
use vm::engine::MirrorPhase;
use vm::engine::MirrorPlan;
use vm::engine::NicModel;
use vm::engine::NicPlan;
use vm::engine::Origin;
use vm::engine::Profile;
use vm::engine::RestorePlan;
use vm::engine::RunState;
use vm::engine::Switch;

use crate::rig::PATIENCE;
use crate::rig::Rig;
use crate::rig::again;
use crate::rig::disk;
use crate::rig::event;
use crate::rig::tiny;

/// A plan that boots the tiny guest from a copy of its disk.
async fn tiny_plan(rig: &Rig) -> LaunchPlan {
    let image = rig.dir.path().join("tiny.img");
    if !image.exists() {
        std::fs::copy(tiny(), &image).unwrap();
    }
    let mut plan = rig.plan().await;
    plan.disks.push(disk(&image));
    plan.disks[0].boot_index = Some(1);
    plan
}

/// Waits until the console has shown these words.
async fn console_shows(machine: &Arc<dyn Machine>, words: &str) {
    let mut view = machine.serial().await.unwrap();
    let mut seen = Vec::new();
    let search = async {
        let mut chunk = [0; 4096];
        loop {
            let count = view.read(&mut chunk).await.unwrap();
            assert_ne!(count, 0, "the console has ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&chunk[..count]);
            if String::from_utf8_lossy(&seen).contains(words) {
                return;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, search).await.is_err() {
        let tail = machine.serial_tail();
        panic!("'{words}' was not shown but: {}", String::from_utf8_lossy(&tail));
    }
}

/// Asks the guest agent; waits for it to be there first.
async fn agent(machine: &Arc<dyn Machine>, command: &str, arguments: Value) -> Value {
    let ask = async {
        loop {
            let stream = machine.agent().await.unwrap();
            let once =
                tokio::time::timeout(Duration::from_secs(5), talk(stream, command, &arguments));
            if let Ok(Some(answer)) = once.await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.expect("the guest agent does not answer")
}

async fn talk(stream: UnixStream, command: &str, arguments: &Value) -> Option<Value> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let sync = json!({ "execute": "guest-sync", "arguments": { "id": 4711 } });
    write.write_all(format!("{sync}\n").as_bytes()).await.ok()?;
    loop {
        let line = lines.next_line().await.ok()??;
        let answer: Value = serde_json::from_str(&line).unwrap_or_default();
        if answer["return"] == 4711 {
            break;
        }
    }
    let message = json!({ "execute": command, "arguments": arguments });
    write.write_all(format!("{message}\n").as_bytes()).await.ok()?;
    let line = lines.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}

/// Runs a shell command in the guest; its output.
async fn shell(machine: &Arc<dyn Machine>, script: &str) -> String {
    let exec = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
    let started = agent(machine, "guest-exec", exec).await;
    let pid = started["return"]["pid"].clone();
    assert!(pid.is_number(), "{started}");
    let wait = async {
        loop {
            let status = agent(machine, "guest-exec-status", json!({ "pid": pid })).await;
            if status["return"]["exited"] == true {
                use std::io::Read;
                let text = status["return"]["out-data"].as_str().unwrap_or_default().to_owned();
                let mut out = String::new();
                let child = std::process::Command::new("base64")
                    .arg("-d")
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .spawn();
                let mut child = child.unwrap();
                std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes())
                    .unwrap();
                child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
                child.wait().unwrap();
                return out.trim().to_owned();
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the command in the guest does not end")
}

/// Waits until a shell command in the guest says what is wanted.
async fn shell_says(machine: &Arc<dyn Machine>, script: &str, wanted: &str) {
    let mut last = String::new();
    let search = async {
        loop {
            last = shell(machine, script).await;
            if last == wanted {
                return;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, search).await.is_err() {
        panic!("`{script}` said '{last}', not '{wanted}'");
    }
}

/// A TAP device that goes away with its descriptor.
fn tap() -> OwnedFd {
    nix::ioctl_write_int!(tunsetiff, b'T', 202);
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0_u8; 40];
    // Name left to the kernel; IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    request[16..18].copy_from_slice(&0x5002_u16.to_ne_bytes());
    let pointer = request.as_mut_ptr() as u64;
    // SAFETY: the request is a live buffer of the size of an ifreq.
    #[allow(unsafe_code, reason = "the one ioctl that makes a TAP device")]
    unsafe { tunsetiff(std::os::fd::AsRawFd::as_raw_fd(&file), pointer) }.unwrap();
    file.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_changes_sleeps_and_goes() {
    let rig = Rig::qemu();
    let engine = rig.engine();
    let mut plan = tiny_plan(&rig).await;
    let vm = plan.vm;
    let root = again(&plan.disks[0]);
    let nic_id = NicId::new(Uuid::new_v4());
    let nic = |tap: OwnedFd| NicPlan {
        id: nic_id,
        mac: MacAddr::from_bytes([0x52, 0x54, 0, 1, 2, 3]),
        model: NicModel::Virtio,
        tap,
        link_up: true,
    };
    plan.nics.push(nic(tap()));
    let Launched { machine, mut events, run } = engine.launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    console_shows(&machine, "MUSTER-GUEST-READY").await;

    // The screen, by picture and by VNC.
    assert!(machine.screenshot().await.unwrap().starts_with(b"\x89PNG"));
    let mut hello = [0; 12];
    machine.vnc().await.unwrap().read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"RFB 003.008\n");

    // The agent, also when somebody else holds its port.
    let _holder = machine.agent().await.unwrap();
    assert_eq!(agent(&machine, "guest-ping", json!({})).await, json!({ "return": {} }));

    // A disk comes, grows, goes.
    let extra = disk(&rig.blank("extra.img", 32));
    let serial = extra.id.uuid().simple().to_string()[..20].to_owned();
    machine.plug_disk(again(&extra)).await.unwrap();
    let find =
        format!("for d in /sys/block/vd*; do grep -q {serial} $d/serial && cat $d/size; done");
    shell_says(&machine, &find, "65536").await;
    // What the guest asks of its disks is counted, and rest is seen as rest.
    let before = machine.disk_requests().await.unwrap();
    let read = format!(
        "for d in /sys/block/vd*; do grep -q {serial} $d/serial && dd if=/dev/${{d##*/}} of=/dev/null bs=4k count=1 skip=2000 2>/dev/null && echo read; done"
    );
    shell_says(&machine, &read, "read").await;
    let read = machine.disk_requests().await.unwrap();
    assert!(read > before, "{before} {read}");
    machine.resize_disk(extra.id, Bytes::mib(64)).await.unwrap();
    shell_says(&machine, &find, "131072").await;
    let shrink = machine.resize_disk(extra.id, Bytes::mib(32)).await;
    assert!(matches!(shrink, Err(EngineError::OutOfRange { .. })), "{shrink:?}");
    machine.unplug_disk(extra.id).await.unwrap();
    event(&mut events, |event| *event == MachineEvent::DiskUnplugged(extra.id)).await;
    assert_eq!(machine.inventory().await.unwrap().disks.len(), 1);
    // Its image is free again, and the same disk may come back.
    machine.plug_disk(again(&extra)).await.unwrap();
    shell_says(&machine, &find, "131072").await;

    // An adapter goes and comes back; its cable is pulled and plugged.
    let carrier = "cat /sys/class/net/eth*/carrier";
    machine.set_link(nic_id, false).await.unwrap();
    shell_says(&machine, carrier, "0").await;
    machine.set_link(nic_id, true).await.unwrap();
    shell_says(&machine, carrier, "1").await;
    machine.unplug_nic(nic_id).await.unwrap();
    event(&mut events, |event| *event == MachineEvent::NicUnplugged(nic_id)).await;
    shell_says(&machine, "ls -d /sys/class/net/eth* | wc -l", "0").await;
    machine.plug_nic(nic(tap())).await.unwrap();
    shell_says(&machine, "cat /sys/class/net/eth*/address", "52:54:00:01:02:03").await;

    // Memory and processors, both ways.
    let memory = "awk '/MemTotal/ {print int($2 / 65536)}' /proc/meminfo";
    let before: u32 = shell(&machine, memory).await.parse().unwrap();
    machine.set_memory(Bytes::mib(288)).await.unwrap();
    event(&mut events, |event| *event == MachineEvent::MemoryChanged(Bytes::mib(288))).await;
    shell_says(&machine, memory, &(before + 2).to_string()).await;
    machine.set_memory(Bytes::mib(160)).await.unwrap();
    event(&mut events, |event| *event == MachineEvent::MemoryChanged(Bytes::mib(160))).await;
    machine.set_vcpus(2).await.unwrap();
    shell_says(&machine, "grep -c ^processor /proc/cpuinfo", "2").await;
    machine.set_memory(Bytes::mib(224)).await.unwrap();
    event(&mut events, |event| *event == MachineEvent::MemoryChanged(Bytes::mib(224))).await;
    machine.balloon(Bytes::mib(192)).await.unwrap();
    event(&mut events, |event| matches!(event, MachineEvent::BalloonChanged(_))).await;

    // Another daemon takes over.
    shell(&machine, "echo remembered >/run/note").await;
    drop((machine, events, engine));
    let engine = rig.engine();
    let Adopted::Running(Launched { machine, mut events, run: adopted }) =
        engine.adopt(vm).await.unwrap()
    else {
        panic!("the machine is gone");
    };
    assert_eq!(adopted, run);

    // To a file and back, with all that was attached.
    let path = rig.dir.path().join("state");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    machine.save(file).await.unwrap();
    let saved = event(&mut events, |event| matches!(event, MachineEvent::SaveEnded(_))).await;
    assert_eq!(saved, MachineEvent::SaveEnded(Ok(())));
    let layout = machine.layout();
    machine.kill().await.unwrap();
    event(&mut events, |event| matches!(event, MachineEvent::Exited(_))).await;
    engine.reap(vm).await.unwrap();
    let mut plan = rig.plan().await;
    (plan.vm, plan.layout) = (vm, layout);
    plan.disks = vec![root, again(&extra)];
    plan.nics.push(nic(tap()));
    plan.restore = Some(RestorePlan::File(File::open(&path).unwrap()));
    let Launched { machine, mut events, .. } = engine.launch(plan).await.unwrap();
    assert_eq!(machine.memory_state().await.unwrap().present, Bytes::mib(224));
    machine.cont().await.unwrap();
    assert_eq!(shell(&machine, "cat /run/note").await, "remembered");
    shell_says(&machine, "grep -c ^processor /proc/cpuinfo", "2").await;

    // The power button.
    machine.powerdown().await.unwrap();
    event(&mut events, |event| *event == MachineEvent::ShutDown(Origin::Guest)).await;
    assert_eq!(machine.query_status().await.unwrap(), RunState::ShutDown);
    machine.kill().await.unwrap();
    event(&mut events, |event| matches!(event, MachineEvent::Exited(_))).await;
    engine.reap(vm).await.unwrap();
    assert_eq!(engine.strays().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_without_drivers_boots_on_legacy_devices() {
    let rig = Rig::qemu();
    let engine = rig.engine();
    let mut plan = tiny_plan(&rig).await;
    plan.profile = Profile::Legacy;
    plan.machine = engine.ability().await.unwrap().machine_legacy;
    plan.disks[0].bus = DiskBus::Ide;
    plan.nics.push(NicPlan {
        id: NicId::new(Uuid::new_v4()),
        mac: MacAddr::from_bytes([0x52, 0x54, 0, 1, 2, 4]),
        model: NicModel::E1000,
        tap: tap(),
        link_up: true,
    });
    let Launched { machine, .. } = engine.launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    console_shows(&machine, "MUSTER-GUEST-READY").await;
    assert_eq!(agent(&machine, "guest-ping", json!({})).await, json!({ "return": {} }));
    let hot = machine.plug_disk(disk(&rig.blank("b.img", 1))).await;
    assert!(matches!(hot, Err(EngineError::Unsupported { .. })), "{hot:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_by_uefi() {
    let rig = Rig::qemu();
    let engine = rig.engine();
    let mut plan = tiny_plan(&rig).await;
    let vars = rig.dir.path().join("vars.fd");
    plan.firmware = FirmwarePlan::Uefi { vars: vars.clone() };
    plan.cpus = CpuPlan { count: 1, max: 1 };
    // GRUB on OVMF does not find room for a kernel in less.
    plan.memory.size = Bytes::mib(256);
    let Launched { machine, .. } = engine.launch(plan).await.unwrap();
    assert!(vars.exists());
    machine.cont().await.unwrap();
    console_shows(&machine, "MUSTER-GUEST-READY").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_is_hung_and_a_killed_one_is_gone() {
    let rig = Rig::qemu();
    let engine = rig.engine();
    let plan = rig.plan().await;
    let vm = plan.vm;
    let Launched { machine, mut events, run } = engine.launch(plan).await.unwrap();
    let pid = Pid::from_raw(i32::try_from(run.pid).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let stuck = machine.query_status().await;
    assert!(matches!(stuck, Err(EngineError::Hung { .. })), "{stuck:?}");
    event(&mut events, |event| *event == MachineEvent::Hung).await;
    kill(pid, Signal::SIGCONT).unwrap();
    event(&mut events, |event| *event == MachineEvent::Responsive).await;
    assert_eq!(machine.query_status().await.unwrap(), RunState::Prelaunch);
    // Stopped again, found so by the next daemon, and reaped all the same.
    kill(pid, Signal::SIGSTOP).unwrap();
    drop((machine, events));
    let other = rig.engine();
    let found = other.adopt(vm).await;
    assert!(matches!(found, Err(EngineError::Hung { .. })), "{found:?}");
    other.reap(vm).await.unwrap();
    assert_eq!(other.strays().await.unwrap(), []);

    let plan = rig.plan().await;
    let vm = plan.vm;
    let Launched { machine, mut events, run } = engine.launch(plan).await.unwrap();
    kill(Pid::from_raw(i32::try_from(run.pid).unwrap()), Signal::SIGKILL).unwrap();
    let exited = event(&mut events, |event| matches!(event, MachineEvent::Exited(_))).await;
    let MachineEvent::Exited(info) = exited else { panic!("{exited:?}") };
    assert_eq!(info.signal, Some(9));
    assert!(matches!(machine.query_status().await, Err(EngineError::Exited)));
    let strays = engine.strays().await.unwrap();
    assert_eq!(strays.iter().map(|one| (one.vm, one.alive)).collect::<Vec<_>>(), [(vm, false)]);
    assert!(matches!(engine.adopt(vm).await, Ok(Adopted::Gone(_))));
    engine.reap(vm).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processors_come_and_go() {
    let rig = Rig::qemu();
    let engine = rig.engine();
    let mut plan = tiny_plan(&rig).await;
    plan.cpus = CpuPlan { count: 2, max: 3 };
    let Launched { machine, mut events, .. } = engine.launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    console_shows(&machine, "MUSTER-GUEST-READY").await;
    let count = "grep -c ^processor /proc/cpuinfo";
    shell_says(&machine, count, "2").await;
    machine.set_vcpus(3).await.unwrap();
    shell_says(&machine, count, "3").await;
    machine.set_vcpus(1).await.unwrap();
    event(&mut events, |event| *event == MachineEvent::VcpusChanged(1)).await;
    shell_says(&machine, count, "1").await;
    // QEMU's emulator does not survive the return of a processor: refused instead.
    let back = machine.set_vcpus(2).await;
    assert!(matches!(back, Err(EngineError::Unsupported { .. })), "{back:?}");
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    assert_eq!(machine.inventory().await.unwrap().vcpus.plugged, 1);
}

#[tokio::test]
async fn an_emulated_machine_with_room_for_memory_is_not_migrated() {
    let rig = Rig::qemu();
    let plan = rig.plan().await;
    assert!(plan.memory.max > plan.memory.size);
    let launched = rig.engine().launch(plan).await.unwrap();
    launched.machine.cont().await.unwrap();
    let blockers = launched.machine.migrate_blockers().await.unwrap();
    assert!(blockers.iter().any(|why| why.contains("--memory-max")), "{blockers:?}");
    let tuning = MigrateTuning { budget: Millis::new(50), throttle_max: 1 };
    let begun = launched.machine.migrate(tuning, Switch::AtOnce).await;
    assert!(matches!(begun, Err(EngineError::Unsupported { .. })), "{begun:?}");
    assert_eq!(launched.machine.query_status().await.unwrap(), RunState::Running);
}

/// A file system of 2 MiB, unmounted when it goes.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: std::path::PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=2m", "small"];
        let mounted = std::process::Command::new("mount").args(options).arg(&at).status();
        assert!(mounted.unwrap().success());
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_copy_that_finds_its_volume_full_fails_and_the_machine_goes_on() {
    let rig = Rig::qemu();
    let small = Small::mount(rig.dir.path().join("small"));
    let from = rig.blank("a.img", 8);
    std::fs::write(&from, vec![7; 8 << 20]).unwrap();
    let to = small.0.join("a.img");
    File::create(&to).unwrap().set_len(8 << 20).unwrap();
    let mut plan = rig.plan().await;
    plan.disks.push(disk(&from));
    let slot = ImageSlot::Disk(plan.disks[0].id);
    let Launched { machine, .. } = rig.engine().launch(plan).await.unwrap();
    machine.cont().await.unwrap();
    let chain = vec![ImageFile { path: to, format: ImageFormat::Raw }];
    machine.mirror(MirrorPlan { slot, chain }).await.unwrap();
    let failed = async {
        loop {
            match &machine.mirrors().await.unwrap()[&slot].phase {
                MirrorPhase::Failed(why) => return why.clone(),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let why = tokio::time::timeout(PATIENCE, failed).await.unwrap();
    assert!(why.contains("No space left"), "{why}");
    assert!(machine.mirror_pivot().await.is_err());
    machine.mirror_cancel().await.unwrap();
    assert!(machine.mirrors().await.unwrap().is_empty());
    assert_eq!(machine.query_status().await.unwrap(), RunState::Running);
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_save_that_finds_its_volume_full_fails_and_the_next_one_does_not() {
    let rig = Rig::qemu();
    let small = Small::mount(rig.dir.path().join("small"));
    // Room for what describes the machine, and not for its memory.
    std::fs::write(small.0.join("other"), vec![7; (2 << 20) - (400 << 10)]).unwrap();
    let Launched { machine, mut events, .. } = rig.engine().launch(rig.plan().await).await.unwrap();
    machine.cont().await.unwrap();
    let mut saved = async |path: &Path| {
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        machine.save(file).await.unwrap();
        loop {
            let heard = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap();
            if let Some(MachineEvent::SaveEnded(end)) = heard {
                return end;
            }
        }
    };
    // A machine that cannot be saved can be saved elsewhere, again and again.
    let there = small.0.join("state");
    for _ in 0..5 {
        let full = saved(&there).await;
        assert!(full.is_err(), "{full:?}");
    }
    saved(&rig.dir.path().join("state")).await.unwrap();
    machine.kill().await.unwrap();
}
