//! A network namespace for one daemon: its bridges, taps and rules never meet the machine's own.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rustix::thread::LinkNameSpaceType;
use rustix::thread::move_into_link_name_space;

/// A network namespace; removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one, with only loopback in it.
    pub fn new(name: String) -> Self {
        let this = Self { name };
        run(Command::new("ip").args(["netns", "add", &this.name]));
        run(this.command("ip").args(["link", "set", "lo", "up"]));
        this
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One that several hosts of this test process share.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn shared(name: &str) -> Arc<Self> {
        Arc::new(Self::new(format!("m-{}-{name}", std::process::id())))
    }

    /// The file that holds it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A program inside. Unlike `ip netns exec` this leaves `/sys` as it is.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).args(["--", program]);
        command
    }

    /// Whether a program inside ends well.
    pub fn says_yes(&self, program: &str, args: &[&str]) -> bool {
        self.command(program).args(args).output().is_ok_and(|it| it.status.success())
    }

    /// Names of the network devices inside, loopback excepted.
    pub fn links(&self) -> Vec<String> {
        let output = self.command("ip").args(["-o", "link", "show"]).output();
        let text = output.map(|it| it.stdout).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .filter_map(|name| name.split('@').next())
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .collect()
    }

    /// Runs a command that must end well inside: the words are split at spaces.
    ///
    /// # Panics
    /// If it does not.
    pub fn sh(&self, line: &str) {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        run(self.command(program).args(words));
    }

    /// Runs a function on a thread inside, for sockets.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = File::open(self.path()).expect("the namespace is there");
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            work()
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Runs a command that must end well.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said} (these tests need root)");
}
