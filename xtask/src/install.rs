//! `cargo xtask install`: the Debian packages that building and testing need.
//!
//! Looks first, and touches apt only when something is missing: a second run takes milliseconds
//! and needs no network. QEMU must be 10 or newer (older ones corrupt guests in live migration
//! under TCG); Debian 12 has it in backports, so there a separate sources file is added. Packages
//! are taken from it only where asked for by name, since backports has a lower priority in apt.

use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::apt;
use crate::run::as_root;
use crate::run::cmd;
use crate::run::quiet;
use crate::run::says_yes;
use crate::run::show;
use crate::run::target;

/// The oldest QEMU we run on.
const QEMU_VERSION_MIN: &str = "1:10";

/// Where the backports archive is named on Debian 12, apart from the administrator's own files.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/muster-backports.list";

/// Packages whose version must be at least [`QEMU_VERSION_MIN`].
const QEMU: &[(&str, &str)] = &[
    ("qemu-system-x86", "runs virtual machines"),
    ("qemu-utils", "reads and writes disk images (qemu-img)"),
];

/// What QEMU's packages of backports depend on there: apt follows a release that is asked for with a
/// package's name to the package itself only.
const QEMU_NEEDS: &[&str] = &["qemu-system-common", "qemu-system-data", "seabios"];

/// Everything else, with the reason a user is shown.
const PACKAGES: &[(&str, &str)] = &[
    ("ovmf", "UEFI firmware for guests"),
    ("nftables", "address translation of guest networks"),
    ("iproute2", "network links and name spaces in tests"),
    ("gcc", "links the program, compiles the guests' test tool"),
    ("binutils", "strips the packaged program, assembles the smallest guest"),
    ("libc6-dev", "links the program"),
    ("mmdebstrap", "builds guest images from Debian packages"),
    ("dosfstools", "boot partitions of guest images"),
    ("mtools", "writes boot partitions without mounting"),
    ("syslinux", "boot loader of the tiny guest"),
    ("fdisk", "partitions guest images (sfdisk)"),
    ("e2fsprogs", "root file system of the Debian guest (mke2fs)"),
    ("xfsprogs", "file systems of shared volumes in tests (mkfs.xfs, xfs_repair)"),
    ("cpio", "packs the tiny guest"),
    ("zstd", "packs the tiny guest"),
    ("kmod", "indexes the tiny guest's kernel modules (depmod)"),
    ("debian-archive-keyring", "proves that guest packages are Debian's"),
    ("openssh-client", "logs in to guests in tests"),
    ("fence-agents", "programs that switch hosts off"),
    ("openssl", "makes an administrator's certificate in the console's test"),
    ("busybox", "plays guests of networks in tests (udhcpc, ping, nslookup)"),
    ("python3", "writes to shared volumes and verifies, in tests"),
    ("curl", "asks the web console's server as a browser does, in tests"),
    ("chromium", "the browser that the web console is tested with"),
    ("qemu-guest-agent", "the real agent that our client is tested against"),
];

/// Only where no program of that name is there, of whatever origin.
const PROGRAMS: &[(&str, &str)] =
    &[("nodejs", "builds the web console (node)"), ("npm", "brings the web console's libraries")];

/// Programs of packages that would start services: they are taken out of the package, into
/// `target/tools`. The package, and the program's path in it.
const TAKEN: &[(&str, &str)] = &[("prometheus", "usr/bin/promtool")];

/// Peers' test programs that are built from the crates registry into `target/tools/bin`, unchanged: the
/// crate and its program, and its version.
const BUILT: &[(&str, &str)] = &[("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Installs what is missing and says so; silent and quick when nothing is.
pub(crate) fn run() -> Result<()> {
    let qemu: Vec<_> = QEMU.iter().filter(|(name, _)| !is_qemu_new_enough(name)).collect();
    let packages = PACKAGES.iter().filter(|(name, _)| is_missing(name));
    let programs = PROGRAMS.iter().filter(|(name, _)| has_no_program(name));
    let plain: Vec<_> = packages.chain(programs).collect();
    if qemu.is_empty() && plain.is_empty() {
        return take();
    }
    if !says_yes(cmd("apt-get", ["--version"])) {
        bail!(
            "this is no Debian machine (no apt-get), and these are missing: {}; \
             install them by hand, with QEMU 10 or newer",
            names(&[qemu, plain].concat())
        );
    }
    println!("Installing Debian packages that Muster needs here:");
    for (name, reason) in qemu.iter().chain(&plain) {
        println!("  {name:24} {reason}");
    }
    let mut wanted: Vec<String> = plain.iter().map(|(name, _)| (*name).to_owned()).collect();
    update()?;
    if !qemu.is_empty() {
        let suffix = qemu_suffix()?;
        let needs = if suffix.is_empty() { &[][..] } else { QEMU_NEEDS };
        let named = qemu.iter().map(|(name, _)| name).chain(needs);
        wanted.extend(named.map(|name| format!("{name}{suffix}")));
    }
    let mut apt =
        as_root("env", ["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y"]);
    apt.args(["--no-install-recommends", "-o", "Dpkg::Use-Pty=0"]).args(&wanted);
    quiet(apt).context("apt-get could not install; the lines above say why")?;
    if let Some((name, _)) = QEMU.iter().find(|(name, _)| !is_qemu_new_enough(name)) {
        bail!("{name} is still older than 10 after the install; check apt-cache policy {name}");
    }
    println!("Installed: {}", wanted.join(" "));
    take()
}

/// Takes programs out of packages, where they are not there yet.
fn take() -> Result<()> {
    let tools = target().join("tools");
    for (package, path) in TAKEN {
        let name = path.rsplit('/').next().unwrap_or(path);
        if tools.join(name).exists() {
            continue;
        }
        println!("Taking {name} out of the package {package}");
        let dir = tools.join("package");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let download = || {
            let mut apt = cmd("apt-get", ["download", "-qq", package]);
            apt.current_dir(&dir);
            quiet(apt)
        };
        if download().is_err() {
            update()?;
            download().with_context(|| format!("apt-get cannot download {package}"))?;
        }
        let file = fs::read_dir(&dir)?.next().context("apt-get downloaded nothing")??.path();
        let (from, to) = (file.to_string_lossy(), dir.to_string_lossy());
        quiet(cmd("dpkg-deb", ["--extract", &from, &to]))?;
        fs::rename(dir.join(path), tools.join(name))
            .with_context(|| format!("{package} has no {path}"))?;
        fs::remove_dir_all(&dir)?;
    }
    build(&tools)
}

/// Builds the peers' suites of file systems, where they are not there yet; a minute or two, once.
fn build(tools: &Path) -> Result<()> {
    for (name, version) in BUILT {
        if tools.join("bin").join(name).exists() {
            continue;
        }
        println!("Building {name} {version}, a test suite for file systems");
        let (root, dir) = (tools.to_string_lossy(), tools.join("build"));
        let dir = dir.to_string_lossy();
        let more = ["--version", version, "--root", &root, "--target-dir", &dir, name];
        quiet(cmd("cargo", [&["install", "--locked", "--quiet"], &more[..]].concat()))
            .with_context(|| format!("cargo cannot install {name}; is the registry reachable?"))?;
    }
    let _ = fs::remove_dir_all(tools.join("build"));
    Ok(())
}

/// Whether neither the package nor another one with the same program is there.
fn is_missing(package: &str) -> bool {
    let instead = (package == "busybox").then_some("busybox-static");
    version_of(package).is_none() && instead.is_none_or(|other| version_of(other).is_none())
}

/// Whether the program of a package cannot be run.
fn has_no_program(package: &str) -> bool {
    let program = if package == "nodejs" { "node" } else { package };
    !says_yes(cmd(program, ["--version"]))
}

fn names(packages: &[&(&str, &str)]) -> String {
    packages.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn update() -> Result<()> {
    quiet(as_root("apt-get", ["update", "-qq"]))
        .context("apt-get update failed; check the network and /etc/apt/sources.list")?;
    Ok(())
}

/// What follows the QEMU packages' names so that apt takes version 10; may add backports.
fn qemu_suffix() -> Result<String> {
    if candidate_is_new_enough("") {
        return Ok(String::new());
    }
    let codename =
        apt::codename().context("QEMU 10 is needed; on this system install it by hand")?;
    let backports = format!("{codename}-backports");
    if !apt::sources().iter().any(|source| source.suite == backports) {
        add_backports(&codename, &backports)?;
        update()?;
    }
    Ok(format!("/{backports}"))
}

fn candidate_is_new_enough(suffix: &str) -> bool {
    let policy = quiet(cmd("apt-cache", ["policy", &format!("qemu-system-x86{suffix}")]));
    let policy = policy.unwrap_or_default();
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    candidate.is_some_and(is_at_least_min)
}

fn add_backports(codename: &str, backports: &str) -> Result<()> {
    let archive = apt::archive(codename).with_context(|| {
        format!("no apt source for {codename} found; add one, or install QEMU 10 by hand")
    })?;
    let signed = archive.signed_by.map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
    let line = format!("deb {signed}{} {backports} main\n", archive.uri);
    println!("Adding {BACKPORTS_FILE} for QEMU 10: {}", line.trim());
    let staged = std::env::temp_dir().join(format!("muster-backports-{}", std::process::id()));
    fs::write(&staged, line)?;
    let done = show(as_root("install", ["-m644", &staged.to_string_lossy(), BACKPORTS_FILE]));
    fs::remove_file(&staged)?;
    done
}

fn is_qemu_new_enough(package: &str) -> bool {
    if version_of(package).is_some_and(|version| is_at_least_min(&version)) {
        return true;
    }
    // A QEMU built by hand counts as well, if it is the one that would be found.
    let program = if package == "qemu-utils" { "qemu-img" } else { "qemu-system-x86_64" };
    Path::new("/usr/local/bin").join(program).exists()
}

fn is_at_least_min(version: &str) -> bool {
    says_yes(cmd("dpkg", ["--compare-versions", version, "ge", QEMU_VERSION_MIN]))
}

/// The version of an installed package.
fn version_of(package: &str) -> Option<String> {
    let asked = ["-W", "-f", "${db:Status-Status} ${Version}", package];
    let answer = quiet(cmd("dpkg-query", asked)).ok()?;
    answer.strip_prefix("installed ").map(str::to_owned)
}
