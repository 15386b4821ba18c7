//! Watches from outside whether a guest goes on: asks its SSH port for a banner again and again
//! and keeps the longest time without one.

use std::io::Read;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;

use crate::stop;

/// How long one question may take.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Pulse {
    banner: String,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Pulse {
    /// Waits for the first answer, then goes on watching.
    pub(super) fn start(address: &str, limit: Duration) -> Result<Self> {
        let address: SocketAddr = format!("{address}:22").parse().context("a strange address")?;
        let until = Instant::now() + limit;
        let banner = loop {
            match ask(address) {
                Ok(banner) => break banner,
                Err(error) if Instant::now() > until => {
                    bail!("{address} does not answer within {limit:?}: {error}")
                }
                Err(_) => stop::pass(PAUSE)?,
            }
        };
        let ended = Arc::new(AtomicBool::new(false));
        let stop = ended.clone();
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut last = Instant::now();
            loop {
                let answered = ask(address).is_ok();
                longest = longest.max(last.elapsed());
                if answered {
                    last = Instant::now();
                }
                if stop.load(Ordering::Relaxed) {
                    return longest;
                }
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { banner, ended, thread })
    }

    pub(super) fn banner(&self) -> &str {
        &self.banner
    }

    /// Stops watching; the longest time between two answers.
    pub(super) fn end(self) -> Result<Duration> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watching thread failed"))
    }
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ASK_LIMIT)?;
    stream.set_read_timeout(Some(ASK_LIMIT))?;
    let mut banner = [0; 64];
    let count = stream.read(&mut banner)?;
    if count == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&banner[..count]).trim().to_owned())
}
