//! `muster` as a person uses it.

use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;

use crate::Host;
use crate::muster_bin;

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

impl Ran {
    /// What there is to see of a program that has ended.
    pub fn new(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it printed, as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The same, if it ended well.
    ///
    /// # Panics
    /// If it did not.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl Host {
    /// The program with this daemon's socket, ready for arguments; nothing on its input.
    pub fn muster(&self) -> Command {
        let mut command = Command::new(muster_bin());
        command.arg("--socket").arg(self.socket()).stdin(Stdio::null());
        command.env_remove("MUSTER_HOST").env_remove("MUSTER_TOKEN");
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn cli(&self, args: &[&str]) -> Ran {
        let mut command = self.muster();
        command.args(args);
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        Ran::new(&ran.expect("it does not panic").expect("muster can be started"))
    }
}
