//! Asking the host's resolvers: bounded time, fresh ids, replies checked before they pass.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;

/// A resolver that does not answer by then is passed over; clients ask again after 5 s.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// As many as the C library uses.
const UPSTREAMS_MAX: usize = 3;
/// resolv.conf files are a few lines; a huge one is not read to its end.
const RESOLV_CONF_BYTES_MAX: usize = 65_536;
/// The longest DNS message.
const MESSAGE_BYTES_MAX: usize = 65_535;
const HEADER_BYTES: usize = 12;
const QR_BIT: u8 = 0x80;
const RCODE_MASK: u8 = 0x0f;
const RCODE_SERVFAIL: u8 = 2;
const DNS_PORT: u16 = 53;

/// How a question travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What changes when a file is written or replaced: time, length, inode.
type Version = (SystemTime, u64, u64);

/// The host's resolvers, read again whenever their file changes.
#[derive(Debug)]
pub(crate) struct Upstreams {
    path: PathBuf,
    /// Our own gateway addresses never count: asking ourselves would go round for ever.
    cache: Mutex<(Option<Version>, Vec<IpAddr>)>,
}

impl Upstreams {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, cache: Mutex::new((None, Vec::new())) }
    }

    fn current(&self) -> Vec<IpAddr> {
        let meta = std::fs::metadata(&self.path).ok();
        let version = meta.and_then(|meta| Some((meta.modified().ok()?, meta.len(), meta.ino())));
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if version.is_none() || cache.0 != version {
            let text = std::fs::read(&self.path).unwrap_or_default();
            let text = &text[..text.len().min(RESOLV_CONF_BYTES_MAX)];
            *cache = (version, parse(&String::from_utf8_lossy(text)));
        }
        cache.1.clone()
    }

    /// Asks one resolver after the other. `None`: nobody gave a usable answer.
    pub(crate) async fn ask(
        &self,
        own: Ipv4Addr,
        packet: &[u8],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let mut last = None;
        for upstream in self.current().into_iter().filter(|upstream| *upstream != own) {
            let to = SocketAddr::new(upstream, DNS_PORT);
            let asked = tokio::time::timeout(UPSTREAM_TIMEOUT, ask_one(to, packet, transport));
            if let Ok(Ok(reply)) = asked.await {
                // Another resolver may know better than one that has failed.
                if reply[3] & RCODE_MASK != RCODE_SERVFAIL {
                    return Some(reply);
                }
                last = Some(reply);
            }
        }
        last
    }
}

/// The `nameserver` lines of a resolv.conf.
fn parse(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        // A zone ("%eth0") is left out: such a resolver is passed over.
        words.next()?.parse().ok()
    };
    text.lines().filter_map(server).take(UPSTREAMS_MAX).collect()
}

async fn ask_one(to: SocketAddr, packet: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    // Our own id: the guest's is guessable by whoever knows the guest.
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|_| io::ErrorKind::Other)?;
    let mut question = packet.to_vec();
    question[..2].copy_from_slice(&id);
    let mut reply = match transport {
        Transport::Udp => ask_udp(to, &question).await?,
        Transport::Tcp => ask_tcp(to, &question).await?,
    };
    if !belongs(&question, &reply) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    reply[..2].copy_from_slice(&packet[..2]);
    Ok(reply)
}

async fn ask_udp(to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket of its own per question: a fresh random port, and only this resolver's packets.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut reply = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut reply).await?;
        // A wrong guess of an attacker does not end the wait for the true one.
        if belongs(question, &reply[..length]) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn ask_tcp(to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// Whether a reply has our id, is a reply, and repeats our question.
fn belongs(question: &[u8], reply: &[u8]) -> bool {
    let Some(end) = question_end(question) else { return false };
    reply.len() >= end
        && reply[..2] == question[..2]
        && reply[2] & QR_BIT != 0
        && reply[HEADER_BYTES..end].eq_ignore_ascii_case(&question[HEADER_BYTES..end])
}

/// Where the (one, uncompressed) question of a packet ends.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => at += length,
            _ => return None,
        }
    }
    let end = at + 4;
    (end <= packet.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_c_library_does() {
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver  2001:db8::1 \n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver\noptions edns0\n";
        let expected: Vec<IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(parse(text), expected);
        assert_eq!(parse(&"nameserver 192.0.2.1\n".repeat(9)).len(), UPSTREAMS_MAX);
    }

    #[test]
    fn a_reply_must_repeat_id_and_question() {
        let question = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\x01a\x00\x00\x01\x00\x01".to_vec();
        let mut reply = question.clone();
        assert!(!belongs(&question, &reply), "a question is no reply");
        reply[2] |= QR_BIT;
        assert!(belongs(&question, &reply));
        reply[13] = b'A';
        assert!(belongs(&question, &reply), "case does not count");
        reply[13] = b'b';
        assert!(!belongs(&question, &reply));
        reply[13] = b'a';
        reply[0] ^= 1;
        assert!(!belongs(&question, &reply));
        assert!(!belongs(&question, &[]));
        assert!(!belongs(b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\xc0\x0c", &reply));
    }
}
