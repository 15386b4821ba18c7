//! The control plane of several nodes in one process, from one seed: what the simulator itself is
//! made of. The program is `src/run.rs`; README.md beside it tells how to use it and how to read it.

pub mod linear;
pub mod rng;
