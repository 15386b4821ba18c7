//! Measures what the way to a node carries, in the way in which a migration goes: one connection with
//! TLS. Twice the same amount; the first one lets TCP find its pace.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use model::Bytes;
use model::NodeId;
use peer::PeerStream;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::cluster::peers::Peers;

/// Name of the stream.
pub(crate) const PROBE_STREAM: &str = "migrate-probe";

/// What is sent each time: 2 MiB, 17 ms at 1 Gb/s.
const PROBE_BYTES: usize = 2 << 20;

/// In pieces of this size.
const PIECE: usize = 128 << 10;

/// Times.
const ROUNDS: u32 = 2;

/// How long a measurement may take: 4 MiB at 10 Mb/s.
const MEASURE_MAX: Duration = Duration::from_secs(4);

/// What the way carries, in bytes per second, and by which address it was measured; none where it
/// could not be.
pub(crate) async fn measure(peers: &Peers, to: NodeId) -> Option<(Bytes, SocketAddr)> {
    let work = async {
        let (mut stream, by) = super::open(peers, to, PROBE_STREAM).await.ok()?;
        Some((rounds(&mut stream).await.ok()?, by))
    };
    tokio::time::timeout(MEASURE_MAX, work).await.ok().flatten()
}

async fn rounds(stream: &mut PeerStream) -> io::Result<Bytes> {
    let piece = vec![0x5a; PIECE];
    let mut took = Duration::ZERO;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..PROBE_BYTES / PIECE {
            stream.write_all(&piece).await?;
        }
        stream.flush().await?;
        stream.read_u8().await?;
        took = begun.elapsed();
    }
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    Ok(Bytes::new((PROBE_BYTES as u64).saturating_mul(1_000_000) / micros))
}

/// The other side: says when each round is there.
pub(crate) async fn answer(mut stream: PeerStream) {
    let work = async {
        let mut piece = vec![0; PIECE];
        for _ in 0..ROUNDS {
            let mut left = PROBE_BYTES;
            while left > 0 {
                let most = left.min(PIECE);
                let count = stream.read(&mut piece[..most]).await?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                left -= count;
            }
            stream.write_u8(1).await?;
            stream.flush().await?;
        }
        Ok(())
    };
    // Whoever measures sees what is missing.
    let _: Result<io::Result<()>, _> = tokio::time::timeout(MEASURE_MAX, work).await;
}
