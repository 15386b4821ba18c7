//! Plans: where virtual machines go when they are made, when a node is lost, drained or back, and when
//! they wait for each other.
//!
//! Pure functions from the replicated state and the set of living nodes to a [`Plan`]; the leader
//! carries plans out, and `--dry-run` shows them. The same state always gives the same plan.
//!
//! How it chooses: VMs in the order of their priority, the largest first. Each goes to the best node
//! that takes VMs, that it may run on, that no hard rule keeps it from, and that has the memory.
//! Better is: earlier among its preferred nodes, then fewer broken soft rules, then less filled.
//! Processors are shared and never refuse a VM.
//!
//! This crate is floor 0: no async, no clock, no I/O.

#![forbid(unsafe_code)]

mod balance;
mod coordinator;
mod plan;
mod room;
#[cfg(test)]
mod world;

pub use balance::CPU_PRESSED;
pub use balance::Load;
pub use balance::MEMORY_PRESSED;
pub use balance::MachineLoad;
pub use balance::Relief;
pub use balance::Short;
pub use balance::balance;
pub use coordinator::coordinator;
pub use plan::Loss;
pub use plan::Plan;
pub use plan::Step;
pub use plan::Unplaced;
pub use plan::capacity;
pub use plan::choose;
pub use plan::drain;
pub use plan::fail_back;
pub use plan::fail_over;
pub use room::OVERHEAD;
pub use room::Problem;
pub use room::demand;
