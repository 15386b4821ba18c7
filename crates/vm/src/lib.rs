//! One virtual machine on one node.

pub mod image;
