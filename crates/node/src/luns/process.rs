//! The daemon's end of the control socket: starts the volume process where there is none, and orders.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::dataplane::Settings;
use crate::dataplane::VERB;
use crate::dataplane::words::Answer;
use crate::dataplane::words::Frame;
use crate::dataplane::words::Order;
use crate::dataplane::words::VERSION;
use crate::dataplane::words::receive;
use crate::dataplane::words::send;

/// How long a process may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);

/// How long a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// How long images may take to change hands: their guest stands. A coordinator that is lost is another one
/// by then.
const HOLD_LIMIT: Duration = Duration::from_secs(20);

/// How long a deed may take: mounting replays a journal of gigabytes.
const WORK_LIMIT: Duration = Duration::from_secs(600);

/// The volume process of this node. Clones are the same.
#[derive(Clone)]
pub(crate) struct VolumeProcess {
    settings: Arc<Settings>,
    starting: Arc<Mutex<()>>,
}

impl VolumeProcess {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), starting: Arc::default() }
    }

    /// What it is started with.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Orders something, and starts the process where there is none.
    ///
    /// # Errors
    /// In words: it cannot be started, does not answer, or could not do it.
    pub(crate) async fn order(&self, order: Order) -> Result<Answer, String> {
        let limit = match order {
            Order::States => LOOK_LIMIT,
            Order::Hold { .. } | Order::Free { .. } => HOLD_LIMIT,
            _ => WORK_LIMIT,
        };
        for _ in 0..2 {
            let stream = self.connect_or_start().await?;
            match converse(stream, self.frame(order.clone()), limit).await {
                Ok(Answer::Failed { why }) => return Err(why),
                Ok(Answer::Stranger { version, node }) => {
                    tracing::warn!(version, %node, "another volume process runs here; it is to end");
                    self.end().await?;
                }
                Ok(answer) => return Ok(answer),
                Err(error) => return Err(format!("the volume process does not answer: {error}")),
            }
        }
        Err("the volume process is another node's; end it: kill it by its id".to_owned())
    }

    /// Asks a process that runs, and starts none: none has nothing to say.
    ///
    /// # Errors
    /// As [`VolumeProcess::order`].
    pub(crate) async fn look(&self) -> Result<Vec<crate::dataplane::words::Told>, String> {
        if self.connect().await.is_err() {
            return Ok(Vec::new());
        }
        match self.order(Order::States).await? {
            Answer::States { states } => Ok(states),
            other => Err(format!("the volume process gives no answer to that: {other:?}")),
        }
    }

    /// Whether a process runs.
    pub(super) async fn runs(&self) -> bool {
        self.connect().await.is_ok()
    }

    /// Ends it, if nobody uses anything of it. Fine where none runs.
    ///
    /// # Errors
    /// In words: somebody does, or it does not answer.
    pub(crate) async fn end(&self) -> Result<(), String> {
        let Ok(stream) = self.connect().await else { return Ok(()) };
        match converse(stream, self.frame(Order::End), WORK_LIMIT).await {
            Ok(Answer::Failed { why }) => return Err(why),
            Ok(_) => {}
            Err(error) => return Err(format!("the volume process does not end: {error}")),
        }
        let begun = Instant::now();
        while self.connect().await.is_ok() {
            if begun.elapsed() > START_LIMIT {
                return Err("the volume process does not end".to_owned());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn frame(&self, order: Order) -> Frame<Order> {
        Frame { version: VERSION, node: self.settings.node, body: order }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.settings.socket()).await
    }

    async fn connect_or_start(&self) -> Result<UnixStream, String> {
        if let Ok(stream) = self.connect().await {
            return Ok(stream);
        }
        let _alone = self.starting.lock().await;
        let begun = Instant::now();
        let mut started = false;
        loop {
            match self.connect().await {
                Ok(stream) => return Ok(stream),
                Err(error) if begun.elapsed() > START_LIMIT => {
                    return Err(format!(
                        "the volume process does not start: {error}; see this daemon's log"
                    ));
                }
                Err(_) if started => tokio::time::sleep(POLL).await,
                Err(_) => {
                    self.start().map_err(|error| format!("no volume process: {error}"))?;
                    started = true;
                }
            }
        }
    }

    fn start(&self) -> io::Result<()> {
        // Not the path that /proc tells: after an upgrade that is "(deleted)".
        let mut command = Command::new(Path::new("/proc/self/exe"));
        command.arg(VERB).arg(serde_json::to_string(&*self.settings)?);
        command.current_dir("/").stdin(Stdio::null()).kill_on_drop(false);
        let mut child = command.spawn()?;
        tracing::info!(pid = child.id(), "the volume process is started");
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::warn!(%status, "the volume process has ended"),
                Err(error) => tracing::warn!(%error, "the volume process is not known of"),
            }
        });
        Ok(())
    }
}

async fn converse(
    mut stream: UnixStream,
    frame: Frame<Order>,
    limit: Duration,
) -> io::Result<Answer> {
    let talk = async {
        send(&mut stream, &frame).await?;
        Ok(receive::<Answer>(&mut stream).await?.body)
    };
    tokio::time::timeout(limit, talk).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
