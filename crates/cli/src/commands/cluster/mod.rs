//! The cluster: several hosts that stand in for each other.

mod balance;
mod capacity;
mod confirm_off;
mod cpu;
mod create;
mod evacuate;
mod evict;
mod force_quorum;
mod join;
mod leave;
mod network;
mod status;
mod token;
mod validate;
mod witness;

use crate::commands::noun;

noun! {
    /// The cluster: several hosts that stand in for each other.
    Create(create),
    Token(token),
    Join(join),
    Evict(evict),
    Leave(leave),
    Status(status),
    Capacity(capacity),
    Balance(balance),
    Evacuate(evacuate),
    Cpu(cpu),
    Network(network),
    Validate(validate),
    ConfirmOff(confirm_off),
    ForceQuorum(force_quorum),
    Witness(witness),
}
