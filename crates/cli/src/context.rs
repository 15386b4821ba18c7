//! What every client verb is given: the daemon to ask, and the way to print.

use std::path::Path;

use api::ApiError;
use api::ErrorKind;
use api::client::Client;
use api::client::Target;
use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use tokio::signal::unix::Signal;
use tokio::sync::Mutex;

use crate::cli::GlobalArgs;
use crate::error::CliError;
use crate::output::Output;

/// What every client verb is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// The daemon.
    pub(crate) client: Client,
    /// The way to print.
    pub(crate) out: Output,
    /// Whether to wait for operations.
    pub(crate) wait: bool,
    /// Ctrl-C, from the first operation on that was waited for: from then on it no longer ends the
    /// program by itself, so it must be looked at whatever is done next.
    pub(crate) interrupts: Mutex<Option<Signal>>,
}

/// An answer, as it came and as it is understood.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    /// The JSON as the daemon wrote it.
    pub(crate) raw: Vec<u8>,
    /// What it says.
    pub(crate) value: T,
}

impl Context {
    /// Reads the global options.
    pub(crate) fn new(global: &GlobalArgs, out: Output) -> Result<Self, CliError> {
        let client = Client::new(target(global)?).stale(global.stale);
        Ok(Self { client, out, wait: !global.no_wait, interrupts: Mutex::default() })
    }

    /// Whether the daemon is on another machine, or at least reached as if it were.
    pub(crate) const fn is_remote(&self) -> bool {
        matches!(self.client.target(), Target::Tls { .. })
    }

    /// Calls an endpoint without query and body.
    pub(crate) async fn get<E>(&self, path: &[&str]) -> Result<Reply<E::Reply>, CliError>
    where
        E: Endpoint<Body = Nothing>,
    {
        self.call::<E>(path, &E::Query::default(), &Nothing {}).await
    }

    /// Calls an endpoint with a query.
    pub(crate) async fn query<E>(
        &self,
        path: &[&str],
        query: &E::Query,
    ) -> Result<Reply<E::Reply>, CliError>
    where
        E: Endpoint<Body = Nothing>,
    {
        self.call::<E>(path, query, &Nothing {}).await
    }

    /// Calls an endpoint with a body.
    pub(crate) async fn send<E: Endpoint>(
        &self,
        path: &[&str],
        body: &E::Body,
    ) -> Result<Reply<E::Reply>, CliError> {
        self.call::<E>(path, &E::Query::default(), body).await
    }

    /// Calls an endpoint.
    pub(crate) async fn call<E: Endpoint>(
        &self,
        path: &[&str],
        query: &E::Query,
        body: &E::Body,
    ) -> Result<Reply<E::Reply>, CliError> {
        let asked = self.client.call_raw(&E::INFO, path, query, body);
        let raw = self.unless_interrupted(asked).await?.to_vec();
        let raw = if raw.is_empty() { b"{}".to_vec() } else { raw };
        let value = serde_json::from_slice(&raw).map_err(|error| {
            ApiError::new(
                ErrorKind::Failed,
                "bad_reply",
                format!("the daemon's answer to {} cannot be read: {error}", E::INFO.id),
                "use a client of the daemon's version: muster version",
            )
        })?;
        Ok(Reply { raw, value })
    }

    /// Waits for an answer, at most until Ctrl-C where that is ours to look at. Whoever waits for
    /// an operation looks by themselves.
    async fn unless_interrupted<T>(
        &self,
        asked: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, CliError> {
        let mut held = self.interrupts.try_lock();
        let Some(interrupts) = held.as_mut().ok().and_then(|held| held.as_mut()) else {
            return Ok(asked.await?);
        };
        tokio::select! {
            // One that was pressed before the question is heeded before it.
            biased;
            _ = interrupts.recv() => Err(CliError::interrupted(
                "interrupted between two steps; what was begun goes on, the rest is not done",
                "see what is under way: muster op list",
            )),
            answer = asked => Ok(answer?),
        }
    }
}

/// Where the daemon is, by the global options.
fn target(global: &GlobalArgs) -> Result<Target, CliError> {
    let Some(address) = &global.host else {
        return Ok(Target::Unix { path: global.socket.clone() });
    };
    let Some(fingerprint) = &global.fingerprint else {
        return Err(CliError::usage(
            "--host needs the fingerprint of the daemon's certificate",
            "run 'muster node show' on that machine, and give --fingerprint or MUSTER_FINGERPRINT",
        ));
    };
    let digits = fingerprint.replace(':', "");
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(CliError::usage(
            format!("'{fingerprint}' is not a SHA-256 fingerprint (64 hexadecimal digits)"),
            "run 'muster node show' on that machine to see it",
        ));
    }
    let token = match (&global.token, &global.token_file) {
        (Some(token), _) => token.trim().to_owned(),
        (None, Some(file)) => read_token(file)?,
        (None, None) => {
            return Err(CliError::usage(
                "--host needs an API token",
                "make one with 'muster token create' on that machine, and give MUSTER_TOKEN or \
                 --token-file",
            ));
        }
    };
    Ok(Target::Tls { address: address.clone(), fingerprint: digits, token })
}

fn read_token(file: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        CliError::usage(
            format!("cannot read the token file {}: {error}", file.display()),
            "name a file that holds the token's secret on one line",
        )
    })?;
    Ok(text.trim().to_owned())
}
