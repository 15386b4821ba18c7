//! The daemon's connection to its guard.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::timeout;

use super::socket_path;
use super::wire::Ask;
use super::wire::Line;
use super::wire::Reply;
use super::wire::VERSION;

/// How long a guard may take to answer: it does little, but the host may be busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// A reply is far shorter; more is not a guard's.
const REPLY_MAX: u64 = 16 * 1024;

/// A guard does not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "the guard does not answer ({0}); see that muster-guard runs: systemctl status muster-guard"
)]
pub struct GuardGone(String);

impl GuardGone {
    /// There is none that answers.
    pub fn new(why: &str) -> Self {
        Self(why.to_owned())
    }

    /// There is one, but it acts on another control group than the machines are in.
    pub fn other_group(group: &Path) -> Self {
        Self(format!(
            "the one that runs guards {}; give it the daemon's --data-dir and --control-group",
            group.display()
        ))
    }
}

/// A way to a host's guard.
#[async_trait]
pub trait GuardWay: Send + Sync {
    /// Connects to it.
    ///
    /// # Errors
    /// [`GuardGone`]: there is none.
    async fn connect(&self) -> Result<Box<dyn GuardLine>, GuardGone>;
}

/// A connection to a guard. After an error it is to be thrown away.
#[async_trait]
pub trait GuardLine: Send + Sync {
    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// [`GuardGone`]: no reply in time, or none that a guard gives.
    async fn ask(&mut self, ask: Ask) -> Result<Reply, GuardGone>;
}

#[async_trait]
impl GuardLine for GuardClient {
    async fn ask(&mut self, ask: Ask) -> Result<Reply, GuardGone> {
        Self::ask(self, ask).await
    }
}

/// The guard of a run directory, by its socket.
pub struct GuardOf(pub PathBuf);

#[async_trait]
impl GuardWay for GuardOf {
    async fn connect(&self) -> Result<Box<dyn GuardLine>, GuardGone> {
        Ok(Box::new(GuardClient::connect(&self.0).await?))
    }
}

/// The connection by the socket.
#[derive(Debug)]
pub struct GuardClient {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    limit: Duration,
}

impl GuardClient {
    /// Connects to the guard of that run directory.
    ///
    /// # Errors
    /// [`GuardGone`]: there is none.
    pub async fn connect(run_dir: &Path) -> Result<Self, GuardGone> {
        let path = socket_path(run_dir);
        let stream = timeout(ANSWER_LIMIT, UnixStream::connect(&path)).await;
        let stream = stream
            .map_err(|_| GuardGone("connecting takes too long".to_owned()))?
            .map_err(|error| GuardGone(format!("{}: {error}", path.display())))?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: BufReader::new(reader), writer, limit: ANSWER_LIMIT })
    }

    /// Waits as long as `limit` for each reply from now on: for callers that only look.
    #[must_use]
    pub fn patient(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// [`GuardGone`]: no reply in time, or none that a guard gives.
    pub async fn ask(&mut self, ask: Ask) -> Result<Reply, GuardGone> {
        let asking = async {
            let line = Line { v: VERSION, ask };
            let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
            line.push(b'\n');
            self.writer.write_all(&line).await?;
            let mut reply = Vec::with_capacity(1024);
            let mut bounded = tokio::io::AsyncReadExt::take(&mut self.reader, REPLY_MAX);
            bounded.read_until(b'\n', &mut reply).await?;
            if reply.last() != Some(&b'\n') {
                return Err(std::io::Error::other("it has ended"));
            }
            serde_json::from_slice(&reply).map_err(std::io::Error::other)
        };
        match timeout(self.limit, asking).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(GuardGone(error.to_string())),
            Err(_) => Err(GuardGone(format!("no reply in {} s", self.limit.as_secs()))),
        }
    }
}
