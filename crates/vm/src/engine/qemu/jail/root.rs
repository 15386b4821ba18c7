//! The root file system of a jail: what QEMU reads to start, and nothing of the host's life.
#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;

use super::JailError;
use super::JailPlan;

/// The one setting of the kernel that QEMU reads, before it maps memory without reserving it.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Where the new root is put together: a directory that every host has and no jail needs.
const STAGE: &str = "/sys";

/// Directories of libraries; links among them are copied as links.
const LIBRARIES: [&str; 5] = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64"];

/// Devices that tell and change nothing.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// Size of the private `/tmp`: QEMU hardly uses it, and its pages are the host's memory.
const TMP_SIZE: &str = "size=4m,nr_inodes=256,mode=1777";

/// Size of the root's own file system, which holds names and mount points only.
const ROOT_SIZE: &str = "size=1m,nr_inodes=4096,mode=755";

const LOCKED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Builds the root for this mount namespace and moves into it; the host's is gone afterwards.
pub(super) fn build(plan: &JailPlan) -> Result<(), JailError> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(at("/"))?;
    mount(Some("jail"), STAGE, Some("tmpfs"), LOCKED, Some(ROOT_SIZE)).map_err(at(STAGE))?;
    // Before anything is shown: a program that lies below /tmp must not be covered by it.
    let tmp = inside(Path::new("/tmp"));
    make_dir(&tmp)?;
    mount(Some("jail"), &tmp, Some("tmpfs"), LOCKED, Some(TMP_SIZE)).map_err(at("/tmp"))?;
    for library in LIBRARIES {
        show_library(Path::new(library))?;
    }
    for path in &plan.show {
        show(path)?;
    }
    show(&plan.program)?;
    let kvm = plan.kvm.then_some("/dev/kvm");
    for device in DEVICES.into_iter().chain(kvm) {
        let inside = inside(Path::new(device));
        touch(&inside)?;
        bind(Path::new(device), &inside)?;
        // A device is opened for writing; only what belongs to files is taken away.
        restrict(&inside, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    }
    copy_setting(Path::new(OVERCOMMIT))?;
    std::env::set_current_dir(STAGE).map_err(|error| JailError::new("enter root", error))?;
    nix::unistd::pivot_root(".", ".").map_err(at("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("old root"))?;
    std::env::set_current_dir("/").map_err(|error| JailError::new("enter root", error))?;
    let flags = LOCKED | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, "/", none, flags, none).map_err(at("read-only /"))
}

fn at(what: &str) -> impl FnOnce(nix::Error) -> JailError {
    let step = format!("mount {what}");
    move |error| JailError::new(&step, error)
}

/// Path of a host's path while the root is put together.
fn inside(path: &Path) -> std::path::PathBuf {
    Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path))
}

fn show_library(path: &Path) -> Result<(), JailError> {
    match fs::read_link(path) {
        Ok(target) => std::os::unix::fs::symlink(target, inside(path))
            .map_err(|error| JailError::new("link library", error)),
        Err(_) => show(path),
    }
}

/// Shows a file or directory read-only at its own path; what does not exist is left out.
fn show(path: &Path) -> Result<(), JailError> {
    let Ok(meta) = fs::metadata(path) else { return Ok(()) };
    let dst = inside(path);
    if dst.exists() {
        return Ok(());
    }
    if meta.is_dir() {
        make_dir(&dst)?;
    } else {
        touch(&dst)?;
    }
    bind(path, &dst)?;
    restrict(&dst, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)
}

fn bind(src: &Path, dst: &Path) -> Result<(), JailError> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(src), dst, None::<&str>, flags, None::<&str>).map_err(at(&src.display().to_string()))
}

/// Sets mount attributes on a mount and everything mounted below it.
fn restrict(path: &Path, attributes: u64) -> Result<(), JailError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| JailError::new("mount path", error))?;
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the pointers are to live values of the sizes given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(JailError::new("restrict mount", format!("{}: {error}", path.display())))
}

fn make_dir(path: &Path) -> Result<(), JailError> {
    fs::create_dir_all(path).map_err(|error| JailError::new("make directory", error))?;
    let mut step = path;
    // The umask may be tight; the prisoner is another user and must get through.
    while step != Path::new(STAGE) {
        let _ = fs::set_permissions(step, fs::Permissions::from_mode(0o755));
        match step.parent() {
            Some(parent) => step = parent,
            None => break,
        }
    }
    Ok(())
}

/// Shows a kernel setting as a plain file with its present value; there is no /proc inside.
fn copy_setting(path: &Path) -> Result<(), JailError> {
    let Ok(value) = fs::read(path) else { return Ok(()) };
    let dst = inside(path);
    touch(&dst)?;
    fs::write(dst, value).map_err(|error| JailError::new("copy setting", error))
}

fn touch(path: &Path) -> Result<(), JailError> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    fs::write(path, "").map_err(|error| JailError::new("make mount point", error))
}
