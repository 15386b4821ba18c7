//! The start of a machine, step by step.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use model::Bytes;
use model::NicId;
use serde_json::json;

use super::Attached;
use super::GREETING_LIMIT;
use super::QemuEngine;
use super::ability;
use super::ability::OVMF_CODE;
use super::ability::OVMF_VARS;
use super::args;
use super::args::Channels;
use super::args::DiskFds;
use super::args::UefiFds;
use super::image;
use super::jail;
use super::machine;
use super::machine::FDSET_STATE;
use super::machine::Shared;
use super::process;
use super::process::Newborn;
use super::process::Process;
use super::record::Record;
use super::record::RunDir;
use super::verbs;
use crate::engine::Accel;
use crate::engine::AccelChoice;
use crate::engine::BalloonPlan;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::FirmwarePlan;
use crate::engine::ImageFormat;
use crate::engine::LaunchPlan;
use crate::engine::Launched;
use crate::engine::NicPlan;
use crate::engine::Profile;
use crate::engine::RestorePlan;
use crate::engine::RunInfo;
use crate::engine::layout::Ports;

/// First descriptor number that is handed over; below are the standard ones and the launcher's.
const FD_FIRST: i32 = 20;

/// Host memory QEMU needs beside the guest's: devices, translated code, buffers.
const OVERHEAD: Bytes = Bytes::mib(1024);

/// Threads QEMU needs beside one for each processor: disk workers, streams, viewers.
const THREADS: u64 = 256;

/// How long the reading of a saved state may take: 16 GiB from a slow disk.
const RESTORE_LIMIT: Duration = Duration::from_secs(600);

/// Pause between two looks at a state that is being read.
const RESTORE_POLL: Duration = Duration::from_millis(10);

/// Firmware, tables and keymaps QEMU reads at its start.
const SHOWN: [&str; 6] = [
    "/etc/ld.so.cache",
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/OVMF",
    "/usr/share/ovmf",
    "/usr/lib/ipxe",
];

/// Descriptors on their way into the jail.
#[derive(Default)]
struct FdTable(Vec<(i32, OwnedFd)>);

impl FdTable {
    fn add(&mut self, fd: OwnedFd) -> i32 {
        let number = FD_FIRST + i32::try_from(self.0.len()).unwrap_or(i32::MAX - FD_FIRST);
        self.0.push((number, fd));
        number
    }

    /// Number for an image whose descriptor is kept; the image stays for its description.
    fn share(&mut self, image: &image::Image) -> Result<i32, EngineError> {
        let fd = image.fd.try_clone().map_err(EngineError::io("hand over an image"))?;
        Ok(self.add(fd))
    }
}

impl QemuEngine {
    /// Starts a machine of which nothing is left from before.
    pub(super) async fn start(&self, mut plan: LaunchPlan) -> Result<Launched, EngineError> {
        let accel = self.choose_accel(plan.accel).await?;
        check_memory(&plan)?;
        let restored = plan.restore.is_some();
        let ports = Ports::place(&plan.layout, plan.profile, &plan.disks, &plan.nics, restored)?;
        let cpus = cpus_at_start(&plan, restored)?;
        let mut fds = FdTable::default();
        let disks = open_disks(&plan, &mut fds)?;
        let uefi = open_uefi(&plan.firmware, &mut fds)?;

        let dir = self.dir(plan.vm);
        dir.make()?;
        let mut record = self.first_record(&plan, accel)?;
        let restore = plan.restore.take();
        record.layout = ports.layout((plan.memory.size, plan.memory.max), (cpus, plan.cpus.max));
        record.cpus_peak = cpus;
        dir.write(&record)?;
        let threads = THREADS + u64::from(plan.cpus.max);
        let host_memory = plan.memory.max.checked_add(OVERHEAD).unwrap_or(plan.memory.max).get();
        record.run.missing_limits =
            self.cgroups.make(plan.vm, &plan.isolation, host_memory, threads)?;

        let channels = Channels {
            qmp: fds.add(dir.listen("qmp")?),
            serial: fds.add(dir.listen("serial")?),
            agent: fds.add(dir.listen("agent")?),
        };
        let links: Vec<(NicId, bool)> = plan.nics.iter().map(|nic| (nic.id, nic.link_up)).collect();
        let taps = share_taps(&plan, &mut fds)?;
        let mut line = {
            let (plan, ports) = (&plan, &ports);
            let (disks, taps, uefi) = (&disks, &taps, uefi.as_ref());
            args::build(&args::Parts { plan, accel, ports, cpus, channels, disks, taps, uefi })?
        };
        if restored {
            line.extend(["-incoming".to_owned(), "defer".to_owned()]);
        }
        let (output, output_fd) = dir.output()?;
        let output_fd = fds.add(output_fd);
        let keep_fds = fds.0.iter().map(|(fd, _)| *fd).filter(|fd| *fd != output_fd).collect();
        let jail = jail::JailPlan {
            program: self.config.program.clone(),
            args: line,
            uid: record.run.uid,
            hostname: format!("vm-{}", plan.vm.short()),
            cgroup: self.cgroups.of(plan.vm),
            show: SHOWN.iter().map(PathBuf::from).collect(),
            kvm: accel == Accel::Kvm,
            keep_fds,
            output_fd,
            threads_max: threads,
        };
        // What QEMU holds now must not be held by us, too: locks and TAP queues end with it.
        let paths = names_of_images(&plan, &ports, &disks);
        drop((disks, uefi));
        drop(plan);

        let shared = self.become_process(jail, fds, dir, record, output, &paths).await?;
        let (shared, qmp_events, events) = shared;
        for (nic, up) in links {
            if !up {
                let name = args::nic_device(nic);
                shared.run("set_link", json!({ "name": name, "up": false })).await?;
            }
        }
        if let Some(RestorePlan::File(file)) = restore {
            read_state(&shared, file).await?;
        }
        Ok(Self::launched(shared, qmp_events, events))
    }

    /// Starts the process and connects to it, noting in the record how far it has come.
    async fn become_process(
        &self,
        jail: jail::JailPlan,
        fds: FdTable,
        dir: RunDir,
        mut record: Record,
        output: fs::File,
        names: &ImageNames,
    ) -> Result<Attached, EngineError> {
        let launcher = self.config.launcher.clone();
        // Also when this start is given up in the meantime, the process must not stay.
        let spawn = move || jail::spawn(&launcher, &jail, fds.0).map(Newborn::new);
        let newborn = tokio::task::spawn_blocking(spawn)
            .await
            .map_err(|error| failed("start", error.to_string()))?
            .map_err(|error| failed("jail", error.to_string()))?;
        let pid = newborn.pid();
        let Some(ticks) = process::start_ticks(pid) else {
            return Err(explain(names, &machine::last_words(&output)));
        };
        record.run.pid = pid;
        record.ticks = Some(ticks);
        dir.write(&record)?;
        newborn.recorded();
        let process = Process::open(pid, ticks).map_err(EngineError::io("open QEMU"))?;
        let Some(process) = process else {
            return Err(explain(names, &machine::last_words(&output)));
        };
        let words = output.try_clone().map_err(EngineError::io("open QEMU's output"))?;
        match self.attach(dir, record, process, output, GREETING_LIMIT).await {
            Ok(attached) => Ok(attached),
            Err(EngineError::Exited | EngineError::Io { .. }) => {
                Err(explain(names, &machine::last_words(&words)))
            }
            Err(error) => Err(failed("control socket", error.to_string())),
        }
    }

    /// What carries the processors out, where QEMU is (still) there at all.
    async fn choose_accel(&self, choice: AccelChoice) -> Result<Accel, EngineError> {
        let ability = self.ability().await?;
        // What was found out about QEMU may be old: packages come and go under a daemon that runs.
        if !self.config.program.exists() {
            return Err(ability::missing(&self.config.program, "it is gone"));
        }
        match (choice, ability.accel) {
            (AccelChoice::Tcg, _) => Ok(Accel::Tcg),
            (AccelChoice::Auto, accel) => Ok(accel),
            (AccelChoice::Kvm, Accel::Kvm) => Ok(Accel::Kvm),
            (AccelChoice::Kvm, Accel::Tcg) => {
                Err(EngineError::Unsupported { what: "KVM".to_owned(), why: ability.accel_reason })
            }
        }
    }

    fn first_record(&self, plan: &LaunchPlan, accel: Accel) -> Result<Record, EngineError> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = RunInfo {
            vm: plan.vm,
            pid: 0,
            generation: plan.generation,
            accel,
            started_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            uid: self.config.uid_base.saturating_add(plan.isolation.slot),
            missing_limits: Vec::new(),
            arrival: match &plan.restore {
                Some(RestorePlan::Stream(op)) => Some(*op),
                Some(RestorePlan::File(_)) | None => None,
            },
        };
        let boot_id = process::boot_id().map_err(EngineError::io("read the boot id"))?;
        let mut record = Record::new(run, boot_id, plan.profile, plan.memory);
        let virtio = plan.profile == Profile::Virtio;
        record.cpu_limits = plan.isolation.cpu();
        record.balloon = virtio && plan.balloon == BalloonPlan::Present;
        record.chains = plan.disks.iter().map(|disk| (disk.id, disk.chain.len())).collect();
        record.links = plan.nics.iter().map(|nic| (nic.id, nic.link_up)).collect();
        Ok(record)
    }
}

/// Processors plugged at the start. A saved machine is built as it was when it was saved.
fn cpus_at_start(plan: &LaunchPlan, restored: bool) -> Result<u32, EngineError> {
    if !restored {
        return Ok(plan.cpus.count);
    }
    if plan.layout.memory != Some((plan.memory.size, plan.memory.max)) {
        let why = "the machine's memory is not what it was; use the saved configuration";
        return Err(EngineError::Restore(why.to_owned()));
    }
    let count = plan.layout.cpus.map_or(plan.cpus.count, |(count, _)| count);
    Ok(count.clamp(1, plan.cpus.max))
}

fn open_disks(plan: &LaunchPlan, fds: &mut FdTable) -> Result<Vec<DiskFds>, EngineError> {
    let mut disks = Vec::new();
    for disk in &plan.disks {
        let mut chain = Vec::new();
        for image in image::open_chain(disk)? {
            chain.push((fds.share(&image)?, image));
        }
        disks.push(chain);
    }
    Ok(disks)
}

fn share_taps(plan: &LaunchPlan, fds: &mut FdTable) -> Result<Vec<i32>, EngineError> {
    let share = |nic: &NicPlan| nic.tap.try_clone().map(|fd| fds.add(fd));
    let shared: io::Result<Vec<i32>> = plan.nics.iter().map(share).collect();
    shared.map_err(EngineError::io("hand over a TAP device"))
}

fn failed(step: &'static str, why: String) -> EngineError {
    EngineError::Launch { step, why }
}

/// Words by which QEMU may name each image in its complaints, with the path we know it by.
type ImageNames = Vec<([String; 2], PathBuf)>;

fn names_of_images(plan: &LaunchPlan, ports: &Ports, disks: &[DiskFds]) -> ImageNames {
    let mut names = Vec::new();
    for (disk, fds) in plan.disks.iter().zip(disks) {
        let key = ports.disk(disk.id).map(args::place_key).unwrap_or_default();
        for (at, ((fd, _), file)) in fds.iter().zip(&disk.chain).enumerate() {
            let words = [format!("\"/dev/fdset/{fd}\""), format!("\"{key}d{at}\"")];
            names.push((words, file.path.clone()));
        }
    }
    names
}

/// What QEMU's last words mean: complaints about an image have errors of their own.
fn explain(names: &ImageNames, words: &str) -> EngineError {
    for ([file, node], path) in names {
        if words.contains(file) || (words.contains(node) && words.contains("lock")) {
            return image::explain(path, words);
        }
    }
    if words.is_empty() {
        return failed("QEMU", "it ended without a word".to_owned());
    }
    failed("QEMU", words.to_owned())
}

fn check_memory(plan: &LaunchPlan) -> Result<(), EngineError> {
    let text =
        fs::read_to_string("/proc/meminfo").map_err(EngineError::io("read /proc/meminfo"))?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    let host = Bytes::new(total.saturating_mul(1024));
    if plan.memory.size > host {
        return Err(EngineError::HostMemory { wanted: plan.memory.size, host });
    }
    Ok(())
}

fn open_uefi(firmware: &FirmwarePlan, fds: &mut FdTable) -> Result<Option<UefiFds>, EngineError> {
    let FirmwarePlan::Uefi { vars } = firmware else { return Ok(None) };
    if !Path::new(OVMF_CODE).exists() {
        return Err(EngineError::Missing {
            what: "UEFI firmware".to_owned(),
            advice: "install it: apt install ovmf".to_owned(),
        });
    }
    if !vars.exists() {
        copy_vars(vars).map_err(EngineError::io(format!("make {}", vars.display())))?;
    }
    let code = image::open(Path::new(OVMF_CODE), ImageFormat::Raw, true)?;
    let vars = image::open(vars, ImageFormat::Raw, false)?;
    let (code_fd, vars_fd) = (fds.share(&code)?, fds.share(&vars)?);
    Ok(Some(UefiFds { code: (code_fd, code), vars: (vars_fd, vars) }))
}

/// Makes the variables' file whole or not at all.
fn copy_vars(vars: &Path) -> io::Result<()> {
    let new = vars.with_extension("new");
    fs::copy(OVMF_VARS, &new)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, vars)
}

/// Reads a saved state into a machine that waits for it.
async fn read_state(shared: &Shared, file: fs::File) -> Result<(), EngineError> {
    let refuse = |error: EngineError| EngineError::Restore(error.to_string());
    verbs::prepare_state(shared).await?;
    let set = json!({ "fdset-id": FDSET_STATE });
    shared.run_with_fd("add-fd", set.clone(), file.into()).await.map_err(refuse)?;
    let uri = json!({ "uri": format!("file:/dev/fdset/{FDSET_STATE}") });
    shared.run("migrate-incoming", uri).await.map_err(refuse)?;
    let end = tokio::time::Instant::now() + RESTORE_LIMIT;
    loop {
        let result = shared.run("query-migrate", json!({})).await;
        let info = match result {
            Ok(info) => info,
            // A state that does not fit ends QEMU.
            Err(EngineError::Exited) => {
                return Err(EngineError::Restore(machine::last_words(&shared.output)));
            }
            Err(error) => return Err(error),
        };
        match info["status"].as_str() {
            Some("completed") => break,
            Some("failed") => {
                let why = info["error-desc"].as_str().unwrap_or("QEMU gives no reason");
                return Err(EngineError::Restore(why.to_owned()));
            }
            _ if tokio::time::Instant::now() > end => {
                return Err(EngineError::Restore("it takes too long".to_owned()));
            }
            _ => tokio::time::sleep(RESTORE_POLL).await,
        }
    }
    let _ = shared.run("remove-fd", set).await;
    Ok(())
}
