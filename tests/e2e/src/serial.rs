//! A root shell in a tiny guest, over the serial console that the API offers.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::client::Socket;
use bytes::Bytes;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::GUEST;
use crate::wait::patient;

/// A connection to a guest's serial console.
pub struct Serial {
    socket: Socket,
    seen: String,
    /// Where the next search begins.
    at: usize,
    log: File,
}

impl Serial {
    pub(crate) fn new(socket: Socket, log: File) -> Self {
        Self { socket, seen: String::new(), at: 0, log }
    }

    /// Waits until the guest has printed a text; returns what came before it.
    ///
    /// # Panics
    /// When `limit` is over or the console ends.
    pub async fn expect(&mut self, text: &str, limit: Duration) -> String {
        let deadline = Instant::now() + patient(limit);
        loop {
            if let Some(found) = self.seen[self.at..].find(text) {
                let before = self.seen[self.at..self.at + found].to_owned();
                self.at += found + text.len();
                return before;
            }
            match timeout_at(deadline, self.socket.receive()).await {
                Ok(Ok(Some(data))) => self.take(&data),
                Ok(Ok(None)) => panic!("the console ended before {text:?}; {}", self.tail()),
                Ok(Err(error)) => panic!("console: {error} before {text:?}; {}", self.tail()),
                Err(_) => panic!("no {text:?} on the console within {limit:?}; {}", self.tail()),
            }
        }
    }

    /// Types.
    ///
    /// # Panics
    /// If the console has ended.
    pub async fn send(&mut self, text: &str) {
        let data = Bytes::copy_from_slice(text.as_bytes());
        self.socket.send(data).await.expect("the console is open");
    }

    /// Runs a shell command and returns what it printed, trimmed.
    ///
    /// # Panics
    /// If it ends with an error or not within [`GUEST`].
    pub async fn run(&mut self, command: &str) -> String {
        let (code, out) = self.try_run(command).await;
        assert_eq!(code, 0, "in the guest: {command}: {out}");
        out
    }

    /// Runs a shell command and returns its exit code and what it printed, trimmed.
    ///
    /// # Panics
    /// If it does not end within [`GUEST`].
    pub async fn try_run(&mut self, command: &str) -> (u32, String) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // The echo of what is typed must not be taken for the answer, nor an older answer that the
        // console repeats to a new viewer.
        let mark = format!("{}x{number}", std::process::id());
        let (begin, end) = (format!("<{mark}<"), format!(">{mark}>"));
        let line =
            format!(" printf '<%s<' {mark}; {{ {command}; }} 2>&1; printf '>%s>%s.' {mark} $?\n");
        self.send(&line).await;
        self.expect(&begin, GUEST).await;
        let out = self.expect(&end, GUEST).await;
        let code = self.expect(".", GUEST).await;
        // What the guest says by itself may come in between.
        let out: Vec<_> =
            out.lines().map(str::trim_end).filter(|line| !line.starts_with("MUSTER-")).collect();
        (code.parse().expect("a shell prints a number"), out.join("\n").trim().to_owned())
    }

    /// Everything that was seen.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    fn take(&mut self, data: &[u8]) {
        // For the dump after a failure; a full disk shows elsewhere.
        let _ = self.log.write_all(data);
        // Guests of these tests print ASCII; anything else is a character lost, not a panic.
        self.seen.push_str(&String::from_utf8_lossy(data));
    }

    fn tail(&self) -> String {
        let tail: Vec<_> = self.seen.lines().rev().take(15).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        format!("last lines:\n{}", tail.join("\n"))
    }
}
