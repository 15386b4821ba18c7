//! The tiny guest: Debian's cloud kernel, busybox and the real guest agent on a bootable disk.
//!
//! ```text
//! sector 0       syslinux' boot record and the partition table
//! 1 MiB          one FAT partition, active, of the EFI type
//!   ldlinux.sys, syslinux.cfg            BIOS
//!   EFI/BOOT/{BOOTX64,grubx64}.EFI       UEFI: Debian's signed shim and GRUB (Secure Boot works)
//!   EFI/debian/grub.cfg
//!   vmlinuz, initrd                      shared by both
//! ```
//!
//! Nothing is mounted and nothing needs root: mtools writes the partition, mmdebstrap only
//! unpacks. The guest's own programs are in `xtask/guests/tiny`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::SUITE;
use super::apt_lines;
use super::find_by_prefix;
use super::tool;
use super::write_at;
use crate::run::root;

/// Room for a kernel, an initrd and two boot loaders, and some space to write files from a guest.
const DISK_MIB: u64 = 64;

/// Where the partition starts; the usual alignment.
const PARTITION_MIB: u64 = 1;

/// What the guest is made of: kernel, agent, shell, boot loaders.
const PACKAGES: &str = "linux-image-cloud-amd64,qemu-guest-agent,busybox-static,syslinux-common,\
                        grub-efi-amd64-signed,shim-signed";

/// `no_timer_check`, `mitigations=off` and `nokaslr` each save start-up time under TCG.
const KERNEL_ARGS: &str = "console=tty0 console=ttyS0,115200 quiet loglevel=1 no_timer_check \
                           mitigations=off nokaslr cryptomgr.notests random.trust_cpu=on rdinit=/init";

const INIT: &str = include_str!("../../guests/tiny/init");
const AGENT: &str = include_str!("../../guests/tiny/agent");
const ON_EVENT: &str = include_str!("../../guests/tiny/on-event");
const LEASE: &str = include_str!("../../guests/tiny/lease");
const SHUTDOWN: &str = include_str!("../../guests/tiny/shutdown");
const MODULES: &str = include_str!("../../guests/tiny/modules");
/// Modules that the kernel asks for when something of theirs is mounted: a start is not to wait for
/// them.
const MODULES_ON_DEMAND: [&str; 2] = ["ext4", "crc32c_generic"];
const GUESTLOAD: &str = include_str!("../../guests/tiny/guestload.c");

pub(super) fn recipe() -> Vec<&'static [u8]> {
    let texts = [INIT, AGENT, ON_EVENT, LEASE, SHUTDOWN, MODULES, GUESTLOAD, KERNEL_ARGS];
    let mut parts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
    parts.push(include_bytes!("tiny.rs"));
    parts
}

pub(super) fn build(work: &Path, image: &Path) -> Result<()> {
    let debian = work.join("debian");
    unpack(&debian)?;
    let initrd = work.join("initrd");
    make_initrd(&debian, &work.join("root"), &initrd)?;
    make_disk(&debian, &initrd, work, image)
}

/// Unpacks the packages and all they depend on, without running any of their scripts.
fn unpack(debian: &Path) -> Result<()> {
    let include = format!("--include={PACKAGES}");
    let dir = debian.to_string_lossy();
    let lines = apt_lines();
    let mut args = vec!["--quiet", "--variant=extract", &include, SUITE, &dir];
    args.extend(lines.iter().map(String::as_str));
    tool("mmdebstrap", &args).map(drop)
}

fn make_initrd(debian: &Path, tree: &Path, initrd: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "sys", "usr/bin", "usr/sbin", "lib64", "root", "var"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    symlink("bin", tree.join("sbin"))?;
    let texts = [
        ("init", INIT),
        ("etc/agent", AGENT),
        ("etc/on-event", ON_EVENT),
        ("etc/lease", LEASE),
        ("bin/shutdown", SHUTDOWN),
        ("etc/modules", MODULES),
        ("etc/passwd", "root::0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        (
            "etc/os-release",
            "ID=muster-tiny\nNAME=\"Muster tiny guest\"\nVERSION_ID=\"1\"\n\
                            PRETTY_NAME=\"Muster tiny guest 1\"\n",
        ),
    ];
    for (path, text) in texts {
        write_program(&tree.join(path), text.as_bytes())?;
    }
    write_program(&tree.join("bin/busybox"), &fs::read(debian.join("bin/busybox"))?)?;
    compile_guestload(&tree.join("bin/guestload"))?;
    copy_agent(debian, tree)?;
    copy_modules(debian, tree)?;
    pack(tree, initrd)
}

/// Packs a tree as an archive that the kernel unpacks at its start.
pub(super) fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let (from, to) = (tree.to_string_lossy(), archive.to_string_lossy());
    let pack = "cd \"$0\" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet | \
                zstd -q -9 -o \"$1\"";
    tool("sh", &["-c", pack, &from, &to]).map(drop)
}

fn write_program(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn compile_guestload(program: &Path) -> Result<()> {
    let source = root().join("xtask/guests/tiny/guestload.c");
    let (source, program) = (source.to_string_lossy(), program.to_string_lossy());
    tool("gcc", &["-O2", "-static", "-s", "-Wall", "-Werror", "-o", &program, &source]).map(drop)
}

/// The agent and the libraries its own loader says it needs, at the paths it looks for them.
fn copy_agent(debian: &Path, tree: &Path) -> Result<()> {
    let agent = debian.join("usr/sbin/qemu-ga");
    write_program(&tree.join("usr/sbin/qemu-ga"), &fs::read(&agent)?)?;
    let loader = "lib64/ld-linux-x86-64.so.2";
    write_program(&tree.join(loader), &fs::read(debian.join(loader))?)?;
    let dirs: Vec<PathBuf> = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
        .iter()
        .map(|dir| debian.join(dir))
        .collect();
    let path = dirs.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(":");
    let (loader, agent) = (debian.join(loader), agent.to_string_lossy());
    let listed = tool(&loader.to_string_lossy(), &["--library-path", &path, "--list", &agent])?;
    let to = tree.join("lib/x86_64-linux-gnu");
    fs::create_dir_all(&to)?;
    let libraries = listed.lines().filter_map(|line| line.split("=> ").nth(1)?.split(' ').next());
    for library in libraries {
        let library = Path::new(library);
        let name = library.file_name().context("the loader named no file")?;
        ensure!(library.starts_with(debian), "{} is the host's", library.display());
        write_program(&to.join(name), &fs::read(library)?)?;
    }
    Ok(())
}

/// Copies the listed modules and what they depend on, and indexes them for modprobe.
fn copy_modules(debian: &Path, tree: &Path) -> Result<()> {
    let all = find_by_prefix(&debian.join("lib/modules"), "")?;
    let version = all.file_name().context("no kernel")?.to_string_lossy().into_owned();
    tool("depmod", &["-b", &debian.to_string_lossy(), &version])?;
    let index = fs::read_to_string(all.join("modules.dep"))?;
    let to = tree.join("lib/modules").join(&version);
    let builtin = fs::read_to_string(all.join("modules.builtin"))?;
    let builtin: Vec<String> = builtin.lines().map(module_name).collect();
    for wanted in MODULES.split_whitespace().chain(MODULES_ON_DEMAND) {
        if builtin.iter().any(|it| it == wanted) {
            continue;
        }
        let line = index
            .lines()
            .find(|line| module_name(line.split(':').next().unwrap_or_default()) == wanted)
            .with_context(|| format!("the kernel has no module {wanted}"))?;
        for file in line.replace(':', "").split(' ').filter(|file| !file.is_empty()) {
            let copy = to.join(file);
            fs::create_dir_all(copy.parent().unwrap_or(&to))?;
            fs::copy(all.join(file), copy)?;
        }
    }
    for list in ["modules.builtin", "modules.order"] {
        fs::copy(all.join(list), to.join(list))?;
    }
    tool("depmod", &["-b", &tree.to_string_lossy(), &version])?;
    for entry in fs::read_dir(&to)?.flatten() {
        // busybox' modprobe reads the text index only.
        let name = entry.file_name().to_string_lossy().into_owned();
        let read = ["modules.dep", "modules.alias", "modules.symbols"].contains(&name.as_str());
        if entry.path().is_file() && !read {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A module's name as modprobe knows it, from its path.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn make_disk(debian: &Path, initrd: &Path, work: &Path, image: &Path) -> Result<()> {
    let disk = image.to_string_lossy();
    fs::File::create(image)?.set_len(DISK_MIB << 20)?;
    let table = format!("label: dos\nstart={PARTITION_MIB}MiB, type=ef, bootable\n");
    let script = "printf %s \"$1\" | sfdisk --quiet \"$0\"";
    tool("sh", &["-c", script, &disk, &table])?;
    let mbr = fs::read(debian.join("usr/lib/syslinux/mbr/mbr.bin"))?;
    ensure!(mbr.len() <= 440, "the boot record would overwrite the partition table");
    write_at(image, 0, &mbr)?;

    let (sectors, kib) = (PARTITION_MIB * 2048, (DISK_MIB - PARTITION_MIB) * 1024);
    let (sectors, kib) = (sectors.to_string(), kib.to_string());
    let offset = (PARTITION_MIB << 20).to_string();
    let mkfs = ["-F", "32", "-s", "1", "-n", "TINY", "-h", &sectors, "--offset", &sectors];
    let mut args = mkfs.to_vec();
    args.extend([&*disk, &kib]);
    tool("mkfs.vfat", &args)?;
    tool("syslinux", &["--install", "--offset", &offset, &disk])?;

    let partition = partition(image);
    for dir in ["::/EFI", "::/EFI/BOOT", "::/EFI/debian"] {
        tool("mmd", &["-i", &partition, dir])?;
    }
    let signed = debian.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let files = [
        (find_by_prefix(&debian.join("boot"), "vmlinuz-")?, "::/vmlinuz"),
        (initrd.to_path_buf(), "::/initrd"),
        (debian.join("usr/lib/shim/shimx64.efi.signed"), "::/EFI/BOOT/BOOTX64.EFI"),
        (signed, "::/EFI/BOOT/grubx64.efi"),
        (text_file(work, "syslinux.cfg", &syslinux_config())?, "::/syslinux.cfg"),
        (text_file(work, "grub.cfg", &grub_config())?, "::/EFI/debian/grub.cfg"),
    ];
    for (from, to) in files {
        tool("mcopy", &["-i", &partition, &from.to_string_lossy(), to])?;
    }
    Ok(())
}

/// The partition of an image, as mtools call it.
pub(super) fn partition(image: &Path) -> String {
    format!("{}@@{}", image.display(), PARTITION_MIB << 20)
}

fn text_file(work: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = work.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

fn syslinux_config() -> String {
    format!(
        "DEFAULT tiny\nPROMPT 0\nTIMEOUT 0\nLABEL tiny\n  KERNEL /vmlinuz\n  INITRD /initrd\n  \
         APPEND {KERNEL_ARGS}\n"
    )
}

fn grub_config() -> String {
    format!("set timeout=0\nlinux ($root)/vmlinuz {KERNEL_ARGS}\ninitrd ($root)/initrd\nboot\n")
}
