//! Tells cargo that the built web console is part of this crate. The folder is always there; it is
//! empty until `cargo xtask web` has filled it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../../web/dist");
}
