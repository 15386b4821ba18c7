//! One conversation with an agent that has answered: its abilities and the commands we use.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use super::client::AgentClient;
use super::client::AgentError;
use super::client::AgentStream;
use super::client::CallLimits;
use super::facts::AgentInfo;
use super::facts::GuestFacts;
use super::facts::Question;
use super::host;
use super::parts;
use super::parts::PartKind;
use super::parts::Parts;
use super::probe::ExecOutput;
use super::probe::ExecRequest;

/// Ordinary commands answer in milliseconds; under load and emulation, in a second.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
/// Setting the clock runs `hwclock`, which waits for a second to begin, twice.
const SET_TIME_DEADLINE: Duration = Duration::from_secs(15);
/// How often the clock is set in a row.
const SET_TIME_ATTEMPTS_MAX: u32 = 3;
/// How far off a clock may be that was set, in nanoseconds: half a second.
const TIME_OFF_MAX: i64 = 500_000_000;
/// A processor or block of memory comes and goes in tens of milliseconds, ten times that under
/// emulation, and one command switches some.
const SWITCH_DEADLINE: Duration = Duration::from_secs(20);
/// A refusal to shut down comes at once; the shutdown itself closes the port or says nothing.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);

pub(super) struct Session {
    client: AgentClient,
    info: AgentInfo,
    /// Size of a block of memory, once the guest has told it.
    block: Option<u64>,
}

async fn ask_info(client: &mut AgentClient) -> Result<AgentInfo, AgentError> {
    let reply = client.call("guest-info", None, CallLimits::within(COMMAND_DEADLINE)).await?;
    AgentInfo::parse(&reply)
}

impl Session {
    /// Synchronises a fresh connection, waiting `patience` for the agent to appear.
    pub(super) async fn contact(
        stream: Box<dyn AgentStream>,
        seed: u32,
        patience: Duration,
    ) -> Result<AgentClient, AgentError> {
        let mut client = AgentClient::new(stream, seed);
        client.sync(patience).await?;
        Ok(client)
    }

    /// Asks an agent that has answered what it can do.
    pub(super) async fn begin(mut client: AgentClient) -> Result<Self, AgentError> {
        let info = ask_info(&mut client).await?;
        Ok(Self { client, info, block: None })
    }

    /// Asks again what the agent can do; true if that is something else than before.
    pub(super) async fn meet(&mut self) -> Result<bool, AgentError> {
        let info = ask_info(&mut self.client).await?;
        let other = info != self.info;
        if other {
            self.info = info;
            self.block = None;
        }
        Ok(other)
    }

    pub(super) fn info(&self) -> &AgentInfo {
        &self.info
    }

    pub(super) async fn ping(&mut self) -> Result<(), AgentError> {
        self.call("guest-ping", None).await.map(drop)
    }

    pub(super) async fn ask(
        &mut self,
        question: Question,
        facts: &mut GuestFacts,
    ) -> Result<(), AgentError> {
        let reply = self.call(question.command(), None).await?;
        question.take(&reply, facts)
    }

    pub(super) async fn shut_down(&mut self) -> Result<(), AgentError> {
        let command = "guest-shutdown";
        self.allowed(command)?;
        let arguments = json!({ "mode": "powerdown" });
        self.client.send_only(command, Some(arguments), SHUTDOWN_DEADLINE).await
    }

    /// Sets the guest's clock to what `now` says, and sees that it is so: a guest that was slow to
    /// take the order got an old time.
    pub(super) async fn set_time(&mut self, now: impl Fn() -> i64) -> Result<(), AgentError> {
        for _ in 0..SET_TIME_ATTEMPTS_MAX {
            let arguments = json!({ "time": now() });
            let limits = CallLimits::within(SET_TIME_DEADLINE);
            self.call_within("guest-set-time", Some(arguments), limits).await?;
            let asked = now();
            let Ok(guest) = self.call("guest-get-time", None).await else { return Ok(()) };
            let Some(guest) = guest.as_i64() else { return Ok(()) };
            // It was read between the question and now.
            if (asked.saturating_sub(TIME_OFF_MAX)..=now().saturating_add(TIME_OFF_MAX))
                .contains(&guest)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// How many processors or blocks of memory the guest has.
    pub(super) async fn parts(&mut self, kind: PartKind) -> Result<Parts, AgentError> {
        let found = self.get_parts(kind).await?;
        Ok(Parts::of(&found, self.unit(kind).await?))
    }

    /// Brings everything online that is there. What the guest refuses stays as it is.
    pub(super) async fn bring_online(&mut self, kind: PartKind) -> Result<Parts, AgentError> {
        let off = parts::offline(&self.get_parts(kind).await?);
        self.switch(kind, &off, true).await?;
        self.parts(kind).await
    }

    /// Takes the highest processors out of use, so that `keep` stay in it.
    pub(super) async fn take_offline(&mut self, keep: u64) -> Result<Parts, AgentError> {
        let kind = PartKind::Processors;
        let surplus = parts::surplus(&self.get_parts(kind).await?, keep);
        self.switch(kind, &surplus, false).await?;
        self.parts(kind).await
    }

    async fn switch(
        &mut self,
        kind: PartKind,
        ids: &[u64],
        online: bool,
    ) -> Result<(), AgentError> {
        for some in ids.chunks(parts::SWITCHED_AT_ONCE) {
            let limits = CallLimits::within(SWITCH_DEADLINE);
            let arguments = kind.arguments(some, online);
            match self.call_within(kind.set(), Some(arguments), limits).await {
                // One that cannot be switched must not keep the others from it.
                Ok(_) | Err(AgentError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn get_parts(&mut self, kind: PartKind) -> Result<Vec<parts::Part>, AgentError> {
        let limits =
            CallLimits { deadline: COMMAND_DEADLINE, reply_bytes: super::client::OUTPUT_BYTES_MAX };
        kind.parse(&self.call_within(kind.get(), None, limits).await?)
    }

    /// Size of one part.
    async fn unit(&mut self, kind: PartKind) -> Result<u64, AgentError> {
        if kind == PartKind::Processors {
            return Ok(1);
        }
        if let Some(block) = self.block {
            return Ok(block);
        }
        let command = "guest-get-memory-block-info";
        let reply = self.call(command, None).await?;
        let size = reply.get("size").and_then(Value::as_u64).filter(|size| *size > 0);
        let size = size.ok_or(AgentError::WrongShape { command, detail: "no size" })?;
        self.block = Some(size);
        Ok(size)
    }

    pub(super) async fn freeze(&mut self, limit: Duration) -> Result<u64, AgentError> {
        let command = "guest-fsfreeze-freeze";
        let reply = self.call_within(command, None, CallLimits::within(limit)).await?;
        reply.as_u64().ok_or(AgentError::WrongShape { command, detail: "not a number" })
    }

    pub(super) async fn thaw(&mut self) -> Result<(), AgentError> {
        self.call("guest-fsfreeze-thaw", None).await.map(drop)
    }

    pub(super) async fn is_frozen(&mut self) -> Result<bool, AgentError> {
        let command = "guest-fsfreeze-status";
        let reply = self.call(command, None).await?;
        match reply.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(AgentError::WrongShape { command, detail: "neither frozen nor thawed" }),
        }
    }

    /// Whether the guest has a file at `path` that the agent can open.
    pub(super) async fn has_file(&mut self, path: &str) -> Result<bool, AgentError> {
        match self.open(path, "r").await {
            Ok(handle) => self.close(handle).await.map(|()| true),
            Err(AgentError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the host's facts and returns where they are.
    pub(super) async fn write_host_file(
        &mut self,
        content: &str,
    ) -> Result<&'static str, AgentError> {
        match self.write_file(host::HOST_FILE, content).await {
            Err(AgentError::Refused { .. }) => {}
            done => return done.map(|()| host::HOST_FILE),
        }
        // Most likely the directory is missing, as after each boot.
        let made = self.exec(&ExecRequest::new("mkdir", &["-p", host::HOST_DIR])).await;
        match made {
            Ok(output) if output.code == Some(0) => {
                self.write_file(host::HOST_FILE, content).await.map(|()| host::HOST_FILE)
            }
            Ok(_) | Err(AgentError::Refused { .. } | AgentError::NotAllowed { .. }) => {
                let path = host::HOST_FILE_FALLBACK;
                self.write_file(path, content).await.map(|()| path)
            }
            Err(error) => Err(error),
        }
    }

    /// Runs a program in the guest to its end (see `probe`).
    pub(super) async fn exec(&mut self, request: &ExecRequest) -> Result<ExecOutput, AgentError> {
        let started = self.call("guest-exec", Some(request.arguments())).await?;
        let pid = super::probe::pid_of(&started)?;
        let until = tokio::time::Instant::now() + request.deadline;
        loop {
            let status = json!({ "pid": pid });
            let limits = CallLimits {
                deadline: COMMAND_DEADLINE,
                reply_bytes: super::client::OUTPUT_BYTES_MAX,
            };
            let reply = self.call_within("guest-exec-status", Some(status), limits).await?;
            if let Some(output) = super::probe::output_of(&reply)? {
                return Ok(output);
            }
            if tokio::time::Instant::now() >= until {
                let limit = request.deadline;
                return Err(AgentError::Timeout { command: "guest-exec", limit });
            }
            tokio::time::sleep(super::probe::POLL).await;
        }
    }

    async fn write_file(&mut self, path: &str, content: &str) -> Result<(), AgentError> {
        let handle = self.open(path, "w").await?;
        let write = json!({ "handle": handle, "buf-b64": STANDARD.encode(content) });
        let written = self.call("guest-file-write", Some(write)).await;
        // Closed in any case: the guest's handles are few.
        let closed = self.close(handle).await;
        let count = written?.get("count").and_then(Value::as_u64);
        closed?;
        match count == Some(content.len() as u64) {
            true => Ok(()),
            false => Err(AgentError::WrongShape {
                command: "guest-file-write",
                detail: "not all bytes were written",
            }),
        }
    }

    async fn open(&mut self, path: &str, mode: &str) -> Result<i64, AgentError> {
        let command = "guest-file-open";
        let reply = self.call(command, Some(json!({ "path": path, "mode": mode }))).await?;
        reply.as_i64().ok_or(AgentError::WrongShape { command, detail: "no handle" })
    }

    async fn close(&mut self, handle: i64) -> Result<(), AgentError> {
        self.call("guest-file-close", Some(json!({ "handle": handle }))).await.map(drop)
    }

    async fn call(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, AgentError> {
        self.call_within(command, arguments, CallLimits::within(COMMAND_DEADLINE)).await
    }

    async fn call_within(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        limits: CallLimits,
    ) -> Result<Value, AgentError> {
        self.allowed(command)?;
        self.client.call(command, arguments, limits).await
    }

    fn allowed(&self, command: &'static str) -> Result<(), AgentError> {
        if self.info.allows(command) { Ok(()) } else { Err(AgentError::NotAllowed { command }) }
    }
}
