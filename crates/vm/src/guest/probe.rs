//! Running a program in a guest through its agent. For tests and for our own small errands
//! (`mkdir`); not a service, and never offered to users.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use super::client::AgentError;

/// Pause between two looks at a running program.
pub(super) const POLL: Duration = Duration::from_millis(100);
/// How long a program may run by default.
const DEADLINE: Duration = Duration::from_secs(30);

/// A program to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Its path, or its name to be found by the agent's PATH.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it reads.
    pub input: Vec<u8>,
    /// How long to wait for its end. It is not killed then.
    pub deadline: Duration,
}

/// What a program printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i64>,
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its error output.
    pub stderr: Vec<u8>,
}

impl ExecRequest {
    /// Runs `program` with `args` for at most 30 seconds.
    #[must_use]
    pub fn new(program: &str, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { program: program.to_owned(), args, input: Vec::new(), deadline: DEADLINE }
    }

    pub(super) fn arguments(&self) -> Value {
        json!({
            "path": self.program,
            "arg": self.args,
            "input-data": STANDARD.encode(&self.input),
            "capture-output": true,
        })
    }
}

pub(super) fn pid_of(reply: &Value) -> Result<i64, AgentError> {
    let wrong = AgentError::WrongShape { command: "guest-exec", detail: "no pid" };
    reply.get("pid").and_then(Value::as_i64).ok_or(wrong)
}

/// The output, once the program has ended.
pub(super) fn output_of(reply: &Value) -> Result<Option<ExecOutput>, AgentError> {
    let wrong = |detail| AgentError::WrongShape { command: "guest-exec-status", detail };
    let exited = reply.get("exited").and_then(Value::as_bool);
    if !exited.ok_or_else(|| wrong("does not say whether it ended"))? {
        return Ok(None);
    }
    let bytes = |key: &str| match reply.get(key) {
        None => Ok(Vec::new()),
        Some(text) => {
            let text = text.as_str().ok_or_else(|| wrong("output is not text"))?;
            STANDARD.decode(text).map_err(|_| wrong("output is not base64"))
        }
    };
    Ok(Some(ExecOutput {
        code: reply.get("exitcode").and_then(Value::as_i64),
        stdout: bytes("out-data")?,
        stderr: bytes("err-data")?,
    }))
}
