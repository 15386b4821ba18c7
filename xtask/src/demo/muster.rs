//! The demo's own daemon, and the command line against it.

use std::fs;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;

use crate::run::cmd;
use crate::run::quiet;
use crate::run::show;
use crate::stop;

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) struct Muster {
    dir: PathBuf,
    binary: PathBuf,
    daemon: Mutex<Option<Child>>,
}

impl Muster {
    pub(super) fn new(dir: &Path, binary: PathBuf) -> Self {
        Self { dir: dir.to_owned(), binary, daemon: Mutex::new(None) }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("run/api.sock")
    }

    pub(super) fn binary_dir(&self) -> PathBuf {
        self.binary.parent().map_or_else(PathBuf::new, Path::to_owned)
    }

    /// Starts the daemon and waits until it answers.
    pub(super) fn start_daemon(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.binary);
        command
            .arg("daemon")
            // For a browser on this machine.
            .args(["--listen", "127.0.0.1:0"])
            .args(["--data-dir".as_ref(), self.dir.join("data").as_os_str()])
            .args(["--run-dir".as_ref(), self.dir.join("run").as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which ends the machines before their daemon.
            .process_group(0);
        let child = command.spawn().context("the daemon cannot be started")?;
        fs::write(self.pid_file(), child.id().to_string())?;
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let until = Instant::now() + START_LIMIT;
        while quiet(self.command(&["vm", "list"])).is_err() {
            if Instant::now() > until {
                bail!("the daemon does not answer; its log is {}", self.log().display());
            }
            stop::pass(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Kills the daemon the hard way.
    pub(super) fn kill_daemon(&self) -> Result<()> {
        let child = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut child = child.context("no daemon of this demo runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Runs a command for people: what it prints is shown.
    pub(super) fn run(&self, args: &[&str]) -> Result<()> {
        println!("  $ muster {}", args.join(" "));
        show(self.command(args))
    }

    /// Runs a command for the program.
    pub(super) fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(args);
        let said = quiet(self.command(&all))?;
        serde_json::from_str(&said)
            .with_context(|| format!("muster {} said no JSON", all.join(" ")))
    }

    /// Waits until a VM is as wanted.
    pub(super) fn until(
        &self,
        vm: &str,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let until = Instant::now() + limit;
        loop {
            let seen = self.json(&["vm", "show", vm])?;
            if wanted(&seen) {
                return Ok(seen);
            }
            if Instant::now() > until {
                bail!("{vm}: {what} was not seen within {limit:?}; the last look: {seen:#}");
            }
            stop::pass(LOOK_EVERY)?;
        }
    }

    /// Ends the VMs and the daemon of this or an earlier demo. Fine if there are none.
    pub(super) fn stop_all(&self) -> Result<()> {
        let Ok(pid) = fs::read_to_string(self.pid_file()) else { return Ok(()) };
        let pid = pid.trim().to_owned();
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&words).contains(&*self.dir.to_string_lossy());
        if ours {
            let program = fs::read_link(format!("/proc/{pid}/exe"))?;
            let old = Self::new(&self.dir, program);
            for vm in old.json(&["vm", "list"])?.as_array().into_iter().flatten() {
                let name = vm["name"].as_str().unwrap_or_default();
                if vm["phase"] != "off" {
                    quiet(old.command(&["vm", "off", name, "--yes"]))?;
                }
            }
            for network in old.json(&["network", "list"])?.as_array().into_iter().flatten() {
                for vm in old.json(&["vm", "list"])?.as_array().into_iter().flatten() {
                    let name = vm["name"].as_str().unwrap_or_default();
                    quiet(old.command(&["vm", "delete", name, "--yes"]))?;
                    quiet(old.command(&["vm", "delete", name, "--purge", "--yes"]))?;
                }
                let name = network["name"].as_str().unwrap_or_default();
                quiet(old.command(&["network", "delete", name]))?;
            }
            quiet(cmd("kill", ["-TERM", &pid]))?;
            let until = Instant::now() + START_LIMIT;
            while Path::new(&format!("/proc/{pid}/cmdline")).exists() && Instant::now() < until {
                if let Some(child) =
                    self.daemon.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
                {
                    // Our own child has to be waited for, or it stays in the process list.
                    let _ = child.try_wait();
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        let _ = fs::remove_file(self.pid_file());
        Ok(())
    }

    pub(super) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.socket()).args(args);
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("daemon.pid")
    }
}
