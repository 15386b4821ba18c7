//! Requests for a guest's page: whether anything that a client asked for was lost.
//!
//! Each request has a connection and a thread of its own, so one that waits does not keep the next
//! from being made. What TCP mends by sending a packet again is answered, only later; a request is
//! lost if its connection is refused or reset, or the page is not there whole in time.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use super::space::Space;
use crate::stop;

/// Between two requests.
const EVERY: Duration = Duration::from_millis(50);

/// How long a connection may take, and then each part of the answer: more than the first four times
/// that TCP asks again (after 1, 3, 7 and 15 seconds). It also limits how many requests wait at once.
const LIMIT: Duration = Duration::from_secs(20);

/// How long the guest may take to serve its first page.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Where the guest serves, and what; stands in `xtask/guests/bench/on-event`.
const PORT: u16 = 80;
const PAGE: &str = "the page of a guest that moves\n";

/// A request that has ended.
#[derive(Debug)]
struct Asked {
    at: Instant,
    took: Duration,
    lost: Option<String>,
}

/// Requests under way.
pub(crate) struct Web {
    asked: Arc<Mutex<Vec<Asked>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What became of all requests.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) made: usize,
    /// What the client saw of each that was lost.
    pub(crate) lost: Vec<String>,
    pub(crate) slowest_ms: f64,
}

impl Web {
    /// Waits for the first page, then goes on asking from a namespace.
    pub(crate) fn start(space: &Space, of: Ipv4Addr) -> Result<Self> {
        let to = SocketAddr::from((of, PORT));
        let first = || space.within(|| Ok(ask(to).ok()));
        stop::until("the guest's page", READY_LIMIT, first)?;
        let (asked, ended) = (Arc::default(), Arc::default());
        let (list, end) = (Arc::clone(&asked), Arc::clone(&ended));
        // A thread is in the namespace of the one that makes it.
        let thread = space.within(|| Ok(std::thread::spawn(move || ask_on(to, &list, &end))))?;
        Ok(Self { asked, ended, thread: Some(thread) })
    }

    /// The longest that a request of a span took, of those that have ended, in milliseconds.
    pub(crate) fn slowest_ms(&self, from: Instant, to: Instant) -> f64 {
        let asked = lock(&self.asked);
        let span = asked.iter().filter(|it| it.at + it.took >= from && it.at <= to);
        span.map(|it| it.took.as_secs_f64() * 1e3).fold(0.0, f64::max)
    }

    /// Ends them, and waits for those that are under way.
    pub(crate) fn end(mut self) -> Served {
        self.join();
        let asked = lock(&self.asked);
        let slowest = asked.iter().map(|it| it.took).max().unwrap_or_default();
        let lost = asked.iter().filter_map(|it| it.lost.clone()).collect();
        Served { made: asked.len(), lost, slowest_ms: slowest.as_secs_f64() * 1e3 }
    }

    fn join(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.join();
    }
}

fn lock(asked: &Mutex<Vec<Asked>>) -> MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask_on(to: SocketAddr, asked: &Arc<Mutex<Vec<Asked>>>, ended: &AtomicBool) {
    let mut under_way: Vec<JoinHandle<()>> = Vec::new();
    let mut next = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let list = Arc::clone(asked);
        under_way.push(std::thread::spawn(move || {
            let at = Instant::now();
            let lost = ask(to).err().map(|error| format!("{error:#}"));
            lock(&list).push(Asked { at, took: at.elapsed(), lost });
        }));
        under_way.retain(|thread| !thread.is_finished());
        next = (next + EVERY).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    for thread in under_way {
        let _ = thread.join();
    }
}

/// One request, from a connection to the whole page.
fn ask(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("no connection")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    // In one piece: a server may answer and close after the first one, which resets the rest.
    let request = format!("GET / HTTP/1.0\r\nHost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).context("the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer")?;
    let (head, page) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("status {status:?}");
    }
    ensure!(page == PAGE, "another page: {page:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::net::TcpListener;

    use super::PAGE;
    use super::ask;

    #[test]
    fn only_the_whole_page_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let answers = [
            format!("HTTP/1.1 200 OK\r\nContent-type: text/html\r\n\r\n{PAGE}"),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", &PAGE[..5]),
            format!("HTTP/1.1 503 Busy\r\n\r\n{PAGE}"),
            String::new(),
        ];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut peer, _) = listener.accept().unwrap();
                let _ = peer.read(&mut [0; 256]).unwrap();
                peer.write_all(answer.as_bytes()).unwrap();
            }
        });
        let served: Vec<bool> = (0..4).map(|_| ask(to).is_ok()).collect();
        server.join().unwrap();
        assert_eq!(served, [true, false, false, false]);
        assert!(ask(to).is_err(), "nobody is there");
    }
}
