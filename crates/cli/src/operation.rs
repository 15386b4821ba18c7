//! Waiting for operations.
//!
//! ```text
//!   running --(progress)--> running --> done      exit 0
//!                             |     --> failed    exit 1, message and hint of the failure
//!                             |     --> cancelled exit 1 (by somebody else) or 130 (by Ctrl-C)
//!                             |
//!           first Ctrl-C: stop it where stopping half-way is safe, and wait for that;
//!                         otherwise leave it to itself and go
//!           second Ctrl-C: leave it to itself and go
//! ```
//!
//! Operations survive a restart of the daemon, so a daemon that does not answer for a while is
//! waited for too.

use std::time::Duration;
use std::time::Instant;

use api::ApiError;
use api::ErrorKind;
use api::endpoint::OpCancel;
use api::endpoint::OpWait;
use api::model::OpId;
use api::model::OpState;
use api::model::Verb;
use api::types::OpView;
use api::types::OpWaitQuery;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::progress::Progress;
use crate::progress::done_line;

/// How long one request waits: short enough that proxies and restarts are noticed.
const POLL: Duration = Duration::from_secs(20);
/// Least time between two requests, so that fast progress does not become a busy loop.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// Between two attempts to reach a daemon that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a daemon may be silent: an upgrade of the package takes less.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Waits for an operation (unless told not to) and prints how it ended.
///
/// # Errors
/// As the operation failed, was cancelled, or was left by Ctrl-C.
pub(crate) async fn finish(context: &Context, op: Reply<OpView>) -> Result<(), CliError> {
    if !context.wait {
        let id = op.value.id;
        return context.out.reply(&op, |_| format!("{id}\nfollow it with: muster op wait {id}"));
    }
    wait(context, op).await
}

/// As [`finish`], whatever `--no-wait` says.
///
/// # Errors
/// As [`finish`].
pub(crate) async fn wait(context: &Context, op: Reply<OpView>) -> Result<(), CliError> {
    let op = follow(context, op).await?;
    if context.out.json {
        context.out.raw_json(&op.raw)?;
    }
    outcome(&op.value, false)?;
    context.out.done(&summary(&op.value))
}

/// Waits for the end of an operation that was asked to stop: that it stopped is a success here.
///
/// # Errors
/// As [`finish`], or where it was done all the same.
pub(crate) async fn cancelled(context: &Context, op: Reply<OpView>) -> Result<(), CliError> {
    let op = if context.wait { follow(context, op).await? } else { op };
    if context.out.json {
        context.out.raw_json(&op.raw)?;
    }
    match op.value.state {
        OpState::Running { .. } => context.out.done(&format!("{}: stopping", op.value.title)),
        OpState::Cancelled { .. } => context.out.done(&format!("{}: stopped", op.value.title)),
        OpState::Done { .. } => {
            let message = format!("{}: it was done before it could be stopped", op.value.title);
            Err(ApiError::new(ErrorKind::Conflict, "op_ended", message, "").into())
        }
        OpState::Failed { .. } => outcome(&op.value, false),
    }
}

/// Waits for an operation that something else comes after, even where `--no-wait` was given.
///
/// # Errors
/// As [`finish`].
pub(crate) async fn step(context: &Context, op: Reply<OpView>) -> Result<(), CliError> {
    let op = follow(context, op).await?;
    outcome(&op.value, false)
}

/// Waits for an operation's end and gives it back, for whoever prints it in its own way.
///
/// # Errors
/// As [`finish`].
pub(crate) async fn end_of(
    context: &Context,
    op: Reply<OpView>,
) -> Result<Reply<OpView>, CliError> {
    let op = follow(context, op).await?;
    outcome(&op.value, false)?;
    Ok(op)
}

fn summary(op: &OpView) -> String {
    match op.state {
        OpState::Done { at } => done_line(&op.title, at.since(op.begun).get()),
        _ => op.title.clone(),
    }
}

/// What the end of an operation means for the exit code.
fn outcome(op: &OpView, interrupted: bool) -> Result<(), CliError> {
    match &op.state {
        OpState::Running { .. } | OpState::Done { .. } => Ok(()),
        OpState::Failed { failure, .. } => {
            let message = format!("{}: {}", op.title, failure.message);
            Err(ApiError::new(ErrorKind::Failed, &failure.code, message, &*failure.hint).into())
        }
        OpState::Cancelled { .. } if interrupted => {
            Err(CliError::interrupted(format!("{}: stopped", op.title), ""))
        }
        OpState::Cancelled { .. } => {
            let message = format!("{}: somebody stopped it", op.title);
            let hint =
                format!("see who: muster event list; begin it again if it is wanted ({})", op.id);
            Err(ApiError::new(ErrorKind::Failed, "cancelled", message, hint).into())
        }
    }
}

/// Whether stopping it half-way is safe and useful.
const fn stops_on_interrupt(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::ImageImport | Verb::VmSave | Verb::VmMigrate | Verb::VmMoveStorage | Verb::VmShutdown
    )
}

/// Follows an operation to its end.
async fn follow(context: &Context, op: Reply<OpView>) -> Result<Reply<OpView>, CliError> {
    if !op.value.is_running() {
        return Ok(op);
    }
    let mut held = context.interrupts.lock().await;
    let interrupts =
        match &mut *held {
            Some(interrupts) => interrupts,
            none => none.insert(signal(SignalKind::interrupt()).map_err(|error| {
                CliError::failed(format!("cannot watch for Ctrl-C: {error}"), "")
            })?),
        };
    let progress = Progress::new(&context.out, &op.value.title);
    let mut waiter = Waiter { context, progress, interrupts, op, stopping: false };
    let result = waiter.wait().await;
    waiter.progress.finish();
    result?;
    if waiter.stopping {
        let op = &waiter.op.value;
        outcome(op, true)?;
        return Err(CliError::interrupted(
            format!("{}: it was done before it could be stopped", op.title),
            "",
        ));
    }
    Ok(waiter.op)
}

struct Waiter<'a> {
    context: &'a Context,
    progress: Progress,
    interrupts: &'a mut Signal,
    op: Reply<OpView>,
    stopping: bool,
}

impl Waiter<'_> {
    async fn wait(&mut self) -> Result<(), CliError> {
        let mut silent_since = None;
        while self.op.value.is_running() {
            self.progress.show(self.op.value.progress.as_ref());
            let polled = tokio::select! {
                polled = poll(self.context, self.op.value.id) => polled,
                _ = self.interrupts.recv() => {
                    self.interrupted().await?;
                    continue;
                }
            };
            match polled {
                Ok(op) => {
                    self.op = op;
                    silent_since = None;
                }
                Err(error) if error.error().kind == ErrorKind::Unavailable => {
                    self.wait_for_daemon(&mut silent_since, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A daemon that does not answer may be starting anew.
    async fn wait_for_daemon(
        &mut self,
        silent_since: &mut Option<Instant>,
        error: CliError,
    ) -> Result<(), CliError> {
        if silent_since.is_none() {
            self.progress.say(&format!("{}; waiting for the daemon", error.error().message));
        }
        if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX {
            let hint = format!("when the daemon is back: muster op wait {}", self.op.value.id);
            let message = error.error().message.clone();
            return Err(ApiError::new(ErrorKind::Unavailable, "unreachable", message, hint).into());
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => Ok(()),
            _ = self.interrupts.recv() => self.interrupted().await,
        }
    }

    async fn interrupted(&mut self) -> Result<(), CliError> {
        let op = &self.op.value;
        if self.stopping || !stops_on_interrupt(op.verb) {
            return Err(CliError::interrupted(
                format!("{}: left to itself, it goes on", op.title),
                format!("see how it ends: muster op wait {}", op.id),
            ));
        }
        self.stopping = true;
        self.progress
            .say(&format!("{}: stopping it; press Ctrl-C again to leave it to itself", op.title));
        let id = op.id.to_string();
        let (path, nothing) = ([id.as_str()], api::endpoint::Nothing {});
        let cancel = self.context.send::<OpCancel>(&path, &nothing);
        tokio::select! {
            cancelled = cancel => match cancelled {
                Ok(op) => self.op = op,
                // It has ended meanwhile, or cannot be stopped: the next poll tells.
                Err(error) => self.progress.say(&error.error().message),
            },
            _ = self.interrupts.recv() => return Box::pin(self.interrupted()).await,
        }
        Ok(())
    }
}

/// Asks once how far it is; the daemon answers at the next progress, the end, or after a while.
async fn poll(context: &Context, id: OpId) -> Result<Reply<OpView>, CliError> {
    let query = OpWaitQuery { timeout_ms: POLL.as_millis() as u64 };
    let begun = Instant::now();
    // A daemon that was stopped (SIGSTOP) keeps connections open and says nothing.
    let patience = POLL + Duration::from_secs(10);
    let id = id.to_string();
    let path = [id.as_str()];
    let asked = context.query::<OpWait>(&path, &query);
    let op = tokio::time::timeout(patience, asked).await.map_err(|_| {
        let message = "the daemon does not answer";
        ApiError::new(ErrorKind::Unavailable, "timeout", message, "")
    })??;
    if op.value.is_running() {
        tokio::time::sleep(POLL_PAUSE.saturating_sub(begun.elapsed())).await;
    }
    Ok(op)
}
