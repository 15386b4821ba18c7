//! One call of a fence agent: options as lines on standard input, the answer as an exit code.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::FenceDevice;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tokio::process::Command;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

/// Where the package puts its programs.
const AGENTS_DIR: &str = "/usr/sbin";
/// What agents may call; nothing of the caller's environment reaches them.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Output that is kept: the end of it, where agents say what went wrong.
const OUTPUT_MAX: usize = 2_048;
/// Metadata of the largest agent has about 60 KB.
const METADATA_MAX: usize = 256 * 1024;
/// How long output may follow after the program itself has ended.
const OUTPUT_LATE: Duration = Duration::from_millis(200);
/// Exit code of *status* and *monitor* for a plug that is off.
const CODE_OFF: i32 = 2;
/// What stands for a secret in output.
const HIDDEN: &str = "[hidden]";

/// What an agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Cut the power.
    Off,
    /// Give the power back.
    On,
    /// Say whether there is power.
    Status,
    /// Say whether the device can be used.
    Monitor,
    /// Describe itself.
    Metadata,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should; for *status*: the power is on.
    Done,
    /// *Status* only: the power is off.
    IsOff,
    /// It says that it failed.
    Failed,
    /// Its time was over, and it was killed.
    Late,
    /// There is no such program, or it cannot be started.
    NotStarted(String),
}

/// A call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// How.
    pub outcome: Outcome,
    /// The end of what it printed, for people; secrets are hidden.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

/// The programs.
#[derive(Debug, Clone)]
pub struct Agents {
    dir: PathBuf,
    instead: Option<Arc<dyn Instead>>,
}

/// What is called in the place of programs: the devices of a simulation.
#[async_trait]
pub trait Instead: std::fmt::Debug + Send + Sync {
    /// One call. Its time is kept by the caller.
    async fn call(&self, device: &FenceDevice, plug: Option<&str>, action: Action) -> Called;
}

impl Default for Agents {
    fn default() -> Self {
        Self { dir: AGENTS_DIR.into(), instead: None }
    }
}

impl Action {
    /// The word that agents know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Status => "status",
            Self::Monitor => "monitor",
            Self::Metadata => "metadata",
        }
    }
}

impl Agents {
    /// Programs in another place.
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), instead: None }
    }

    /// No programs: each call is answered by this.
    pub fn instead(instead: Arc<dyn Instead>) -> Self {
        Self { instead: Some(instead), ..Self::default() }
    }

    /// Whether the program is there.
    pub fn has(&self, agent: &str) -> bool {
        self.dir.join(agent).is_file()
    }

    /// Calls a device's program for one plug of it. Ends within the device's time and a moment.
    pub async fn call(&self, device: &FenceDevice, plug: Option<&str>, action: Action) -> Called {
        let limit = Duration::from_secs(device.timeout_s.into());
        let mut called = self.run(device, plug, action, limit, OUTPUT_MAX).await;
        for secret in device.secrets.values().filter(|secret| !secret.is_empty()) {
            called.output = called.output.replace(secret.as_str(), HIDDEN);
        }
        called
    }

    /// Whether the agent can say if there is power; nothing where that cannot be found out.
    pub async fn knows_status(&self, device: &FenceDevice) -> Option<bool> {
        let limit = Duration::from_secs(device.timeout_s.into());
        let called = self.run(device, None, Action::Metadata, limit, METADATA_MAX).await;
        // Only what looks like a whole description is trusted to lack something.
        let whole = called.outcome == Outcome::Done && called.output.contains("</resource-agent>");
        let named = |action: &str| {
            called.output.contains(&format!("<action name=\"{action}\""))
                || called.output.contains(&format!("<action name='{action}'"))
        };
        whole.then(|| named("status"))
    }

    async fn run(
        &self,
        device: &FenceDevice,
        plug: Option<&str>,
        action: Action,
        limit: Duration,
        output_max: usize,
    ) -> Called {
        let begun = Instant::now();
        if let Some(instead) = &self.instead {
            let called = timeout(limit, instead.call(device, plug, action)).await;
            return called.unwrap_or_else(|_| Called {
                outcome: Outcome::Late,
                output: String::new(),
                took: begun.elapsed(),
            });
        }
        let program = self.dir.join(&device.agent);
        let started = Command::new(&program)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .current_dir("/")
            // A group of its own, so that all it has started can be killed.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                let why = format!(
                    "{}: {error}; install the package: apt-get install fence-agents",
                    program.display()
                );
                return Called {
                    outcome: Outcome::NotStarted(why.clone()),
                    output: why,
                    took: begun.elapsed(),
                };
            }
        };
        let group = Group(child.id());
        let input = options(device, plug, action);
        let (status, output) = talk(&mut child, &input, begun + limit, output_max).await;
        drop(group);
        // Waits for a process that is killed, so it is short; without it a zombie would stay.
        let _ = timeout(limit, child.wait()).await;
        let outcome = match status {
            None => Outcome::Late,
            Some(Ok(status)) => judge(action, status),
            Some(Err(error)) => Outcome::NotStarted(error.to_string()),
        };
        Called { outcome, output, took: begun.elapsed() }
    }
}

/// Gives the program its options, reads what it prints, and waits for its end. No status: its time
/// was over.
async fn talk(
    child: &mut Child,
    input: &str,
    end: Instant,
    output_max: usize,
) -> (Option<io::Result<ExitStatus>>, String) {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut printed = (Vec::new(), Vec::new());
    let status = {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its options fails by itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let reading = async {
            tokio::join!(
                feed,
                keep_end(stdout, &mut printed.0, output_max),
                keep_end(stderr, &mut printed.1, output_max),
            );
        };
        tokio::pin!(reading);
        let mut read = false;
        let status = loop {
            tokio::select! {
                () = &mut reading, if !read => read = true,
                status = child.wait() => break Some(status),
                () = tokio::time::sleep_until(end) => break None,
            }
        };
        if !read && status.is_some() {
            // Whoever else holds its output open is not waited for.
            let _ = timeout_at(end.min(Instant::now() + OUTPUT_LATE), reading).await;
        }
        status
    };
    let mut output = String::from_utf8_lossy(&printed.0).into_owned();
    output.push_str(&String::from_utf8_lossy(&printed.1));
    (status, output.trim().to_owned())
}

/// Reads to the end, and keeps the last bytes.
async fn keep_end<R: AsyncRead + Unpin>(from: Option<R>, kept: &mut Vec<u8>, most: usize) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..length]);
        if kept.len() > most {
            kept.drain(..kept.len() - most);
        }
    }
}

/// The options as the agents read them: one a line.
fn options(device: &FenceDevice, plug: Option<&str>, action: Action) -> String {
    let mut lines = format!("action={}\n", action.as_str());
    if action == Action::Metadata {
        return lines;
    }
    let plug = plug.map(|plug| ("plug", plug));
    let options = device.options.iter().chain(&device.secrets);
    for (name, value) in options.map(|(name, value)| (name.as_str(), value.as_str())).chain(plug) {
        lines.push_str(name);
        lines.push('=');
        lines.push_str(value);
        lines.push('\n');
    }
    lines
}

fn judge(action: Action, status: ExitStatus) -> Outcome {
    match (action, status.code()) {
        (_, Some(0)) => Outcome::Done,
        (Action::Status, Some(CODE_OFF)) => Outcome::IsOff,
        _ => Outcome::Failed,
    }
}

/// Kills the whole group when it is dropped, also when the caller is.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            let group = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
