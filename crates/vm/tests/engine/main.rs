//! The machine engines, real and fake: one suite for both, then what only a real guest can show.
//!
//! Needs root, QEMU 10, and the tiny guest (`cargo xtask guest tiny` makes it; the first test that
//! needs it calls that).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

mod conformance;
mod real;
mod rig;
