//! Ctrl-C: remembered, and turned into an error at the next wait, so that everything a bench or a
//! demo made is taken down by the same destructors as after any other failure.

#![allow(unsafe_code, reason = "sigaction has no safe wrapper; the handler only sets a flag")]

use std::ffi::c_int;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::sigaction;

static ASKED: AtomicBool = AtomicBool::new(false);

/// How often a condition is looked at where nothing else is said.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Begins to listen for signals that end programs. They are not blocked: a program that is started
/// would inherit that, and could not be ended by them.
pub(crate) fn listen() -> Result<()> {
    let handler = SigHandler::Handler(remember);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which may be done at any moment.
        unsafe { sigaction(signal, &action) }.context("signals cannot be caught")?;
    }
    std::thread::spawn(|| {
        while !ASKED.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
        }
        eprintln!("\ninterrupted: taking everything down ...");
    });
    Ok(())
}

extern "C" fn remember(_: c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// An error as soon as somebody wants the bench to end.
pub(crate) fn check() -> Result<()> {
    if ASKED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits until something is there.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        check()?;
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > end {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Lets time pass.
pub(crate) fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check()?;
        std::thread::sleep(LOOK_EVERY.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
