//! What this host can run: version, machine types, and whether KVM really works.
//!
//! There are hosts whose `/dev/kvm` opens and whose guests hang. So KVM is used only where the
//! processor has virtualization of its own and a guest of a few instructions gets through.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::Offer;
use super::QemuConfig;
use super::cpus;
use super::process;
use crate::engine::Ability;
use crate::engine::Accel;
use crate::engine::EngineError;

/// Lowest major version of QEMU that we trust with guests.
const QEMU_MIN: u32 = 10;

/// How long a guest of a few instructions may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// How long QEMU may take to print its version or a list.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Most text that is read from QEMU when it is asked for a list.
const TEXT_MAX: u64 = 1 << 20;

/// UEFI code and the template of its variables, as Debian's package ovmf brings them.
pub(super) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
pub(super) const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What the probe's guest writes.
const PROBE_BYTE: u8 = b'K';

/// The probe's guest: `mov al, 'K'; out 0xe9, al; hlt; jmp -3`.
const PROBE_CODE: [u8; 7] = [0xb0, PROBE_BYTE, 0xe6, 0xe9, 0xf4, 0xeb, 0xfd];

/// Models that every processor of that maker of the last decade and the emulator can be.
const CPU_INTEL: &str = "Nehalem-v1";
const CPU_AMD: &str = "Opteron_G3-v1";

/// The answer of the measurement, remembered until the host boots or QEMU changes.
#[derive(Serialize, Deserialize)]
struct Cached {
    boot_id: String,
    program_changed: Option<std::time::SystemTime>,
    offer: Offer,
    ability: Ability,
}

/// Finds out, or remembers, what this host can run.
pub(super) async fn find(
    config: &QemuConfig,
    missing_limits: Vec<String>,
) -> Result<Ability, EngineError> {
    let QemuConfig { program, run_dir, offer, .. } = config;
    let boot_id = process::boot_id().map_err(EngineError::io("read the boot id"))?;
    let program_changed = std::fs::metadata(program).and_then(|meta| meta.modified()).ok();
    let file = run_dir.join("ability.json");
    if let Some(mut cached) = read(&file)
        && cached.boot_id == boot_id
        && cached.program_changed == program_changed
        && program_changed.is_some()
        && cached.offer == *offer
    {
        cached.ability.missing_limits = missing_limits;
        return Ok(cached.ability);
    }
    let ability = measure(program, offer, missing_limits).await?;
    let cached = Cached { boot_id, program_changed, offer: offer.clone(), ability };
    if let Ok(text) = serde_json::to_vec(&cached) {
        // Only a memory: measured again where it cannot be kept.
        let _ = std::fs::create_dir_all(run_dir);
        let new = file.with_extension(format!("{}", std::process::id()));
        let _ = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file));
    }
    Ok(cached.ability)
}

fn read(file: &Path) -> Option<Cached> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

async fn measure(
    program: &Path,
    offer: &Offer,
    missing_limits: Vec<String>,
) -> Result<Ability, EngineError> {
    let version = ask(program, &["--version"]).await?;
    let version = version
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or("of unknown version")
        .to_owned();
    let major = version.split('.').next().and_then(|text| text.parse::<u32>().ok());
    if major.is_none_or(|major| major < QEMU_MIN) {
        return Err(EngineError::TooOld { found: version, needed: format!("{QEMU_MIN}.0") });
    }
    let machines = ask(program, &["-machine", "help"]).await?;
    let newest = |family: &str| {
        let numbered = |line: &str| {
            let name = line.split_whitespace().next()?;
            let (major, minor) = name.strip_prefix(family)?.split_once('.')?;
            Some(((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?), name.to_owned()))
        };
        let offered = |version: &(u32, u32)| offer.machine.is_none_or(|most| *version <= most);
        let known = machines.lines().filter_map(numbered).filter(|(it, _)| offered(it));
        known.max().map(|(_, name)| name).ok_or_else(|| EngineError::Missing {
            what: format!("a machine type {family}*"),
            advice: "install a full QEMU: apt install qemu-system-x86".to_owned(),
        })
    };
    let (accel, accel_reason) = match kvm(program).await {
        Ok(reason) => (Accel::Kvm, reason),
        Err(reason) => (Accel::Tcg, reason),
    };
    let amd = accel == Accel::Kvm
        && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("AuthenticAMD"));
    let cpu_model = if amd { CPU_AMD } else { CPU_INTEL };
    Ok(Ability {
        engine: format!("QEMU {version}"),
        accel,
        accel_reason,
        machine_virtio: newest("pc-q35-")?,
        machine_legacy: newest("pc-i440fx-")?,
        cpu_features: features(program, accel, cpu_model, offer).await,
        cpu_model: cpu_model.to_owned(),
        uefi: Path::new(OVMF_CODE).exists() && Path::new(OVMF_VARS).exists(),
        missing_limits,
    })
}

/// What guests can have beyond the base model; none where that is not known for sure.
async fn features(
    program: &Path,
    accel: Accel,
    base: &str,
    offer: &Offer,
) -> Option<BTreeSet<String>> {
    let most = match (offer.cpu.as_deref(), accel) {
        (Some("max"), _) | (None, Accel::Kvm) => None,
        // Every emulator that we run on can be this; a start of a daemon need not wait for proof.
        (None, Accel::Tcg) => return Some(BTreeSet::new()),
        (Some(model), _) => Some(model),
    };
    match cpus::beyond(program, accel, base, most).await {
        Ok(features) => Some(features),
        Err(why) => {
            tracing::warn!(why, "machines get the processors that they were made with");
            None
        }
    }
}

/// There is no QEMU, or nothing that behaves like one.
pub(super) fn missing(program: &Path, why: &str) -> EngineError {
    EngineError::Missing {
        what: format!("QEMU ({})", program.display()),
        advice: format!("install it: apt install qemu-system-x86 ({why})"),
    }
}

pub(super) async fn ask(program: &Path, args: &[&str]) -> Result<String, EngineError> {
    let missing = |why: String| missing(program, &why);
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| missing(error.to_string()))?;
    let mut text = Vec::new();
    let stdout = child.stdout.take();
    let work = async {
        if let Some(stdout) = stdout {
            stdout.take(TEXT_MAX).read_to_end(&mut text).await?;
        }
        child.wait().await
    };
    match tokio::time::timeout(ASK_LIMIT, work).await {
        Ok(Ok(status)) if status.success() => Ok(String::from_utf8_lossy(&text).into_owned()),
        Ok(Ok(status)) => Err(missing(format!("it ended with {status}"))),
        Ok(Err(error)) => Err(missing(error.to_string())),
        Err(_) => Err(missing("it does not answer".to_owned())),
    }
}

/// Whether KVM works, with the reason for the answer.
async fn kvm(program: &Path) -> Result<String, String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("emulation, because /dev/kvm cannot be opened: {error}"));
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    if !has("vmx") && !has("svm") {
        return Err("emulation, because the processor shows no virtualization of its own (vmx or \
                    svm); KVM without it hangs common guests"
            .to_owned());
    }
    match probe(program, "kvm", PROBE_LIMIT).await {
        Ok(()) => Ok("KVM, which ran a test guest".to_owned()),
        Err(why) => Err(format!("emulation, because a test guest under KVM failed: {why}")),
    }
}

/// Boots a sector that writes one byte to the debug port.
async fn probe(program: &Path, accel: &str, limit: Duration) -> Result<(), String> {
    let mut sector = [0_u8; 512];
    sector[..PROBE_CODE.len()].copy_from_slice(&PROBE_CODE);
    (sector[510], sector[511]) = (0x55, 0xaa);
    let dir = tempdir()?;
    let image = dir.join("probe.img");
    std::fs::write(&image, sector).map_err(|error| error.to_string())?;
    let drive = format!("driver=file,node-name=f,filename={}", image.display());
    let mut command = Command::new(program);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "64M"])
        .args(["-accel", accel, "-cpu", "max", "-blockdev", &drive])
        .args(["-blockdev", "driver=raw,node-name=d,file=f"])
        .args(["-device", "ide-hd,drive=d,bootindex=1"])
        .args([
            "-chardev",
            "stdio,id=out,signal=off",
            "-device",
            "isa-debugcon,iobase=0xe9,chardev=out",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let result = match command.spawn() {
        Ok(mut child) => {
            let mut byte = [0];
            let work = async {
                match child.stdout.take() {
                    Some(mut out) => out.read_exact(&mut byte).await.map(|_| ()),
                    None => Ok(()),
                }
            };
            let got = tokio::time::timeout(limit, work).await;
            let _ = child.kill().await;
            match got {
                Ok(Ok(())) if byte[0] == PROBE_BYTE => Ok(()),
                Ok(Ok(())) => Err("it wrote something else".to_owned()),
                Ok(Err(_)) => Err("QEMU ended".to_owned()),
                Err(_) => Err(format!("no sign of life in {}s", limit.as_secs())),
            }
        }
        Err(error) => Err(error.to_string()),
    };
    let _ = std::fs::remove_dir_all(dir);
    result
}

fn tempdir() -> Result<std::path::PathBuf, String> {
    use std::os::unix::fs::DirBuilderExt;
    let name = format!("muster-probe-{}", uuid::Uuid::new_v4().simple());
    let dir = std::env::temp_dir().join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| error.to_string())?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_probe_sees_a_guest_live() {
        let program = Path::new("/usr/bin/qemu-system-x86_64");
        // More than on a user's host: tests run on busy machines.
        let limit = Duration::from_secs(60);
        assert_eq!(probe(program, "tcg", limit).await, Ok(()));
        assert!(probe(program, "nonsense", limit).await.is_err());
    }

    #[tokio::test]
    async fn a_missing_qemu_is_told_with_advice() {
        let error = measure(Path::new("/nonexistent/qemu"), &Offer::default(), Vec::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("apt install"), "{error}");
    }

    fn config(run_dir: &Path) -> QemuConfig {
        let launcher =
            super::super::jail::Launcher { program: "/bin/false".into(), args: Vec::new() };
        QemuConfig::new(run_dir.to_owned(), "t", launcher)
    }

    #[tokio::test]
    async fn the_measurement_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let first = find(&config, vec!["a".to_owned()]).await.unwrap();
        assert!(first.machine_virtio.starts_with("pc-q35-"), "{first:?}");
        assert!(first.engine.starts_with("QEMU 1"), "{first:?}");
        assert!(dir.path().join("ability.json").exists());
        let second = find(&config, vec!["a".to_owned()]).await.unwrap();
        assert_eq!(first, second);
    }

    #[tokio::test]
    async fn a_host_offers_no_more_than_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let all = find(&config, Vec::new()).await.unwrap();
        config.offer = Offer { cpu: Some("Westmere-v1".to_owned()), machine: Some((9, 1)) };
        let less = find(&config, Vec::new()).await.unwrap();
        assert_ne!(all, less, "what was remembered is of another offer");
        assert_eq!(less.machine_virtio, "pc-q35-9.1");
        assert_eq!(less.machine_legacy, "pc-i440fx-9.1");
        assert!(less.cpu_features.unwrap().contains("aes"));
        config.offer.machine = Some((0, 1));
        assert!(find(&config, Vec::new()).await.is_err(), "it has none so old");
    }
}
