//! The task that owns the socket of one connection.

use std::collections::BTreeMap;
use std::io;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use nix::sys::socket::ControlMessage;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::sendmsg;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::COMMANDS_MAX;
use super::LINE_MAX;
use super::QmpEvent;
use super::Reason;
use super::Request;

/// How much is read from the socket at a time.
const CHUNK: usize = 16 * 1024;

/// How much of a bad line is told.
const SHOWN_MAX: usize = 80;

type Reply = oneshot::Sender<Result<Value, Reason>>;

/// State of one connection.
struct Link {
    /// Received, not yet a whole line.
    input: Vec<u8>,
    /// How much of `input` is known to hold no line end.
    scanned: usize,
    /// To be sent.
    output: Vec<u8>,
    /// To go with the first byte of `output`.
    output_fds: Vec<OwnedFd>,
    /// Not answered yet.
    pending: BTreeMap<u64, Reply>,
    greeted: Option<oneshot::Sender<Result<(), Reason>>>,
    events: mpsc::Sender<QmpEvent>,
    lost: u64,
}

/// Serves one connection until its end.
pub(super) async fn run(
    stream: UnixStream,
    mut requests: mpsc::Receiver<Request>,
    events: mpsc::Sender<QmpEvent>,
    greeted: oneshot::Sender<Result<(), Reason>>,
) {
    let mut link = Link {
        input: Vec::new(),
        scanned: 0,
        output: Vec::new(),
        output_fds: Vec::new(),
        pending: BTreeMap::new(),
        greeted: Some(greeted),
        events,
        lost: 0,
    };
    let reason = loop {
        let room = link.output.is_empty() && link.pending.len() < COMMANDS_MAX;
        let step = tokio::select! {
            ready = stream.readable() => match ready {
                Ok(()) => link.read(&stream),
                Err(error) => Err(Reason::Garbage(error.to_string())),
            },
            ready = stream.writable(), if !link.output.is_empty() => match ready {
                Ok(()) => link.write(&stream),
                Err(_) => Err(Reason::Closed),
            },
            request = requests.recv(), if room => match request {
                Some(request) => {
                    link.accept(request);
                    Ok(())
                }
                None => Err(Reason::Closed),
            },
        };
        if let Err(reason) = step {
            break reason;
        }
    };
    drop(stream);
    link.end(&reason);
    requests.close();
    while let Some(request) = requests.recv().await {
        let _ = request.reply.send(Err(reason.clone()));
    }
}

impl Link {
    fn accept(&mut self, request: Request) {
        self.output = request.text;
        self.output_fds = request.fds;
        self.pending.insert(request.id, request.reply);
    }

    fn write(&mut self, stream: &UnixStream) -> Result<(), Reason> {
        let raw: Vec<_> = self.output_fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &control[..0] } else { &control[..] };
        let sent = stream.try_io(Interest::WRITABLE, || {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let data = [IoSlice::new(&self.output)];
            sendmsg::<()>(stream.as_raw_fd(), &data, control, flags, None).map_err(io::Error::from)
        });
        match sent {
            Ok(count) => {
                self.output.drain(..count);
                self.output_fds.clear();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Reason::Closed),
        }
    }

    fn read(&mut self, stream: &UnixStream) -> Result<(), Reason> {
        let mut chunk = [0; CHUNK];
        match stream.try_read(&mut chunk) {
            Ok(0) => return Err(Reason::Closed),
            Ok(count) => self.input.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return Err(Reason::Closed),
        }
        while let Some(end) = self.input[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..self.scanned + end + 1).collect();
            self.scanned = 0;
            self.line(&line)?;
        }
        self.scanned = self.input.len();
        if self.input.len() > LINE_MAX {
            return Err(Reason::Garbage(format!("a line of more than {LINE_MAX} bytes")));
        }
        if self.input.is_empty() {
            // One long answer must not hold its memory for the life of the machine.
            self.input.shrink_to(CHUNK);
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Reason> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let garbage = || {
            let shown: String = String::from_utf8_lossy(&line[..line.len().min(SHOWN_MAX)])
                .chars()
                .filter(|c| !c.is_control())
                .collect();
            Reason::Garbage(shown)
        };
        let mut message: Value = serde_json::from_slice(line).map_err(|_| garbage())?;
        let object = message.as_object_mut().ok_or_else(garbage)?;
        if let Some(greeted) = self.greeted.take() {
            if !object.contains_key("QMP") {
                self.greeted = Some(greeted);
                return Err(garbage());
            }
            let _ = greeted.send(Ok(()));
            return Ok(());
        }
        if let Some(name) = object.get("event") {
            let name = name.as_str().ok_or_else(garbage)?.to_owned();
            let data = object.remove("data").unwrap_or(Value::Null);
            self.event(name, data);
            return Ok(());
        }
        let id = object.get("id").and_then(Value::as_u64).ok_or_else(garbage)?;
        // An answer to what was not asked, or a second answer.
        let reply = self.pending.remove(&id).ok_or_else(garbage)?;
        if let Some(value) = object.remove("return") {
            let _ = reply.send(Ok(value));
            return Ok(());
        }
        let error = object.get("error").and_then(Value::as_object);
        let field = |name: &str| error.and_then(|error| error.get(name)).and_then(Value::as_str);
        match (field("class"), field("desc")) {
            (Some(class), Some(desc)) => {
                let (class, desc) = (class.to_owned(), desc.to_owned());
                let _ = reply.send(Err(Reason::Refused { class, desc }));
                Ok(())
            }
            _ => {
                let _ = reply.send(Err(garbage()));
                Err(garbage())
            }
        }
    }

    fn event(&mut self, name: String, data: Value) {
        let event = QmpEvent { name, data, lost_before: self.lost };
        match self.events.try_send(event) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += 1,
        }
    }

    fn end(&mut self, reason: &Reason) {
        if let Some(greeted) = self.greeted.take() {
            let _ = greeted.send(Err(reason.clone()));
        }
        for (_, reply) in std::mem::take(&mut self.pending) {
            let _ = reply.send(Err(reason.clone()));
        }
    }
}
