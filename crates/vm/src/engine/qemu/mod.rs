//! The QEMU engine: one jailed `qemu-system-x86_64` for each machine, spoken to over QMP.

pub mod jail;
mod qmp;
