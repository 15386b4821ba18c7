//! The daemon: it wires the engines to the truth and to the API. It wires, it does not think.
//!
//! ```text
//!   http (API) ---> truth (log, state) ---> hub ---> one driver for each VM (crate vm)
//!        ^                |                  |-----> image operations
//!        |                v                  +-----> switch (ports, networks)
//!        +---------- events, observations <--+
//! ```
//!
//! Start-up order (`start`): directories and lock, truth (damaged state is refused), engine, switch,
//! hub (adopts machines), API last, so that nothing can be asked before it can be answered.

#![forbid(unsafe_code)]

mod app;
pub mod config;
mod events;
mod host;
mod http;
mod hub;
mod images;
mod ledger;
mod ports;
mod reconcile;
mod sample;
mod start;
mod tls;
pub mod truth;
mod views;

pub use start::run;
