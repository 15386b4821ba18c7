//! Making a tap. The one place with `unsafe`: the kernel offers no other way than this ioctl.
//!
//! The tap is not persistent: it lives exactly as long as a descriptor of it is open somewhere, so
//! a machine process that dies takes its tap with it and none is ever left over.

#![allow(unsafe_code, reason = "TUNSETIFF is an ioctl; no safe interface to it exists")]

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::host::HostError;
use crate::tag::LINK_NAME_CHARS_MAX;
use crate::tag::LinkName;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

/// Opens a new tap with a virtio-net header in front of each frame. Fails if the name exists.
pub(super) fn open_tap(name: &LinkName) -> Result<OwnedFd, HostError> {
    let failed = |source: io::Error| HostError::Tap { name: name.clone(), source };
    let bytes = name.as_str().as_bytes();
    if bytes.is_empty() || bytes.len() > LINK_NAME_CHARS_MAX || bytes.contains(&0) {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(failed)?;

    let mut ifr_name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    // EXCL: a device that somebody else made under this name is never taken over.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let request = libc::ifreq {
        ifr_name,
        // The field is 16 bits wide and the flags are bits of it; 0x8000 becomes the sign.
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // SAFETY: the descriptor is open for the whole call, TUNSETIFF reads and writes one `ifreq`,
    // and `request` is a fully initialised one that outlives the call.
    match unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) } {
        Ok(_) => Ok(OwnedFd::from(file)),
        Err(nix::Error::EBUSY) => Err(HostError::TapBusy(name.clone())),
        Err(error) => Err(failed(error.into())),
    }
}
