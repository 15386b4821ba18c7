//! A daemon of the bench's own, with a state that is gone when the bench ends.
//!
//! The data directory is below `target/bench`, on the disk that is measured; the run directory is
//! in the system's temporary directory, since the path of a socket may have 107 bytes only. The
//! daemon is in a process group of its own: Ctrl-C reaches the bench alone, which then turns the
//! machines off before it ends the daemon that knows them.

use std::fs;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use super::http::Client;
use crate::run::quiet;
use crate::run::target;
use crate::stop;

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long it may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How often it is asked whether it answers yet: well below what is measured.
const KNOCK_EVERY: Duration = Duration::from_millis(2);

/// How long all machines together may take to be turned off.
const OFF_LIMIT: Duration = Duration::from_secs(120);

/// Which machines it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// Machines that only pretend.
    Fake,
    /// Real ones.
    Qemu,
}

pub(super) struct Daemon {
    binary: PathBuf,
    data: PathBuf,
    run: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Makes the directories and the configuration; nothing runs yet.
    pub(super) fn new(binary: &Path, engine: Engine) -> Result<Self> {
        Self::configured(binary, engine, "")
    }

    /// The same with a TLS port, on the loop only, for browsers.
    pub(super) fn with_tls(binary: &Path, engine: Engine) -> Result<Self> {
        Self::configured(binary, engine, "tls_listen = \"127.0.0.1:0\"\n")
    }

    fn configured(binary: &Path, engine: Engine, more: &str) -> Result<Self> {
        let id = std::process::id();
        let data = target().join("bench").join(format!("data-{id}"));
        let run = std::env::temp_dir().join(format!("muster-bench-{id}"));
        for dir in [&data, &run] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let engine = match engine {
            Engine::Fake => "fake",
            Engine::Qemu => "qemu",
        };
        let text = format!(
            "data_dir = {:?}\nrun_dir = {:?}\nengine = \"{engine}\"\nnetworking = false\n\
             memory_reserve_mib = 0\n{more}",
            data.join("data"),
            run.join("run"),
        );
        fs::write(data.join("config.toml"), text)?;
        Ok(Self { binary: binary.to_owned(), data, run, child: None })
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    pub(super) fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("no daemon runs")?.id())
    }

    /// Where it keeps images.
    pub(super) fn images(&self) -> PathBuf {
        self.data.join("data/images")
    }

    /// A file of the bench's own, gone with the daemon's data.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    /// What the program's command line prints.
    pub(super) fn muster(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.socket()).args(args).stdin(Stdio::null());
        quiet(command)
    }

    /// Starts the daemon; the time from then until it has answered with the list of VMs, and how
    /// many they are.
    pub(super) fn start(&mut self) -> Result<(Duration, usize)> {
        let log = File::options().create(true).append(true).open(self.log())?;
        // Of a daemon that was killed: connecting to it would only fail.
        let _ = fs::remove_file(self.socket());
        let began = Instant::now();
        let child = Command::new(&self.binary)
            .arg("daemon")
            .arg("--config")
            .arg(self.data.join("config.toml"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let child = self.child.insert(child);
        while !self.run.join("run/api.sock").exists() {
            stop::check()?;
            if let Some(status) = child.try_wait()? {
                bail!("the daemon has ended ({status}):\n{}", self.log_tail());
            }
            ensure!(began.elapsed() < START_LIMIT, "no socket yet:\n{}", self.log_tail());
            std::thread::sleep(KNOCK_EVERY);
        }
        let answer = self.client().ask("GET", "/v1/vms", None)?;
        let took = began.elapsed();
        ensure!(answer.status == 200, "the list of VMs: {}", answer.status);
        let list: Vec<Value> = serde_json::from_slice(&answer.body)?;
        Ok((took, list.len()))
    }

    /// Kills the daemon the hard way.
    pub(super) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("no daemon runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits until no operation is under way.
    pub(super) fn calm(&self, limit: Duration) -> Result<()> {
        let mut client = self.client();
        stop::until("all operations have ended", limit, || {
            Ok((client.get("/v1/ops")?.as_array().is_some_and(Vec::is_empty)).then_some(()))
        })
    }

    pub(super) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn socket(&self) -> PathBuf {
        self.run.join("run/api.sock")
    }

    fn log(&self) -> PathBuf {
        self.data.join("daemon.log")
    }

    /// Turns all machines off: they would outlive the daemon. Works without looking at Ctrl-C, as
    /// it is what Ctrl-C leads to.
    fn turn_off(&self) -> Result<()> {
        let muster = |args: &[&str]| -> Result<Value> {
            let output = Command::new(&self.binary)
                .args(["--json", "--socket"])
                .arg(self.socket())
                .args(args)
                .stdin(Stdio::null())
                .process_group(0)
                .output()?;
            Ok(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!([])))
        };
        let end = Instant::now() + OFF_LIMIT;
        loop {
            let list = muster(&["vm", "list"])?;
            let on: Vec<_> = list
                .as_array()
                .into_iter()
                .flatten()
                .filter(|vm| vm["phase"] != "off" && vm["phase"] != "creating")
                .filter_map(|vm| vm["name"].as_str())
                .collect();
            if on.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{} machines do not go off", on.len());
            for name in on {
                muster(&["vm", "off", name, "--yes"])?;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let fake = fs::read_to_string(self.data.join("config.toml"))
            .is_ok_and(|text| text.contains("\"fake\""));
        if self.child.is_some()
            && !fake
            && let Err(error) = self.turn_off()
        {
            eprintln!("machines may be left (ps -C qemu-system-x86_64): {error:#}");
        }
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let end = Instant::now() + END_LIMIT;
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(KNOCK_EVERY);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        for dir in [&self.data, &self.run] {
            if let Err(error) = fs::remove_dir_all(dir) {
                eprintln!("{} is left: {error}", dir.display());
            }
        }
    }
}
