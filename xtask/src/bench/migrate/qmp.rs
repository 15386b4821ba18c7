//! Just enough of QEMU's control protocol to migrate a raw machine: commands in turn, and events
//! with the time at which they came.

use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use crate::stop;

/// How long QEMU may take to listen, and to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a read looks whether the bench was interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often the socket of a process that has just started is looked for.
const CONNECT_EVERY: Duration = Duration::from_millis(2);

/// A control connection.
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
    events: Vec<(Instant, Value)>,
}

impl Qmp {
    /// Connects to a QEMU that may just have been started.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let end = Instant::now() + LIMIT;
        let stream = loop {
            stop::check()?;
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => bail!("raw QEMU does not listen: {error}"),
                Err(_) => std::thread::sleep(CONNECT_EVERY),
            }
        };
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        let mut qmp = Self { reader: BufReader::new(stream), line: Vec::new(), events: Vec::new() };
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Calls and returns what QEMU returns.
    pub(super) fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.reader.get_mut().write_all(text.as_bytes())?;
        let end = Instant::now() + LIMIT;
        loop {
            let mut said = self.next(end)?.with_context(|| format!("{command}: no answer"))?.1;
            if !said["error"].is_null() {
                bail!("{command}: {}", said["error"]["desc"]);
            }
            if !said["return"].is_null() {
                return Ok(said["return"].take());
            }
        }
    }

    /// Forgets the events that came so far.
    pub(super) fn forget(&mut self) {
        self.events.clear();
    }

    /// Waits until a migration has ended in one of these states; none when the time is over first.
    pub(super) fn migration(
        &mut self,
        states: &[&str],
        end: Instant,
    ) -> Result<Option<(Instant, String)>> {
        let mut known = 0;
        loop {
            for (came, event) in &self.events[known..] {
                let state = event["data"]["status"].as_str().unwrap_or_default();
                if event["event"] == "MIGRATION" && states.contains(&state) {
                    return Ok(Some((*came, state.to_owned())));
                }
            }
            known = self.events.len();
            if self.next(end)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// What QEMU says next and when it came; an event is also kept.
    fn next(&mut self, end: Instant) -> Result<Option<(Instant, Value)>> {
        loop {
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(length) => {
                    ensure!(length > 0, "raw QEMU has ended");
                    let came = Instant::now();
                    let said: Value = serde_json::from_slice(&self.line)?;
                    self.line.clear();
                    if !said["event"].is_null() {
                        self.events.push((came, said.clone()));
                    }
                    return Ok(Some((came, said)));
                }
                // What was read so far stays in the line.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stop::check()?;
                    if Instant::now() > end {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context("raw QEMU's control connection"),
            }
        }
    }
}
