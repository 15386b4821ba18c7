//! Test helper: the launcher of machines as a program of its own, and a stand-in for QEMU that
//! tries what a guest that broke out would try. Not installed anywhere.

use std::process::ExitCode;

fn main() -> ExitCode {
    vm::engine::qemu::jail::jail_main()
}
