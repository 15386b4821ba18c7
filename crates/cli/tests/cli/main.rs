//! The program `muster` against a daemon that answers by script.

#![allow(clippy::unwrap_used, reason = "what a helper cannot do fails the test")]
#![recursion_limit = "256"]

mod completion;
mod endpoints;
mod fake;
mod interactive;
mod interrupt;
mod outcome;
mod output;
mod program;
mod requests;
mod samples;
