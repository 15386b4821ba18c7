//! Messages with the time at which the kernel took them in: on a machine that a migration keeps busy,
//! a thread that waits for them would be late itself.

use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use anyhow::Result;
use nix::sys::socket::ControlMessageOwned;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recvmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::time::TimeSpec;

/// Asks for the stamps.
pub(super) fn ask(socket: &impl AsFd) -> Result<()> {
    setsockopt(socket, ReceiveTimestampns, &true).context("no stamps on messages")
}

/// One message, and when it came in.
pub(super) fn receive(socket: &impl AsRawFd, text: &mut [u8]) -> Result<(usize, Instant)> {
    let mut stamp = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(text)];
    let (flags, stamps) = (MsgFlags::empty(), Some(&mut *stamp));
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, stamps, flags)?;
    let stamp = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    // The stamp is of the wall clock; what counts is how long ago that was.
    let stamp = UNIX_EPOCH + stamp.context("a message without a stamp")?;
    let ago = SystemTime::now().duration_since(stamp).unwrap_or_default();
    let came = Instant::now().checked_sub(ago).context("a strange stamp")?;
    Ok((message.bytes, came))
}
