//! A client for QMP, QEMU's control protocol: one JSON object a line over a Unix socket.
//!
//! ```text
//!   QEMU:   {"QMP": {"version": ...}}                       greeting
//!   client: {"execute": "qmp_capabilities", "id": 0}        then any commands, each with an id
//!   QEMU:   {"return": ..., "id": 0} | {"error": {"class", "desc"}, "id": 0}
//!   QEMU:   {"event": "RESET", "data": {...}, "timestamp": {...}}      at any time
//! ```
//!
//! One task owns the socket. Commands may be under way together; each has a deadline. A line that
//! is too long, is not JSON, or answers what was not asked ends the connection: everybody who
//! waits gets the reason, and nothing that follows is read.
//!
//! Trust boundary: a guest that has broken out of QEMU's emulation writes this stream. Unknown
//! fields and events stay JSON and are ignored; no input makes the client panic, wait without end
//! or hold more than [`LINE_MAX`] plus the queues.

mod link;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Longest line accepted from QEMU. The longest honest answer (the schema) is under 1 MiB.
pub(super) const LINE_MAX: usize = 16 << 20;

/// Commands waiting to be written or answered. We have a handful under way at most.
const COMMANDS_MAX: usize = 64;

/// Events waiting to be looked at; what does not fit is counted.
const EVENTS_MAX: usize = 256;

/// How long QEMU may take for an ordinary command.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// An event as QEMU has sent it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QmpEvent {
    /// Its name, such as `RESET`.
    pub(super) name: String,
    /// Its data, or null.
    pub(super) data: Value,
    /// Events lost before this one because nobody took them in time.
    pub(super) lost_before: u64,
}

/// What can go wrong with a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum QmpError {
    /// The connection is at its end.
    #[error("the control connection is closed")]
    Closed,
    /// The peer does not speak QMP.
    #[error("not QMP: {0}")]
    Garbage(String),
    /// No answer in time.
    #[error("no answer to {command} in {}s", limit.as_secs())]
    Timeout {
        /// Which command.
        command: String,
        /// How long we waited.
        limit: Duration,
    },
    /// QEMU says no.
    #[error("{command}: {desc}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's class, such as `DeviceNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
}

/// One command on its way to the task that owns the socket.
struct Request {
    text: Vec<u8>,
    id: u64,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Result<Value, Reason>>,
}

/// Why a command has no result, before its name is added.
#[derive(Debug, Clone)]
enum Reason {
    Closed,
    Garbage(String),
    Refused { class: String, desc: String },
}

/// A connection to a QEMU. Cloneable; the connection ends with the last clone.
#[derive(Clone)]
pub(super) struct Qmp {
    requests: mpsc::Sender<Request>,
    ids: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Qmp {
    /// Takes over a connected socket: reads the greeting, leaves the negotiation phase.
    pub(super) async fn start(
        stream: UnixStream,
        limit: Duration,
    ) -> Result<(Self, mpsc::Receiver<QmpEvent>), QmpError> {
        let (requests, request_rx) = mpsc::channel(COMMANDS_MAX);
        let (event_tx, events) = mpsc::channel(EVENTS_MAX);
        let (greeted_tx, greeted) = oneshot::channel();
        tokio::spawn(link::run(stream, request_rx, event_tx, greeted_tx));
        let timeout = || QmpError::Timeout { command: "greeting".to_owned(), limit };
        let end = Instant::now() + limit;
        match tokio::time::timeout_at(end, greeted).await {
            Err(_) => return Err(timeout()),
            Ok(Err(_)) => return Err(QmpError::Closed),
            Ok(Ok(Err(reason))) => return Err(reason.named("greeting")),
            Ok(Ok(Ok(()))) => {}
        }
        let qmp = Self { requests, ids: std::sync::Arc::default() };
        qmp.run_within("qmp_capabilities", json!({}), Vec::new(), limit).await?;
        Ok((qmp, events))
    }

    /// Runs a command that should be answered soon.
    pub(super) async fn run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run_within(command, arguments, Vec::new(), COMMAND_LIMIT).await
    }

    /// Runs a command, handing descriptors over with it.
    pub(super) async fn run_with_fds(
        &self,
        command: &str,
        arguments: Value,
        fds: Vec<OwnedFd>,
    ) -> Result<Value, QmpError> {
        self.run_within(command, arguments, fds, COMMAND_LIMIT).await
    }

    /// Runs a command with a limit of its own.
    pub(super) async fn run_within(
        &self,
        command: &str,
        arguments: Value,
        fds: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.ids.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut message = json!({ "execute": command, "id": id });
        if arguments.as_object().is_some_and(|object| !object.is_empty()) {
            message["arguments"] = arguments;
        }
        let mut text = message.to_string().into_bytes();
        text.push(b'\n');
        let (reply, answer) = oneshot::channel();
        let work = async {
            let request = Request { text, id, fds, reply };
            self.requests.send(request).await.map_err(|_| QmpError::Closed)?;
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(reason)) => Err(reason.named(command)),
                Err(_) => Err(QmpError::Closed),
            }
        };
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Timeout { command: command.to_owned(), limit }),
        }
    }
}

impl Reason {
    fn named(self, command: &str) -> QmpError {
        match self {
            Self::Closed => QmpError::Closed,
            Self::Garbage(what) => QmpError::Garbage(what),
            Self::Refused { class, desc } => {
                QmpError::Refused { command: command.to_owned(), class, desc }
            }
        }
    }
}
