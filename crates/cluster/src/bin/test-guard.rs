//! A guard for the tests of this crate: `test-guard RUN_DIR GROUP [WATCHDOG SECONDS]`.

use std::process::ExitCode;
use std::time::Duration;

use cluster::guard::GuardConfig;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [run_dir, group, rest @ ..] = args.as_slice() else { return ExitCode::from(2) };
    let watchdog = match rest {
        [path, seconds] => {
            let Ok(seconds) = seconds.parse() else { return ExitCode::from(2) };
            Some((path.into(), Duration::from_secs(seconds)))
        }
        _ => None,
    };
    let config = GuardConfig { run_dir: run_dir.into(), group: group.into(), watchdog };
    match cluster::guard::run(config, || ()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
