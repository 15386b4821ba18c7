//! Pings: how long somebody was not there, as the others in the network see it. A ping that is lost
//! is not sent again, so each is a look at one moment.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
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
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::sendto;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;

use super::space::Space;
use super::stamp;

/// Between two pings.
const EVERY: Duration = Duration::from_millis(10);

/// How often the receiver looks whether it is to end.
const LOOK_EVERY: TimeVal = TimeVal::new(0, 100_000);

/// How long the answer to the last ping is waited for.
const LATE: Duration = Duration::from_secs(1);

/// Marks our own among all answers that a raw socket hears; the ping's number follows.
const MARK: [u8; 8] = *b"muster->";

/// What was sent, and when each answer came.
#[derive(Debug, Default)]
struct Seen {
    sent: u64,
    ended: Option<Instant>,
    answers: BTreeMap<u64, Instant>,
}

/// Pings under way.
pub(crate) struct Pings {
    began: Instant,
    seen: Arc<Mutex<Seen>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of all pings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) sent: u64,
    pub(crate) answered: usize,
    pub(crate) longest_ms: f64,
}

impl Pings {
    /// Begins to ping an address from a namespace.
    pub(crate) fn start(space: &Space, to: Ipv4Addr) -> Result<Self> {
        let socket = Arc::new(space.within(raw_socket)?);
        let (seen, ended) = (Arc::default(), Arc::default());
        let this = |work: fn(&OwnedFd, Ipv4Addr, &Mutex<Seen>, &AtomicBool)| {
            let (socket, seen, ended) =
                (Arc::clone(&socket), Arc::clone(&seen), Arc::clone(&ended));
            std::thread::spawn(move || work(&socket, to, &seen, &ended))
        };
        let threads = vec![this(send), this(listen)];
        Ok(Self { began: Instant::now(), seen, ended, threads })
    }

    /// The longest time without an answer of which a part lies in a span, in milliseconds.
    pub(crate) fn silence_ms(&self, from: Instant, to: Instant) -> f64 {
        let seen = lock(&self.seen);
        let mut times: Vec<Instant> = seen.answers.values().copied().collect();
        times.extend([self.began, seen.ended.unwrap_or_else(Instant::now)]);
        times.sort_unstable();
        times
            .windows(2)
            .filter(|pair| pair[1] >= from && pair[0] <= to)
            .map(|pair| pair[1].duration_since(pair[0]).as_secs_f64() * 1e3)
            .fold(0.0, f64::max)
    }

    /// Ends them, and waits for late answers.
    pub(crate) fn end(mut self) -> Answered {
        lock(&self.seen).ended = Some(Instant::now());
        std::thread::sleep(LATE);
        self.join();
        let longest_ms = self.silence_ms(self.began, Instant::now());
        let seen = lock(&self.seen);
        Answered { sent: seen.sent, answered: seen.answers.len(), longest_ms }
    }

    fn join(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        self.join();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn raw_socket() -> Result<OwnedFd> {
    let (kind, protocol) = (SockType::Raw, SockProtocol::Icmp);
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, protocol)
        .context("no raw socket")?;
    setsockopt(&socket, ReceiveTimeout, &LOOK_EVERY)?;
    stamp::ask(&socket)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, to: Ipv4Addr, seen: &Mutex<Seen>, ended: &AtomicBool) {
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let mut next = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let number = {
            let mut seen = lock(seen);
            if seen.ended.is_some() {
                return;
            }
            seen.sent += 1;
            seen.sent
        };
        // Somebody who is not there, or has no way to it yet, is what is to be found out.
        let _ = sendto(socket.as_raw_fd(), &echo(number), &to, MsgFlags::empty());
        next = (next + EVERY).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn listen(socket: &OwnedFd, _: Ipv4Addr, seen: &Mutex<Seen>, ended: &AtomicBool) {
    let mut packet = [0; 256];
    while !ended.load(Ordering::Relaxed) {
        let Ok((length, came)) = stamp::receive(socket, &mut packet) else { continue };
        if let Some(number) = answer(&packet[..length]) {
            lock(seen).answers.entry(number).or_insert(came);
        }
    }
}

/// An echo request.
fn echo(number: u64) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(std::process::id().to_be_bytes()[2..].iter());
    // The field of sixteen bits may begin anew: the number behind the mark counts.
    packet.extend(number.to_be_bytes()[6..].iter());
    packet.extend(MARK);
    packet.extend(number.to_be_bytes());
    let words = packet.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or_default();
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The number of the ping of ours that an IP packet answers.
fn answer(packet: &[u8]) -> Option<u64> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header..)?;
    let (mark, number) = icmp.get(8..24)?.split_at(MARK.len());
    let ours = icmp.first() == Some(&0) && mark == MARK;
    ours.then_some(u64::from_be_bytes(number.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::answer;
    use super::echo;

    #[test]
    fn an_answer_is_known_by_its_number_and_nothing_else_is_one() {
        let mut packet = vec![0x45; 20];
        packet.extend(echo(70_000));
        assert_eq!(answer(&packet), None, "it is a request");
        packet[20] = 0;
        assert_eq!(answer(&packet), Some(70_000));
        assert_eq!(answer(&packet[..40]), None);
        packet[30] = b'x';
        assert_eq!(answer(&packet), None);
    }

    #[test]
    fn the_checksum_makes_the_sum_of_all_words_full() {
        let sum: u32 =
            echo(12_345).chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
