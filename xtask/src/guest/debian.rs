//! The Debian guests: Debian 12 as an administrator would install it, on a disk that boots itself;
//! and the same as a host, with QEMU, for the test of our own package.
//!
//! ```text
//! GPT   14  BIOS boot   1 MiB..2 MiB    GRUB's core image
//!       15  EFI system  2 MiB..18 MiB   Debian's signed shim and GRUB (Secure Boot works)
//!        1  root, ext4  18 MiB..end     last, so that cloud-init can grow it with the disk
//! ```
//!
//! mmdebstrap makes the tree, `mke2fs -d` the file system, and this file puts GRUB's two images
//! where `grub-bios-setup` would: so nothing is mounted, no loop device is taken, and there is
//! nothing to clean up when a build is cut short. Needs root, for the owners of files.

use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use super::SUITE;
use super::apt_lines;
use super::backports_line;
use super::find_by_prefix;
use super::tool;
use super::write_at;
use crate::run::is_root;

/// The disk as it is made; a VM's disk may be larger and the root file system follows.
const DISK_MIB: u64 = 3072;
const BIOS_MIB: u64 = 1;
const ESP_MIB: u64 = 2;
const ROOT_MIB: u64 = 18;

/// GPT keeps its second table in the last sectors; one MiB is the usual room for it.
const GPT_END_MIB: u64 = 1;

/// Fixed, so that boot loader, fstab and file system agree without asking a tool.
const ROOT_UUID: &str = "6d757374-6572-4d12-8000-000000000001";

const SECTOR: u64 = 512;

/// What both are made of.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,systemd-resolved,dbus,udev,\
    qemu-guest-agent,iproute2,e2fsprogs,fdisk,kmod,zstd,\
    grub-common,grub2-common,grub-pc-bin,grub-efi-amd64-signed,shim-signed";

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A machine of an administrator: cloud-init, SSH, tools.
    Guest,
    /// A host for Muster's package: all that the package depends on, and nothing that slows a boot.
    Host,
}

impl Role {
    fn packages(self) -> &'static str {
        match self {
            Role::Guest => {
                "cloud-init,cloud-guest-utils,openssh-server,sudo,iputils-ping,ca-certificates,\
                 less,nano-tiny,python3-minimal"
            }
            Role::Host => {
                // Without its suite, apt would take the older one of a package that QEMU needs.
                "qemu-system-x86/bookworm-backports,qemu-system-common/bookworm-backports,\
                 qemu-system-data/bookworm-backports,seabios/bookworm-backports,\
                 qemu-utils/bookworm-backports,ovmf,nftables,libgcc-s1,passwd,\
                 init-system-helpers,procps"
            }
        }
    }

    /// Further arguments of the kernel.
    fn kernel_args(self) -> &'static str {
        match self {
            Role::Guest => "",
            // What they cost is multiplied by emulation.
            Role::Host => " mitigations=off",
        }
    }

    fn host_name(self) -> &'static str {
        match self {
            Role::Guest => "debian12",
            Role::Host => "host1",
        }
    }
}

/// Left out of the image: text nobody reads in a test guest.
const EXCLUDED: [&str; 4] =
    ["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*"];

/// Without `no_timer_check`, the kernel may find the timer broken where a busy machine emulates it,
/// and then everything takes minutes.
const KERNEL_ARGS: &str = "ro console=tty0 console=ttyS0,115200 quiet no_timer_check";

/// Modules in GRUB's core image: enough to read the root file system and start Linux from it.
const GRUB_MODULES: &str =
    "biosdisk part_gpt ext2 search_fs_uuid configfile normal linux boot test";

const CUSTOMIZE: &str = include_str!("../../guests/debian/customize");

pub(super) fn recipe() -> Vec<&'static [u8]> {
    vec![CUSTOMIZE.as_bytes(), include_bytes!("debian.rs")]
}

pub(super) fn build(role: Role, work: &Path, image: &Path) -> Result<()> {
    if !is_root() {
        bail!("building the Debian guest needs root (files of many owners); run it with sudo");
    }
    let (tree, disk) = (work.join("tree"), work.join("disk.raw"));
    install(role, work, &tree)?;
    configure_boot(role, &tree)?;
    make_core_image(&tree)?;
    partition(&disk)?;
    write_boot_code(&tree, &disk)?;
    write_esp(work, &tree, &disk)?;
    write_root(&tree, &disk)?;
    let (disk, image) = (disk.to_string_lossy(), image.to_string_lossy());
    let options = "compression_type=zstd";
    let convert = ["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", options, &disk, &image];
    tool("qemu-img", &convert).map(drop)
}

fn install(role: Role, work: &Path, tree: &Path) -> Result<()> {
    let script = work.join("customize");
    fs::write(&script, CUSTOMIZE)?;
    let mut args: Vec<String> =
        ["--quiet", "--mode=root", "--variant=minbase"].map(str::to_owned).to_vec();
    args.push(format!("--include={PACKAGES},{}", role.packages()));
    args.extend(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
    // Boot scripts of a package must not start a service on the build machine.
    args.push("--aptopt=APT::Install-Recommends \"false\"".to_owned());
    args.push(format!("--customize-hook=sh {} \"$1\" {}", script.display(), role.host_name()));
    args.push(SUITE.to_owned());
    args.push(tree.to_string_lossy().into_owned());
    args.extend(apt_lines());
    if role == Role::Host {
        args.push(backports_line());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tool("mmdebstrap", &args).map(drop)
}

/// The file system table and GRUB's menu. A later `update-grub` in the guest may replace the menu.
fn configure_boot(role: Role, tree: &Path) -> Result<()> {
    fs::write(tree.join("etc/fstab"), format!("UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n"))?;
    let kernel = find_by_prefix(&tree.join("boot"), "vmlinuz-")?;
    let kernel = kernel.file_name().context("no kernel")?.to_string_lossy().into_owned();
    let version = kernel.trim_start_matches("vmlinuz-");
    let menu = format!(
        "set timeout=0\nmenuentry \"Debian 12\" {{\n\
         search --no-floppy --fs-uuid --set=root {ROOT_UUID}\n\
         linux /boot/{kernel} root=UUID={ROOT_UUID} {KERNEL_ARGS}{}\n\
         initrd /boot/initrd.img-{version}\n}}\n",
        role.kernel_args(),
    );
    fs::write(tree.join("boot/grub/grub.cfg"), menu)?;
    Ok(())
}

/// GRUB's core image for BIOS, made by the guest's own GRUB, with the way to the menu built in.
fn make_core_image(tree: &Path) -> Result<()> {
    let early = format!("search.fs_uuid {ROOT_UUID} root\nset prefix=($root)/boot/grub\n");
    fs::write(tree.join("boot/grub/early.cfg"), early)?;
    let make = format!(
        "mkdir -p /boot/grub/i386-pc && cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst \
         /boot/grub/i386-pc/ && grub-mkimage -O i386-pc -c /boot/grub/early.cfg -p /boot/grub \
         -o /boot/grub/i386-pc/core.img {GRUB_MODULES}"
    );
    tool("chroot", &[&tree.to_string_lossy(), "sh", "-c", &make]).map(drop)
}

fn partition(disk: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(DISK_MIB << 20)?;
    let bios = "21686148-6449-6E6F-744E-656564454649";
    let (esp_mib, root_mib) = (ROOT_MIB - ESP_MIB, DISK_MIB - ROOT_MIB - GPT_END_MIB);
    let table = format!(
        "label: gpt\n14 : start={BIOS_MIB}MiB, size=1MiB, type={bios}\n\
         15 : start={ESP_MIB}MiB, size={esp_mib}MiB, type=U\n\
         1 : start={ROOT_MIB}MiB, size={root_mib}MiB, type=L\n"
    );
    let script = "printf %s \"$1\" | sfdisk --quiet \"$0\"";
    tool("sh", &["-c", script, &disk.to_string_lossy(), &table]).map(drop)
}

/// What `grub-bios-setup` does: the first sector learns where the core image is, and the core
/// image's first sector where the rest of it is. Offsets: GRUB's `include/grub/i386/pc/boot.h`.
fn write_boot_code(tree: &Path, disk: &Path) -> Result<()> {
    let mut boot = fs::read(tree.join("usr/lib/grub/i386-pc/boot.img"))?;
    let mut core = fs::read(tree.join("boot/grub/i386-pc/core.img"))?;
    ensure!(boot.len() as u64 == SECTOR, "GRUB's boot.img is not one sector");
    ensure!((core.len() as u64) < (ESP_MIB - BIOS_MIB) << 20, "GRUB's core image is too large");
    let at = (BIOS_MIB << 20) / SECTOR;
    let rest = u16::try_from((core.len() as u64).div_ceil(SECTOR) - 1)?;
    boot[0x5c..0x64].copy_from_slice(&at.to_le_bytes());
    // Two no-ops in place of a check that only floppy disks need.
    boot[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    core[0x1f4..0x1fc].copy_from_slice(&(at + 1).to_le_bytes());
    core[0x1fc..0x1fe].copy_from_slice(&rest.to_le_bytes());
    core[0x1fe..0x200].copy_from_slice(&0x820_u16.to_le_bytes());
    // Behind byte 440 begins the partition table.
    write_at(disk, 0, &boot[..440])?;
    write_at(disk, BIOS_MIB << 20, &core)
}

fn write_esp(work: &Path, tree: &Path, disk: &Path) -> Result<()> {
    let esp = work.join("esp");
    fs::File::create(&esp)?.set_len((ROOT_MIB - ESP_MIB) << 20)?;
    let image = esp.to_string_lossy();
    tool("mkfs.vfat", &["-n", "ESP", &image])?;
    for dir in ["::/EFI", "::/EFI/BOOT", "::/EFI/debian"] {
        tool("mmd", &["-i", &image, dir])?;
    }
    let config = work.join("grub.cfg");
    let text = format!(
        "search.fs_uuid {ROOT_UUID} root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    );
    fs::write(&config, text)?;
    let files = [
        (tree.join("usr/lib/shim/shimx64.efi.signed"), "::/EFI/BOOT/BOOTX64.EFI"),
        (tree.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"), "::/EFI/BOOT/grubx64.efi"),
        (config, "::/EFI/debian/grub.cfg"),
    ];
    for (from, to) in files {
        tool("mcopy", &["-i", &image, &from.to_string_lossy(), to])?;
    }
    write_at(disk, ESP_MIB << 20, &fs::read(&esp)?)
}

fn write_root(tree: &Path, disk: &Path) -> Result<()> {
    // GRUB 2.06 does not know the two features that are taken away here.
    let features = "^metadata_csum_seed,^orphan_file";
    let offset = format!("offset={},lazy_itable_init=1", ROOT_MIB << 20);
    let size = format!("{}M", DISK_MIB - ROOT_MIB - GPT_END_MIB);
    let (tree, disk) = (tree.to_string_lossy(), disk.to_string_lossy());
    let args = [
        "-q", "-F", "-t", "ext4", "-O", features, "-L", "root", "-U", ROOT_UUID, "-d", &tree, "-E",
        &offset, &disk, &size,
    ];
    tool("mke2fs", &args).map(drop)
}
