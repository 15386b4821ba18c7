//! Raw QEMU with the very machine that Muster starts: its command line, read from the process of a
//! Muster VM, with what came as descriptors put back as paths.
//!
//! ```text
//!   Muster's line                                  raw
//!   -S                                             left out: it runs from the start
//!   -sandbox ...                                   left out: no device, and a shell has none
//!   -add-fd fd=N,...                               left out
//!   -blockdev {... "/dev/fdset/N", read-only}      the same image
//!   -blockdev {... "/dev/fdset/N", writable}       a new thin copy of the same image
//!   -chardev socket,id=X,fd=N,...                  socket,id=X,path=DIR/X,...
//! ```

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
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

use crate::run::cmd;
use crate::run::quiet;
use crate::stop;

/// How long an agent that does not answer is left alone before it is asked again. The question
/// stands in the port until the agent comes, and each one more has to be answered, too: a guest of
/// a herd that boots for minutes would begin with the answers to thousands.
const PING_EVERY: Duration = Duration::from_secs(30);

/// How often a silent agent's socket looks whether the bench was interrupted.
const STOP_EVERY: Duration = Duration::from_millis(500);

/// How often the sockets of a process that has just started are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A machine of Muster's as a command line of its own.
pub(super) struct Line {
    program: String,
    args: Vec<String>,
    /// The image that the first disk is a thin copy of, and its format.
    base: PathBuf,
    base_format: String,
}

impl Line {
    /// Reads the line of a running Muster VM whose disk is a thin copy of an image in `images`.
    pub(super) fn of(pid: u32, images: &Path) -> Result<Self> {
        let words = fs::read(format!("/proc/{pid}/cmdline"))?;
        let mut words = words
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .filter(|word| !word.is_empty());
        let program = words.next().context("the machine has no command line")?;
        let args: Vec<String> = words.collect();
        let base_format = backing(&args).context("the machine has no thin copy as disk")?;
        // Not by the number in the line: QEMU keeps a descriptor of its own in each set.
        let base = fs::read_dir(format!("/proc/{pid}/fd"))?
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .find(|file| file.starts_with(images) && file.is_file())
            .context("the machine has no image open")?;
        Ok(Self { program, args, base, base_format })
    }

    /// Makes the directory of one machine with its own thin copy of the image.
    pub(super) fn prepare(&self, dir: &Path) -> Result<Vec<String>> {
        fs::create_dir_all(dir)?;
        let disk = dir.join("disk.qcow2");
        let (base, disk) = (self.base.to_string_lossy(), disk.to_string_lossy());
        let make = ["create", "-q", "-f", "qcow2", "-F", &self.base_format, "-b", &base, &disk];
        quiet(cmd("qemu-img", make))?;
        translate(&self.args, dir, &self.base)
    }

    /// Starts a machine that was prepared, in a session of its own as Muster's machines are: where
    /// the kernel shares processors out by session (`sched_autogroup_enabled`) and others use them,
    /// too, both sides then have the same share. Costs raw QEMU one `exec`, a millisecond.
    pub(super) fn start(&self, args: &[String]) -> Result<Machine> {
        let child = Command::new("setsid")
            .arg(&self.program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program))?;
        Ok(Machine { child })
    }
}

/// A raw QEMU; killed when it is dropped.
pub(super) struct Machine {
    child: Child,
}

impl Machine {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the machine behind a control socket runs: QEMU answers there once it does, as it
/// waits for nobody.
pub(super) fn runs(socket: &Path, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let stream = connect(socket, end)?;
    stream.set_read_timeout(Some(limit))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    (&stream).write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")?;
    let mut line = String::new();
    while !line.contains("\"running\"") {
        stop::check()?;
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "raw QEMU has ended");
        ensure!(Instant::now() < end, "raw QEMU does not run: {line}");
    }
    Ok(())
}

fn connect(socket: &Path, end: Instant) -> Result<UnixStream> {
    loop {
        stop::check()?;
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > end => {
                bail!("raw QEMU does not listen at {}: {error}", socket.display())
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Asks the agent behind a socket until it answers.
pub(super) fn first_heartbeat(socket: &Path, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let stream = connect(socket, end)?;
    stream.set_read_timeout(Some(STOP_EVERY))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    let mut ask_at = Instant::now();
    while Instant::now() < end {
        stop::check()?;
        if Instant::now() >= ask_at {
            (&stream).write_all(b"{\"execute\":\"guest-ping\"}\n")?;
            ask_at = Instant::now() + PING_EVERY;
        }
        // Out of time: what was read so far stays in the line.
        if reader.read_line(&mut line).is_ok() && !line.is_empty() {
            ensure!(line.contains("\"return\""), "the agent says {line}");
            return Ok(());
        }
    }
    bail!("the guest's agent did not answer within {} s", limit.as_secs())
}

/// Format of the image at the bottom of the first disk.
fn backing(args: &[String]) -> Option<String> {
    let nodes: Vec<Value> =
        values(args, "-blockdev").filter_map(|text| serde_json::from_str(text).ok()).collect();
    let file = nodes.iter().find(|node| node["read-only"] == true && fdset(node).is_some())?;
    let format = nodes.iter().find(|node| node["file"] == file["node-name"])?;
    Some(format["driver"].as_str()?.to_owned())
}

fn values<'a>(args: &'a [String], flag: &'a str) -> impl Iterator<Item = &'a str> {
    args.windows(2).filter(move |two| two[0] == flag).map(|two| two[1].as_str())
}

fn fdset(node: &Value) -> Option<String> {
    Some(node["filename"].as_str()?.strip_prefix("/dev/fdset/")?.to_owned())
}

fn translate(args: &[String], dir: &Path, base: &Path) -> Result<Vec<String>> {
    let mut raw = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-S" => {}
            "-add-fd" | "-sandbox" => drop(words.next()),
            "-chardev" => {
                let old = words.next().context("-chardev without a value")?;
                raw.extend([word.clone(), chardev(old, dir)?]);
            }
            "-blockdev" => {
                let old = words.next().context("-blockdev without a value")?;
                let mut node: Value = serde_json::from_str(old)?;
                if fdset(&node).is_some() {
                    let disk = dir.join("disk.qcow2");
                    let path = if node["read-only"] == true { base } else { &disk };
                    node["filename"] = path.to_string_lossy().into_owned().into();
                }
                raw.extend([word.clone(), node.to_string()]);
            }
            _ => raw.push(word.clone()),
        }
    }
    let descriptor = |word: &String| word.contains("fd=") || word.contains("/dev/fdset/");
    if let Some(word) = raw.iter().find(|word| descriptor(word)) {
        bail!("this part of Muster's machine has no raw form: {word}");
    }
    Ok(raw)
}

fn chardev(old: &str, dir: &Path) -> Result<String> {
    let id = old.split(',').find_map(|part| part.strip_prefix("id="));
    let id = id.with_context(|| format!("a chardev without a name: {old}"))?;
    let path = dir.join(id).to_string_lossy().into_owned();
    let parts = old.split(',').map(|part| match part.strip_prefix("fd=") {
        Some(_) => format!("path={path}"),
        None => part.to_owned(),
    });
    Ok(parts.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::backing;
    use super::translate;

    fn line(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    const MUSTER: &str = concat!(
        "-S -m size=128M -sandbox on,spawn=deny ",
        "-chardev socket,id=agent,fd=12,server=on,wait=off -add-fd fd=20,set=20,opaque=p00 ",
        r#"-blockdev {"driver":"file","node-name":"p00f1","filename":"/dev/fdset/21","read-only":true} "#,
        r#"-blockdev {"driver":"raw","node-name":"p00d1","file":"p00f1","read-only":true} "#,
        r#"-blockdev {"driver":"file","node-name":"p00f0","filename":"/dev/fdset/20","read-only":false}"#,
    );

    #[test]
    fn descriptors_become_paths_and_devices_stay() {
        let raw = translate(&line(MUSTER), Path::new("/t"), Path::new("/base.raw")).unwrap();
        let text = raw.join(" ");
        assert!(text.starts_with(
            "-m size=128M -chardev socket,id=agent,path=/t/agent,server=on,wait=off -blockdev"
        ));
        assert!(text.contains("/t/disk.qcow2") && text.contains("/base.raw"), "{text}");
        assert!(!text.contains("fdset"), "{text}");
    }

    #[test]
    fn the_format_of_the_image_below_the_thin_copy_is_found() {
        assert_eq!(backing(&line(MUSTER)).as_deref(), Some("raw"));
    }

    #[test]
    fn what_cannot_be_translated_is_named() {
        let args = line("-netdev tap,fd=30");
        let error = translate(&args, Path::new("/t"), Path::new("/b")).unwrap_err().to_string();
        assert!(error.contains("fd=30"), "{error}");
    }
}
