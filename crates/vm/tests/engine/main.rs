//! The machine engines, real and fake: one suite for both, then what only a real guest can show.
//!
//! Needs root, QEMU 10, and the tiny guest (`cargo xtask guest tiny` makes it; the first test that
//! needs it calls that).

mod conformance;
mod real;
mod rig;
