//! Pings from a network of a lab: how long somebody was not there, as the others see it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::thread::LinkNameSpaceType;
use rustix::thread::move_into_link_name_space;

/// Between two pings.
const EVERY: Duration = Duration::from_millis(10);

/// Marks our own among all echo answers that a raw socket hears.
const MARK: [u8; 6] = *b"muster";

/// Pings under way.
#[derive(Debug)]
pub struct Pings {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Instant>>>,
}

impl Pings {
    /// Begins to ping an address from the network namespace of that file.
    ///
    /// # Panics
    /// If there is no socket to be had.
    pub fn start(namespace: &Path, to: Ipv4Addr) -> Self {
        let end: Arc<AtomicBool> = Arc::default();
        let (ending, namespace) = (Arc::clone(&end), namespace.to_owned());
        let thread = std::thread::spawn(move || {
            let namespace = File::open(namespace).expect("the namespace is there");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the thread may go there");
            ping(to, &ending)
        });
        Self { end, thread: Some(thread) }
    }

    /// Ends them: how many answers came, and the longest time without one between two of them.
    ///
    /// # Panics
    /// If they could not be sent at all.
    pub fn end(mut self) -> (usize, Duration) {
        AtomicBool::store(&self.end, true, Ordering::Relaxed);
        let answers = self.thread.take().map(JoinHandle::join);
        let Some(Ok(answers)) = answers else { panic!("the pings have failed") };
        let gaps = answers.windows(2).map(|two| two[1] - two[0]);
        (answers.len(), gaps.max().unwrap_or(Duration::MAX))
    }
}

fn ping(to: Ipv4Addr, ending: &AtomicBool) -> Vec<Instant> {
    let icmp = Some(rustix::net::ipproto::ICMP);
    let (kind, flags) = (SocketType::RAW, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, icmp)
        .expect("root may have a raw socket");
    let to = SocketAddrV4::new(to, 0);
    let mut answers = Vec::new();
    let mut number = 0_u16;
    while !AtomicBool::load(ending, Ordering::Relaxed) {
        number = number.wrapping_add(1);
        // Somebody who is not there, or has no way to it yet, is what is to be found out.
        let _ = rustix::net::sendto(&socket, &echo(number), SendFlags::empty(), &to);
        std::thread::sleep(EVERY);
        let mut packet = [0_u8; 128];
        loop {
            match rustix::net::recv(&socket, &mut packet, RecvFlags::empty()) {
                Ok((count, _)) if is_answer(&packet[..count]) => answers.push(Instant::now()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }
    answers
}

/// An echo request.
fn echo(number: u16) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(std::process::id().to_be_bytes()[2..].iter());
    packet.extend(number.to_be_bytes());
    packet.extend(MARK);
    let words = packet.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or_default();
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Whether an IP packet is an echo answer of ours.
fn is_answer(packet: &[u8]) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    packet.get(header..).is_some_and(|icmp| icmp.first() == Some(&0) && icmp.ends_with(&MARK))
}
