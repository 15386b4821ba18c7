//! qemu-img as a child that can do little harm.
//!
//! The image it reads is hostile and has passed our inspectors only. The child gets: its own
//! process group, a network namespace without a network, a Landlock rule set (it reads the system's
//! libraries and its staging directory and writes to `out/` there, nothing else), limits on memory,
//! file size and files, low priority, an unprivileged user where we are root, and a death signal
//! tied to us. It is told every format and every protocol; it never guesses.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use landlock::ABI;
use landlock::Access;
use landlock::AccessFs;
use landlock::AccessNet;
use landlock::Ruleset;
use landlock::RulesetAttr;
use landlock::RulesetCreated;
use landlock::RulesetCreatedAttr;
use landlock::Scope;
use landlock::path_beneath_rules;
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;
use nix::sys::signal::Signal;
use nix::unistd::Gid;
use nix::unistd::Uid;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::process::Command;
use tokio::time::timeout;

use super::cancel::Cancel;
use super::error::ImageError;
use super::stage::wrap;

/// Address space of the child. Tables of a 64 TiB VHDX take half a GiB; libraries and stacks
/// little.
const ADDRESS_SPACE_BYTES_MAX: u64 = 4 << 30;
/// Open files of the child; it needs about ten.
const OPEN_FILES_MAX: u64 = 64;
/// Larger than any nice value matters: well behind guests.
const NICE: i32 = 10;
/// What we keep of the child's last words.
const STDERR_BYTES_MAX: usize = 4096;
/// What we keep of the child's output: `measure` and `check` print a few hundred bytes of JSON.
const STDOUT_BYTES_MAX: usize = 64 << 10;

/// User and group that children run as when the daemon is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxUser {
    /// Numeric user id, not 0.
    pub uid: u32,
    /// Numeric group id, not 0.
    pub gid: u32,
}

/// How qemu-img is run.
#[derive(Debug, Clone)]
pub(super) struct QemuImg {
    pub(super) program: PathBuf,
    pub(super) user: Option<SandboxUser>,
    pub(super) stall: Duration,
}

/// One run.
pub(super) struct Run<'a> {
    /// What it is for, for errors: "could not {action}".
    pub(super) action: &'static str,
    pub(super) args: Vec<OsString>,
    /// Working directory; file names in `args` are relative to it, so no name can be a protocol.
    pub(super) dir: &'a Path,
    /// The only directory, below `dir`, that it may write to.
    pub(super) writable: Option<&'a str>,
    /// Largest file it may write.
    pub(super) file_bytes_max: u64,
    /// Exit codes besides 0 that are an answer, not a failure.
    pub(super) also_accepted: &'a [i32],
}

/// What a run printed.
pub(super) struct Output {
    pub(super) code: i32,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl QemuImg {
    /// Runs the program to its end; `progress` gets percents as it prints them (`-p`).
    ///
    /// On cancel the child is killed and reaped before this returns.
    pub(super) async fn run(
        &self,
        run: Run<'_>,
        cancel: &mut Cancel,
        mut progress: impl FnMut(f64),
    ) -> Result<Output, ImageError> {
        let mut child = self.spawn(&run)?;
        let done = self.follow(&run, &mut child, cancel, &mut progress).await;
        if done.is_err() {
            // Whatever the reason: nothing of ours may be written to after we return.
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
        let output = done?;
        if output.code == 0 || run.also_accepted.contains(&output.code) {
            return Ok(output);
        }
        if output.stderr.contains("No space left on device") {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(ImageError::io(run.action, run.dir, full));
        }
        let stderr = match output.stderr.trim() {
            "" => format!("it ended with code {}", output.code),
            words => words.trim_start_matches("qemu-img: ").to_owned(),
        };
        Err(ImageError::Tool { action: run.action, stderr })
    }

    async fn follow(
        &self,
        run: &Run<'_>,
        child: &mut Child,
        cancel: &mut Cancel,
        progress: &mut impl FnMut(f64),
    ) -> Result<Output, ImageError> {
        let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
        let (mut stdout, mut stderr) = (Tail::new(STDOUT_BYTES_MAX), Tail::new(STDERR_BYTES_MAX));
        let mut written = 0;
        while out.is_some() || err.is_some() {
            let step = async {
                tokio::select! {
                    more = read(&mut out) => stdout.push(more),
                    more = read(&mut err) => stderr.push(more),
                }
            };
            match cancel.guard(timeout(self.stall, step)).await? {
                Ok(()) => {
                    if let Some(percent) = last_percent(&stdout.bytes) {
                        progress(percent);
                    }
                }
                Err(_) => {
                    // Silent, but perhaps one percent of a huge disk takes longer than that.
                    let now = written_bytes(run);
                    if now == written {
                        return Err(ImageError::Stalled { seconds: self.stall.as_secs() });
                    }
                    written = now;
                }
            }
        }
        let status = cancel
            .guard(timeout(self.stall, child.wait()))
            .await?
            .map_err(|_| ImageError::Stalled { seconds: self.stall.as_secs() })?
            .map_err(wrap("waiting for", &self.program))?;
        Ok(Output {
            code: status.code().unwrap_or(-1),
            stdout: stdout.bytes,
            stderr: String::from_utf8_lossy(&stderr.bytes).into_owned(),
        })
    }

    fn spawn(&self, run: &Run<'_>) -> Result<Child, ImageError> {
        let mut command = Command::new(&self.program);
        command
            .args(&run.args)
            .current_dir(run.dir)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let writable = run.writable.map(|name| run.dir.join(name));
        let rules =
            rules(&self.program, run.dir, writable.as_deref()).map_err(|error| ImageError::Io {
                action: "preparing the sandbox for",
                path: self.program.clone(),
                source: io::Error::other(error),
            })?;
        confine(&mut command, rules, self.user, run.file_bytes_max);
        command.spawn().map_err(|source| ImageError::ToolMissing {
            program: self.program.display().to_string(),
            source,
        })
    }
}

/// Has every restriction applied in the child, between fork and exec.
#[allow(unsafe_code, reason = "restrictions must be applied in the child, by the child")]
fn confine(
    command: &mut Command,
    rules: RulesetCreated,
    user: Option<SandboxUser>,
    file_bytes_max: u64,
) {
    let root = Uid::effective().is_root();
    let parent = nix::unistd::getpid();
    let mut rules = Some(rules);
    let restrict = move || -> io::Result<()> {
        if root {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        }
        limit(Resource::RLIMIT_AS, ADDRESS_SPACE_BYTES_MAX)?;
        limit(Resource::RLIMIT_FSIZE, file_bytes_max)?;
        limit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX)?;
        limit(Resource::RLIMIT_CORE, 0)?;
        rustix::process::nice(NICE)?;
        if let Some(rules) = rules.take() {
            rules.restrict_self().map_err(|_| io::ErrorKind::PermissionDenied)?;
        }
        if let (true, Some(user)) = (root, user) {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            nix::unistd::setgroups(&[])?;
            nix::unistd::setresgid(gid, gid, gid)?;
            nix::unistd::setresuid(uid, uid, uid)?;
        }
        // After the change of user, which clears it. And the parent may have died before.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes locks (the rule
    // set was built before the fork and is only entered here).
    unsafe { command.pre_exec(restrict) };
}

fn limit(resource: Resource, value: u64) -> io::Result<()> {
    Ok(setrlimit(resource, value, value)?)
}

fn rules(
    program: &Path,
    dir: &Path,
    writable: Option<&Path>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    let abi = ABI::V5;
    let read = AccessFs::from_read(abi);
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];
    // Best effort by design of the crate: a kernel without Landlock still has the other walls.
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rules(path_beneath_rules(system, read))?
        .add_rules(path_beneath_rules([program], read))?
        .add_rules(path_beneath_rules([dir], look))?
        .add_rules(path_beneath_rules(["/dev/null", "/dev/urandom"], look))?;
    let writes = look | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::Truncate;
    rules.add_rules(path_beneath_rules(writable, writes))
}

/// Bytes allocated so far by the files that the child writes.
fn written_bytes(run: &Run<'_>) -> u64 {
    let Some(name) = run.writable else { return 0 };
    let Ok(entries) = std::fs::read_dir(run.dir.join(name)) else { return 0 };
    entries.flatten().filter_map(|entry| super::space::allocated_bytes(&entry.path()).ok()).sum()
}

/// The last `limit` bytes of a stream.
struct Tail {
    bytes: Vec<u8>,
    limit: usize,
}

impl Tail {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    fn push(&mut self, more: Vec<u8>) {
        self.bytes.extend_from_slice(&more);
        let excess = self.bytes.len().saturating_sub(self.limit);
        self.bytes.drain(..excess);
    }
}

/// Reads a piece; at the end of the stream the slot becomes empty and is not asked again.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(open) = stream else { return std::future::pending().await };
    let mut buf = vec![0; 4096];
    match open.read(&mut buf).await {
        Ok(got @ 1..) => {
            buf.truncate(got);
            buf
        }
        Ok(0) | Err(_) => {
            *stream = None;
            Vec::new()
        }
    }
}

/// The newest of `    (12.34/100%)\r`.
fn last_percent(bytes: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(&bytes[bytes.len().saturating_sub(64)..]).ok()?;
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let percent: f64 = number.trim().parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}
