//! The hardware behind the guard: resets the host when it is not told in time that all is well.
//!
//! Opened only under a lease that ends by itself, and closed with the magic letter when that is
//! over. A guard that is killed leaves it running: its successor has that much time.
//!
//! A named pipe in the place of the device is a pretend watchdog (the lab's, and the tests'): each
//! setting is a line `arm SECONDS`, each sign of life a `.`, and the magic letter is the same.
#![allow(unsafe_code, reason = "the watchdog's ioctls have no safe interface")]

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

mod call {
    nix::ioctl_readwrite!(set_timeout, b'W', 6, nix::libc::c_int);
}

/// The watchdog of this host.
#[derive(Debug)]
pub(super) struct Watchdog {
    path: PathBuf,
    armed: Option<(File, Duration)>,
}

impl Watchdog {
    /// The device, which is not touched yet.
    ///
    /// # Errors
    /// It is not there, or is something else.
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let kind = fs::metadata(&path)?.file_type();
        if !kind.is_char_device() && !kind.is_fifo() {
            return Err(io::Error::other("it is neither a device nor a named pipe"));
        }
        Ok(Self { path, armed: None })
    }

    /// With which time it runs.
    pub(super) fn armed(&self) -> Option<Duration> {
        self.armed.as_ref().map(|(_, time)| *time)
    }

    /// Lets it run with that time.
    pub(super) fn arm(&mut self, time: Duration) -> io::Result<()> {
        if self.armed() == Some(time) {
            return Ok(());
        }
        let file = match self.armed.take() {
            Some((file, _)) => file,
            // Reading, too: a named pipe without a reader could not be opened.
            None => File::options()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&self.path)
                .or_else(|_| File::options().write(true).open(&self.path))?,
        };
        let seconds = time.as_secs();
        if file.metadata()?.file_type().is_fifo() {
            (&file).write_all(format!("arm {seconds}\n").as_bytes())?;
        } else {
            set_timeout(&file, seconds)?;
        }
        self.armed = Some((file, time));
        Ok(())
    }

    /// Says that all is well.
    pub(super) fn pet(&self) -> io::Result<()> {
        match &self.armed {
            Some((file, _)) => (&mut &*file).write_all(b"."),
            None => Ok(()),
        }
    }

    /// Stops it: nothing depends on it any more.
    pub(super) fn disarm(&mut self) -> io::Result<()> {
        match self.armed.take() {
            Some((mut file, _)) => file.write_all(b"V"),
            None => Ok(()),
        }
    }
}

/// Sets the time, and makes sure that the device did not take a longer one: takeover reckons with it.
fn set_timeout(file: &File, seconds: u64) -> io::Result<()> {
    let wanted = nix::libc::c_int::try_from(seconds).unwrap_or(nix::libc::c_int::MAX);
    let mut got = wanted;
    // SAFETY: the descriptor is open, and the pointer is to a live integer.
    unsafe { call::set_timeout(file.as_raw_fd(), &raw mut got) }?;
    if got > wanted {
        // Not left running with a time that nobody reckons with.
        (&mut &*file).write_all(b"V")?;
        return Err(io::Error::other(format!("it takes no time shorter than {got} s")));
    }
    Ok(())
}
