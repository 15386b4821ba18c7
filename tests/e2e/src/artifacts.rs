//! Where the program under test and the guests are.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The directory `target/debug` (or `target/release`) that this test was built into.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a path");
    let deps = exe.parent().expect("a program is in a directory");
    deps.parent().expect("tests are in PROFILE/deps").to_owned()
}

/// The program under test: `$MUSTER_BIN`, else `muster` beside the tests; built if it is missing.
///
/// # Panics
/// If it cannot be built.
pub fn muster_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(path) = std::env::var_os("MUSTER_BIN") {
            return PathBuf::from(path);
        }
        let path = profile_dir().join("muster");
        if !path.exists() {
            let built = Command::new("cargo").args(["build", "-p", "cli"]).status();
            assert!(built.is_ok_and(|it| it.success()), "muster cannot be built");
        }
        path
    })
}

/// A guest image of `cargo xtask guest`: in `$MUSTER_GUESTS`, else in `target/guests`.
///
/// # Panics
/// If it is not there.
pub fn guest_image(file: &str) -> PathBuf {
    let dir = match std::env::var_os("MUSTER_GUESTS") {
        Some(dir) => PathBuf::from(dir),
        None => profile_dir().parent().expect("in target").join("guests"),
    };
    let path = dir.join(file);
    assert!(path.exists(), "{} is missing; run cargo xtask guest", path.display());
    path
}
