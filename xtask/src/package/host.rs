//! A real Debian under systemd in a virtual machine, and commands in it through its guest agent.
//!
//! Raw QEMU and not our own daemon: what is under test is inside, and must not hold up its own
//! test bench. Nothing of it is on the network: its one adapter leads to a QEMU that lets nothing
//! through.

use std::fs;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use crate::run::cmd;
use crate::run::quiet;

/// From power on to the agent's first answer. Some 40 s of processor time under emulation; the rest
/// is for a machine that does other things as well.
const BOOT_LIMIT: Duration = Duration::from_secs(900);

/// How long the agent may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The same for its first answer: longer, and it is asked anew.
const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// Numbers of questions after a restart begin here: above all that were asked at the start.
const LATER: u64 = 1_000_000;

/// How often the end of a command is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a command in the host said and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) code: i64,
    pub(super) out: String,
    pub(super) err: String,
}

/// The host. Dropping it switches it off.
pub(super) struct Host {
    qemu: Child,
    agent: BufReader<UnixStream>,
    serial: std::path::PathBuf,
}

impl Host {
    /// Boots `image`, which is not changed, with `payload` as its second disk.
    pub(super) fn boot(dir: &Path, image: &Path, payload: &Path) -> Result<Self> {
        let overlay = dir.join("root.qcow2");
        let (base, over) = (image.to_string_lossy(), overlay.to_string_lossy());
        let make = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &over];
        quiet(cmd("qemu-img", make))?;
        let (socket, serial) = (dir.join("agent.sock"), dir.join("serial.log"));
        let _ = fs::remove_file(&socket);
        let mut command = cmd(
            "qemu-system-x86_64",
            // A processor without wide vectors, which are slow to emulate, and without
            // virtualization: the host inside must not try to use what would be emulated twice.
            "-nodefaults -no-user-config -display none -machine q35 -accel tcg,thread=multi \
             -cpu Nehalem -smp 2 -m 2048 -device virtio-rng-pci -device virtio-serial-pci \
             -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 \
             -nic user,model=virtio-net-pci,restrict=on"
                .split_whitespace(),
        );
        command.args([
            "-chardev",
            &format!("socket,id=agent,server=on,wait=off,path={}", socket.display()),
        ]);
        command.args(["-serial", &format!("file:{}", serial.display())]);
        command.args(["-drive", &format!("file={over},format=qcow2,if=virtio,cache=unsafe")]);
        let payload = payload.display();
        command.args(["-drive", &format!("file={payload},format=raw,if=virtio,readonly=on")]);
        let errors = dir.join("qemu.log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        let mut qemu = command.spawn().context("qemu-system-x86_64 cannot be started")?;
        match first_word(&mut qemu, &socket) {
            Ok(agent) => Ok(Self { qemu, agent, serial }),
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                let said = fs::read_to_string(&errors).unwrap_or_default();
                Err(error.context(format!(
                    "the host did not come up; QEMU: {said}; serial:\n{}",
                    tail(&serial)
                )))
            }
        }
    }

    /// Runs a shell script in the host; its exit code is told and not judged.
    pub(super) fn ask(&mut self, script: &str, limit: Duration) -> Result<Said> {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
        let started = self.call("guest-exec", &arguments)?;
        let pid = started["pid"].as_i64().context("guest-exec told no pid")?;
        let until = Instant::now() + limit;
        loop {
            let status = self.call("guest-exec-status", &json!({ "pid": pid }))?;
            if status["exited"] == true {
                // A signal ends a command without a code.
                let code = status["exitcode"].as_i64().unwrap_or(-1);
                return Ok(Said {
                    code,
                    out: text(&status["out-data"]),
                    err: text(&status["err-data"]),
                });
            }
            ensure!(Instant::now() < until, "`{script}` has not ended within {limit:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Runs a shell script that must succeed; what it printed, trimmed.
    pub(super) fn run(&mut self, script: &str, limit: Duration) -> Result<String> {
        let said = self.ask(script, limit)?;
        ensure!(said.code == 0, "`{script}` ended with {}:\n{}{}", said.code, said.out, said.err);
        Ok(said.out.trim().to_owned())
    }

    /// Restarts the host as an administrator does, and waits until it is up again.
    pub(super) fn reboot(&mut self) -> Result<()> {
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(boot, BOOT_LIMIT)?;
        let arguments = json!({ "path": "/bin/systemctl", "arg": ["reboot"] });
        self.call("guest-exec", &arguments)?;
        let until = Instant::now() + 2 * BOOT_LIMIT;
        for number in LATER.. {
            ensure!(Instant::now() < until, "the host did not come back");
            // The agent of before answers until it is ended, and perhaps not this question any more.
            if is_there(&mut self.agent, number)?
                && self.ask(boot, BOOT_LIMIT).is_ok_and(|now| now.out.trim() != before)
            {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("counted to the end")
    }

    /// The end of what the host wrote to its console.
    pub(super) fn console(&self) -> String {
        tail(&self.serial)
    }

    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        send(self.agent.get_mut(), &json!({ "execute": command, "arguments": arguments }))?;
        let mut answer =
            receive(&mut self.agent).with_context(|| format!("{command}: no answer"))?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {error}");
        }
        Ok(answer["return"].take())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Waits for the agent.
fn first_word(qemu: &mut Child, socket: &Path) -> Result<BufReader<UnixStream>> {
    let until = Instant::now() + BOOT_LIMIT;
    let mut agent: Option<BufReader<UnixStream>> = None;
    for number in 1_u64.. {
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU ended: {status}");
        }
        ensure!(Instant::now() < until, "its agent was silent for {BOOT_LIMIT:?}");
        let Some(stream) = &mut agent else {
            agent = UnixStream::connect(socket).ok().map(BufReader::new);
            std::thread::sleep(LOOK_EVERY);
            continue;
        };
        if is_there(stream, number)? {
            return agent.context("it has just answered");
        }
    }
    bail!("counted to the end")
}

/// Whether the agent answers now. What is said before it listens waits in the port, so it is asked
/// with another number each time, and answers to older questions are skipped.
fn is_there(stream: &mut BufReader<UnixStream>, number: u64) -> Result<bool> {
    stream.get_mut().set_read_timeout(Some(SYNC_LIMIT))?;
    send(stream.get_mut(), &json!({ "execute": "guest-sync", "arguments": { "id": number } }))?;
    let mut there = false;
    while let Ok(answer) = receive(stream) {
        if answer["return"] == number {
            there = true;
            break;
        }
    }
    stream.get_mut().set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(there)
}

fn send(agent: &mut UnixStream, message: &Value) -> Result<()> {
    agent.write_all(format!("{message}\n").as_bytes()).context("the agent's port is closed")
}

fn receive(agent: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    ensure!(agent.read_line(&mut line)? > 0, "the agent's port is closed");
    Ok(serde_json::from_str(&line)?)
}

/// Output of a command: base64 of whatever it wrote.
fn text(data: &Value) -> String {
    let bytes = unbase64(data.as_str().unwrap_or_default());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unbase64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(u32::from(letter - b'A')),
        b'a'..=b'z' => Some(u32::from(letter - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(letter - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0_u32);
    for six in text.bytes().filter_map(value) {
        held = held << 6 | six;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}

fn tail(file: &Path) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::unbase64;

    #[test]
    fn base64_of_any_length() {
        for (text, bytes) in
            [("", ""), ("YQ==", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("Cg==", "\n")]
        {
            assert_eq!(unbase64(text), bytes.as_bytes());
        }
    }
}
