//! Client of the QEMU guest agent: line-delimited JSON over any byte stream.
//!
//! ```text
//!            sync ok                     command sent
//!  Desynced ---------> Synced (one line per command) ---------> waiting for one line
//!     ^                                                              |
//!     +------- timeout, too long, not JSON, dropped half-way --------+
//! ```
//!
//! The guest is hostile: it may be silent, answer a gigabyte, nest for ever, lie about types or
//! talk unasked. So each command has a deadline and a limit for its reply, one command is in flight
//! at a time, and after anything odd the stream is synchronised again: `guest-sync-delimited` with
//! a fresh number, everything before the 0xFF that precedes its answer thrown away unread.

use std::io;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use thiserror::Error;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Byte that never occurs in JSON text: it resets the agent's parser, and precedes a sync's answer.
const DELIMITER: u8 = 0xff;
/// One read from the stream.
const READ_BYTES: usize = 16 << 10;
/// Most bytes thrown away in one synchronisation. The longest reply that can be under way is
/// smaller; whoever sends more is not answering.
const DISCARD_BYTES_MAX: u64 = 16 << 20;
/// Lines that answer nothing before we give up on a command.
const STRAY_LINES_MAX: u32 = 64;
/// Answers to older syncs that may stand before ours; a stream that was synchronised has none or a
/// few.
const STRAY_SYNCS_MAX: u32 = 64;
/// The answer to a sync is about 40 bytes.
const SYNC_REPLY_BYTES_MAX: usize = 4 << 10;
/// What we repeat of the agent's words.
const SHOWN_CHARS_MAX: usize = 200;

/// Limit for an ordinary reply: 1 MiB. Parsed JSON takes up to ten times its text, for each VM.
pub(super) const REPLY_BYTES_MAX: usize = 1 << 20;
/// Limit for a reply that carries a program's output.
pub(super) const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// A connection to the agent's port.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// Why the agent gave no good answer.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The port cannot be reached or broke.
    #[error("the guest agent's port cannot be used; is the VM running?")]
    Io(#[from] io::Error),
    /// The port was closed by the other side.
    #[error("the guest agent's port was closed; is the VM running?")]
    Closed,
    /// No answer in time.
    #[error(
        "the guest agent did not answer `{command}` within {} s; is qemu-guest-agent running in \
         the guest?",
        .limit.as_secs_f32()
    )]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The answer is longer than we read.
    #[error("the guest agent answered `{command}` with more than {limit} bytes; it was ignored")]
    TooLong {
        /// The command.
        command: &'static str,
        /// Limit in bytes.
        limit: usize,
    },
    /// The agent talks without answering.
    #[error("the guest agent sends without end and answers nothing; update or restart it")]
    Flood,
    /// The answer is not JSON, or too deeply nested.
    #[error("the guest agent answered `{command}` with something that is not JSON ({detail})")]
    NotJson {
        /// The command.
        command: &'static str,
        /// What the parser says.
        detail: String,
    },
    /// The answer has another shape than the protocol says.
    #[error("the guest agent answered `{command}` wrongly: {detail}; update it")]
    WrongShape {
        /// The command.
        command: &'static str,
        /// What is wrong.
        detail: &'static str,
    },
    /// The agent said no.
    #[error("the guest agent refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Class of the error, such as `CommandNotFound`.
        class: String,
        /// Its reason, cut and printable.
        description: String,
    },
    /// The agent does not have the command, or it is switched off there.
    #[error(
        "the guest agent does not allow `{command}`; update qemu-guest-agent or take the command \
         off its block list"
    )]
    NotAllowed {
        /// The command.
        command: &'static str,
    },
}

impl AgentError {
    /// Whether the agent is there and speaks properly: it only said no.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotAllowed { .. })
    }
}

/// Limits of one command.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// Until the whole reply is there.
    pub deadline: Duration,
    /// Longest reply in bytes.
    pub reply_bytes: usize,
}

impl CallLimits {
    /// An ordinary reply within `deadline`.
    #[must_use]
    pub fn within(deadline: Duration) -> Self {
        Self { deadline, reply_bytes: REPLY_BYTES_MAX }
    }
}

/// The client.
pub struct AgentClient {
    stream: Box<dyn AgentStream>,
    buf: Vec<u8>,
    synced: bool,
    /// Whether the agent repeats our `id` in replies (QEMU 4.0 and newer do).
    echoes: bool,
    next_id: u64,
}

impl AgentClient {
    /// Wraps a fresh connection. `seed` makes sync numbers differ between connections, so that a
    /// late answer to an older one is not taken for ours.
    #[must_use]
    pub fn new(stream: Box<dyn AgentStream>, seed: u32) -> Self {
        // The agent's sync number is a signed 64-bit integer; keep well inside.
        let next_id = u64::from(seed) << 24;
        Self { stream, buf: Vec::new(), synced: false, echoes: false, next_id }
    }

    /// Synchronises the stream, waiting at most `limit` for the agent.
    ///
    /// # Errors
    /// `Timeout` if nobody answers.
    pub async fn sync(&mut self, limit: Duration) -> Result<(), AgentError> {
        let command = "guest-sync-delimited";
        let done = timeout(limit, self.synchronise()).await;
        done.unwrap_or(Err(AgentError::Timeout { command, limit }))
    }

    /// Runs one command and returns what it returned. Dropping the future is safe: the next command
    /// synchronises first.
    ///
    /// # Errors
    /// [`AgentError`]; after any that is no answer the stream is synchronised before the next
    /// command.
    pub async fn call(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        limits: CallLimits,
    ) -> Result<Value, AgentError> {
        let limit = limits.deadline;
        let exchange = async {
            if !self.synced {
                self.synchronise().await?;
            }
            // Until the reply is in: whatever ends this future here leaves the stream in doubt.
            self.synced = false;
            let id = self.send(command, arguments).await?;
            let reply = self.reply(command, id, limits.reply_bytes).await;
            self.synced = match &reply {
                Ok(_) => true,
                Err(error) => error.is_answer(),
            };
            reply
        };
        timeout(limit, exchange).await.unwrap_or(Err(AgentError::Timeout { command, limit }))
    }

    /// Sends a command whose success has no reply (a shutdown). An answer within `limit` can only
    /// be a refusal; silence and a closed port are success.
    ///
    /// # Errors
    /// The command could not be sent, or was refused.
    pub async fn send_only(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<(), AgentError> {
        let limits = CallLimits::within(limit);
        match self.call(command, arguments, limits).await {
            Ok(_) | Err(AgentError::Closed) => Ok(()),
            // The sync before it was answered, or it would not have been sent.
            Err(AgentError::Timeout { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn send(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<u64, AgentError> {
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": self.next_id });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        self.stream.write_all(format!("{request}\n").as_bytes()).await?;
        self.stream.flush().await?;
        Ok(self.next_id)
    }

    async fn reply(
        &mut self,
        command: &'static str,
        id: u64,
        limit: usize,
    ) -> Result<Value, AgentError> {
        for _ in 0..STRAY_LINES_MAX {
            let line = self.line(command, limit).await?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let mut value: Value = serde_json::from_slice(&line).map_err(|error| {
                AgentError::NotJson { command, detail: shown(&error.to_string()) }
            })?;
            if self.echoes && value.get("id").and_then(Value::as_u64) != Some(id) {
                continue;
            }
            if let Some(error) = value.get("error") {
                return Err(refusal(command, error));
            }
            if let Some(returned) = value.get_mut("return") {
                return Ok(returned.take());
            }
            // Neither an answer nor an error: nothing that was asked for.
        }
        Err(AgentError::Flood)
    }

    async fn synchronise(&mut self) -> Result<(), AgentError> {
        self.synced = false;
        self.next_id += 1;
        let id = self.next_id;
        let request =
            json!({ "execute": "guest-sync-delimited", "arguments": { "id": id }, "id": id });
        let mut bytes = vec![DELIMITER];
        bytes.extend(format!("{request}\n").into_bytes());
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        let mut discarded = 0;
        for _ in 0..STRAY_SYNCS_MAX {
            self.skip_delimiter(&mut discarded).await?;
            let line = match self.line("guest-sync-delimited", SYNC_REPLY_BYTES_MAX).await {
                Ok(line) => line,
                Err(AgentError::TooLong { .. }) => {
                    discarded += SYNC_REPLY_BYTES_MAX as u64;
                    continue;
                }
                Err(error) => return Err(error),
            };
            discarded += line.len() as u64;
            // A delimiter within the line: what stands before it was cut off.
            let line = line.rsplit(|byte| *byte == DELIMITER).next().unwrap_or_default();
            let Ok(reply) = serde_json::from_slice::<Value>(line) else { continue };
            if reply.get("return").and_then(Value::as_u64) == Some(id) {
                self.echoes = reply.get("id").and_then(Value::as_u64) == Some(id);
                self.synced = true;
                return Ok(());
            }
            // An answer to an older sync.
        }
        Err(AgentError::Flood)
    }

    /// Throws everything away up to and including the next delimiter.
    async fn skip_delimiter(&mut self, discarded: &mut u64) -> Result<(), AgentError> {
        loop {
            let found = self.buf.iter().position(|byte| *byte == DELIMITER);
            let gone = found.map_or(self.buf.len(), |at| at + 1);
            self.buf.drain(..gone);
            *discarded += gone as u64;
            if *discarded > DISCARD_BYTES_MAX {
                return Err(AgentError::Flood);
            }
            if found.is_some() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// The next line, without its end.
    async fn line(&mut self, command: &'static str, limit: usize) -> Result<Vec<u8>, AgentError> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.buf[seen..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buf.split_off(seen + at + 1);
                let mut line = std::mem::replace(&mut self.buf, rest);
                line.pop();
                let fits = line.len() <= limit;
                return if fits { Ok(line) } else { Err(AgentError::TooLong { command, limit }) };
            }
            seen = self.buf.len();
            if seen > limit {
                self.buf = Vec::new();
                return Err(AgentError::TooLong { command, limit });
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), AgentError> {
        let mut chunk = [0; READ_BYTES];
        match self.stream.read(&mut chunk).await? {
            0 => Err(AgentError::Closed),
            got => {
                self.buf.extend_from_slice(&chunk[..got]);
                Ok(())
            }
        }
    }
}

fn refusal(command: &'static str, error: &Value) -> AgentError {
    let text = |key: &str| shown(error.get(key).and_then(Value::as_str).unwrap_or("(no reason)"));
    let (class, description) = (text("class"), text("desc"));
    match class.as_str() {
        "CommandNotFound" => AgentError::NotAllowed { command },
        _ => AgentError::Refused { command, class, description },
    }
}

/// Words of the guest, fit for a terminal and a log line.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .take(SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
