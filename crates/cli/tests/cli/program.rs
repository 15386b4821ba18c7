//! Runs the program and looks at what it did.

use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use crate::fake::DEADLINE;
use crate::fake::Fake;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A run that has not ended.
pub(crate) struct Running {
    child: Child,
    line: String,
}

/// The program with an environment that says nothing.
pub(crate) fn command(fake: &Fake) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    for name in ["MUSTER_HOST", "MUSTER_TOKEN", "MUSTER_FINGERPRINT", "NO_COLOR", "COLUMNS"] {
        command.env_remove(name);
    }
    command.env("MUSTER_SOCKET", fake.socket()).env("TZ", "UTC").env("TERM", "xterm");
    command.current_dir(fake.folder.path());
    command
}

/// Runs it to its end, without a terminal and without input.
pub(crate) fn run(fake: &Fake, args: &[&str]) -> Ran {
    start(fake, args, "").end()
}

/// Starts it with input from a pipe.
pub(crate) fn start(fake: &Fake, args: &[&str], input: &str) -> Running {
    let mut command = command(fake);
    command.args(args);
    spawn(command, input.as_bytes())
}

/// Starts a command with input from a pipe, which ends after it.
pub(crate) fn spawn(mut command: Command, input: &[u8]) -> Running {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The program may end without reading it.
    let _ = child.stdin.take().unwrap().write_all(input);
    Running { child, line: format!("{command:?}") }
}

impl Running {
    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; a run that does not end is a failure.
    pub(crate) fn end(mut self) -> Ran {
        let begun = Instant::now();
        let read = |mut pipe: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(Box::new(self.child.stdout.take().unwrap()));
        let stderr = read(Box::new(self.child.stderr.take().unwrap()));
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > DEADLINE {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
                panic!("{} did not end: {stdout} {stderr}", self.line);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ran {
            code: status.code().unwrap_or(-1),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }
}
