//! One virtual machine on one node.

pub mod cloudinit;
pub mod engine;
pub mod guest;
pub mod image;
pub mod lifecycle;
pub mod wait;
