//! The client and the services against a scripted agent, honest and hostile, and the real one.

mod client;
mod fake_agent;
mod qemu_ga;
mod services;
