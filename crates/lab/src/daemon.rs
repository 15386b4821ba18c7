//! Starting things inside a node, and asking its daemon.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use api::client::Client;
use api::client::Target;
use api::endpoint::Version;

use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::programs::program;
use crate::state::LabState;
use crate::up::Cancel;

/// How long a daemon may take until it answers; it takes a fraction of a second, but five of them
/// start on a machine that builds and tests other things at the same time.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Pause between two tries.
const POLL: Duration = Duration::from_millis(20);

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Lines of the log that are shown when it does not start.
const LOG_LINES: usize = 12;

/// What a node runs, each in a control group of that name.
pub(crate) const DAEMON: &str = "daemon";
const GUARD: &str = "guard";

/// First joins the group that it is given, then becomes the program: whoever is in the group from
/// its first instruction on cannot escape a loss of power. Where the group is gone, nothing starts.
const JOIN: &str = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;

impl Lab {
    /// Arguments that start something in a node's namespaces, in a group of its own there.
    pub(crate) fn inside(&self, node: NodeName, part: &str) -> Result<Vec<String>, LabError> {
        let group = self.node_group(node)?.child(part);
        group.make()?;
        let mut args: Vec<String> = ["-c", JOIN].into_iter().map(str::to_owned).collect();
        args.push(group.dir().display().to_string());
        args.push("nsenter".to_owned());
        for (option, kind) in [("mount", "mnt"), ("uts", "uts"), ("net", "net"), ("time", "time")] {
            let file = self.node_ns(node, kind);
            if kind != "time" || self.holds(&file) {
                args.push(format!("--{option}={}", file.display()));
            }
        }
        args.push("--".to_owned());
        Ok(args)
    }

    /// Starts a node's processes; does not wait for them.
    pub(crate) fn start_daemon(&self, state: &LabState, node: NodeName) -> Result<(), LabError> {
        self.start_role(state, node, GUARD)?;
        self.start_role(state, node, DAEMON)
    }

    /// Starts one of them, in a group of its own, so that one can be hit without the other.
    pub(crate) fn start_role(
        &self,
        state: &LabState,
        node: NodeName,
        role: &str,
    ) -> Result<(), LabError> {
        let log = if role == GUARD { self.guard_log(node) } else { self.log(node) };
        let mut args = self.inside(node, role)?;
        args.extend(["setsid", "--fork"].map(str::to_owned));
        args.push(state.exe.display().to_string());
        args.extend([role, "--config", "/muster/etc/config.toml"].map(str::to_owned));
        let mut command = program("sh", &args);
        self.detached(&mut command, &log)
    }

    /// Starts a program that outlives this one, with its words in a file.
    pub(crate) fn detached(&self, command: &mut Command, log: &Path) -> Result<(), LabError> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(LabError::io("open", log))?;
        let second = file.try_clone().map_err(LabError::io("open", log))?;
        let status = command.stdout(file).stderr(second).status();
        let status = status.map_err(LabError::io("start a program for", log))?;
        if status.success() {
            return Ok(());
        }
        Err(LabError::failed(
            format!("it cannot be started: {}", tail(log)),
            "clear up with 'muster lab down', then try again",
        ))
    }

    /// Waits until a node's daemon answers.
    pub(crate) fn wait_ready(&self, node: NodeName, cancel: &Cancel) -> Result<(), LabError> {
        let group = self.node_group(node)?.child(DAEMON);
        let started = Instant::now();
        while !self.answers(node) {
            cancel.check()?;
            let over = !group.populated();
            if over || started.elapsed() > READY_LIMIT {
                let how = if over { "ended" } else { "does not answer" };
                return Err(LabError::failed(
                    format!("the daemon of {node} {how}:\n{}", tail(&self.log(node))),
                    format!("see all it said: {}", self.log(node).display()),
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Whether a node's daemon answers now.
    pub(crate) fn answers(&self, node: NodeName) -> bool {
        let path = self.socket(node);
        if !path.exists() {
            return false;
        }
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return false;
        };
        runtime.block_on(async {
            let client = Client::new(Target::Unix { path });
            let asked = tokio::time::timeout(ANSWER_LIMIT, client.get::<Version>(&[])).await;
            matches!(asked, Ok(Ok(_)))
        })
    }
}

/// The end of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
