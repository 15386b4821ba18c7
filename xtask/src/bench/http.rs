//! Just enough HTTP/1.1 over a Unix socket to ask the daemon, with nothing between the bench and
//! what it measures.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;

use crate::stop;

/// How long an answer may take; the daemon's own longest wait is shorter.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// How often a read looks whether the bench was interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A connection that was silent for so long may be closed by the daemon (it waits 20 s for a
/// request); a new one is made.
const FRESH: Duration = Duration::from_secs(10);

/// The largest answer: the list of some 100,000 VMs.
const BODY_MAX: u64 = 64 << 20;

/// A client of one daemon, over one connection.
pub(super) struct Client {
    socket: PathBuf,
    connection: Option<(BufReader<Patient>, Instant)>,
}

/// An answer, not looked into.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), connection: None }
    }

    pub(super) fn get(&mut self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    pub(super) fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, Some(body))
    }

    /// Calls and expects success.
    pub(super) fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.ask(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            let words = String::from_utf8_lossy(&answer.body).into_owned();
            bail!("{method} {path}: {} {words}", answer.status);
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("{method} {path}: no JSON"))
    }

    /// Calls and returns whatever comes.
    pub(super) fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut reader = match self.connection.take() {
            Some((reader, used)) if used.elapsed() < FRESH => reader,
            _ => connect(&self.socket)?,
        };
        let answer = exchange(&mut reader, method, path, body)
            .with_context(|| format!("{method} {path}"))?;
        self.connection = Some((reader, Instant::now()));
        Ok(answer)
    }

    /// Opens the stream of events. It is open when this returns.
    pub(super) fn follow(&self, path: &str) -> Result<Events> {
        let mut reader = connect(&self.socket)?;
        send(&mut reader, "GET", path, None)?;
        let head = read_head(&mut reader)?;
        ensure!(head.status == 200 && head.chunked, "GET {path}: {}", head.status);
        let mut events = Events { reader, text: String::new() };
        // The daemon says hello when it has subscribed.
        events.fill()?;
        Ok(events)
    }
}

/// Server-sent events as they come.
pub(super) struct Events {
    reader: BufReader<Patient>,
    text: String,
}

impl Events {
    /// The next event and when it came. Comments are left out.
    pub(super) fn next(&mut self) -> Result<(Instant, Value)> {
        let mut came = Instant::now();
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let data = block.lines().find_map(|line| line.strip_prefix("data: "));
                if let Some(data) = data {
                    return Ok((came, serde_json::from_str(data)?));
                }
            }
            self.fill()?;
            came = Instant::now();
        }
    }

    fn fill(&mut self) -> Result<()> {
        // Silence is fine: the daemon says every 15 s that it lives.
        self.reader.get_mut().until = Instant::now() + ANSWER_LIMIT;
        let chunk = read_chunk(&mut self.reader)?.context("the stream has ended")?;
        self.text += std::str::from_utf8(&chunk).context("the stream is not text")?;
        Ok(())
    }
}

fn connect(socket: &Path) -> Result<BufReader<Patient>> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("the daemon does not listen at {}", socket.display()))?;
    stream.set_read_timeout(Some(LOOK_EVERY))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(BufReader::with_capacity(256 << 10, Patient { stream, until: Instant::now() }))
}

fn exchange(
    reader: &mut BufReader<Patient>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    send(reader, method, path, body)?;
    let head = read_head(reader)?;
    let mut bytes = Vec::new();
    if head.chunked {
        while let Some(chunk) = read_chunk(reader)? {
            bytes.extend(chunk);
            ensure!(bytes.len() as u64 <= BODY_MAX, "the answer is too long");
        }
    } else {
        ensure!(head.length <= BODY_MAX, "the answer is too long");
        reader.take(head.length).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 == head.length, "the answer is cut short");
    }
    Ok(Answer { status: head.status, body: bytes })
}

fn send(
    reader: &mut BufReader<Patient>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<()> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: muster\r\n");
    if !body.is_empty() {
        let length = body.len();
        request += &format!("content-type: application/json\r\ncontent-length: {length}\r\n");
    }
    request += "\r\n";
    request += &body;
    let patient = reader.get_mut();
    patient.until = Instant::now() + ANSWER_LIMIT;
    Ok(patient.stream.write_all(request.as_bytes())?)
}

struct Head {
    status: u16,
    length: u64,
    chunked: bool,
}

fn read_head(reader: &mut impl BufRead) -> Result<Head> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("not an answer: {line:?}"))?;
    let mut head = Head { status, length: 0, chunked: false };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = value.trim().parse()?,
            "transfer-encoding" => head.chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    Ok(head)
}

/// One chunk of a body; none after the last.
fn read_chunk(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let length = u64::from_str_radix(line.trim_end(), 16)
        .with_context(|| format!("not a chunk: {line:?}"))?;
    ensure!(length <= BODY_MAX, "the chunk is too long");
    let mut chunk = Vec::new();
    reader.take(length + 2).read_to_end(&mut chunk)?;
    ensure!(chunk.ends_with(b"\r\n"), "the chunk is cut short");
    chunk.truncate(chunk.len() - 2);
    Ok((length > 0).then_some(chunk))
}

/// A stream whose reads end when the bench is interrupted or an answer takes too long.
struct Patient {
    stream: UnixStream,
    until: Instant,
}

impl Read for Patient {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stop::check().map_err(io::Error::other)?;
                    if Instant::now() > self.until {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::read_chunk;
    use super::read_head;

    #[test]
    fn a_chunked_answer_is_read_to_its_end() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let mut reader = text.as_bytes();
        let head = read_head(&mut reader).unwrap();
        assert!(head.status == 200 && head.chunked);
        assert_eq!(read_chunk(&mut reader).unwrap().unwrap(), b"abc");
        assert!(read_chunk(&mut reader).unwrap().is_none());
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        assert!(read_head(&mut "".as_bytes()).is_err());
        assert!(read_chunk(&mut "5\r\nab".as_bytes()).is_err());
    }
}
