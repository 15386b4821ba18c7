//! `muster`: the one binary. `daemon` starts the node; every other verb is a client of its API.
//!
//! ```text
//!   main.rs      completion, launch-vm and daemon first, then one small runtime for a client verb
//!   cli.rs       the tree of commands and the global options
//!   commands/    one file per verb: Args (doc = help) and what it does
//!   operation.rs waiting for operations: progress, Ctrl-C, outcome
//!   output/      tables, sheets, JSON, times, colours
//!   error.rs     one form of failure, with hint and exit code
//! ```
//!
//! Trust boundary: what the daemon answers carries words of guests (host names, file systems) and
//! of other users. Nothing of it reaches a terminal before `output::clean` has taken control
//! characters out.

mod cli;
mod commands;
mod complete;
mod confirm;
mod context;
mod daemon;
mod error;
mod guard;
mod operation;
mod output;
mod parse;
mod progress;
mod reference;
mod terminal;
mod witness;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A VM's first process must not depend on anything that a user could set for a client.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "launch-vm") {
        return daemon::launch_vm();
    }
    if std::env::args_os().nth(1).is_some_and(|verb| verb == daemon::VOLUMES_VERB) {
        return daemon::serve_volumes();
    }
    complete::answer_shell();
    cli::main()
}
