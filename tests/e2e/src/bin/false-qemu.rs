//! A program in QEMU's place that does not behave like QEMU.
//!
//! Asked for its version and machine types it answers by the name of its file, so that a copy of it
//! can be an old QEMU, one that never answers, or one that never stops. Started as a machine
//! it takes the name of the machine for an order: what stands before the first `-` says how it
//! treats whoever connects to its control socket (see [`behave`]).
//!
//! It runs in the jail: no files, no processes, only the descriptors it was given.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \
                        \"micro\": 2}, \"package\": \"\"}, \"capabilities\": []}}\r\n";

/// How often whoever starts a machine asks whether it runs, and a little more: after that it runs.
const LOOKS: u32 = 6;

/// What a QEMU of today says of its machine types, as far as anybody looks.
const MACHINES: &str = "Supported machines are:\n\
                        pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)\n\
                        pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996)\n";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--version") => version(),
        Some("-machine") => print!("{MACHINES}"),
        _ => machine(&args),
    }
}

fn version() {
    let program = std::env::current_exe().unwrap_or_default();
    match program.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "old" => println!("QEMU emulator version 7.2.11 (Debian 1:7.2+dfsg-7)"),
        "mute" => rest(),
        "endless" => flood(&mut std::io::stdout(), b"version "),
        "nonsense" => println!("\u{1b}[2Jversion of something"),
        _ => println!("QEMU emulator version 10.0.2 (false)"),
    }
}

fn machine(args: &[String]) {
    let name = after(args, "-name").and_then(|text| text.strip_prefix("guest=")?.split(',').next());
    let order = name.and_then(|name| name.split('-').next()).unwrap_or_default();
    let qmp = args.iter().find_map(|arg| arg.strip_prefix("socket,id=qmp,fd=")?.split(',').next());
    let Some(fd) = qmp.and_then(|fd| fd.parse().ok()) else { return };
    if order == "chatter" {
        flood(&mut std::io::stdout(), b"false-qemu: warning: nothing is wrong\n");
    }
    // Each connection in turn, as QEMU does it.
    for stream in listener(fd).incoming().flatten() {
        // Whoever has gone has gone.
        let _ = behave(order, stream);
    }
}

#[allow(unsafe_code, reason = "descriptors come by number, as QEMU's command line says")]
fn listener(fd: i32) -> UnixListener {
    // SAFETY: the parent has put the listening socket there for us alone.
    unsafe { UnixListener::from_raw_fd(fd) }
}

fn behave(order: &str, mut stream: UnixStream) -> std::io::Result<()> {
    match order {
        // Says nothing, and stays.
        "mute" => rest(),
        // Begins a greeting and does not end it.
        "half" => {
            stream.write_all(&GREETING.as_bytes()[..20])?;
            rest();
        }
        // Another protocol.
        "nonsense" => {
            stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n\0\xff\xfe{]\n")?;
            rest();
        }
        // One line without an end.
        "endless" => flood(&mut stream, b"{\"QMP\": ["),
        // Goes away as soon as somebody comes.
        "gone" => std::process::exit(3),
        // Understands everything and does nothing.
        "parrot" => answer(stream, |_, _| "{}".to_owned())?,
        // Behaves until the machine runs; then every answer is to another question.
        "turncoat" => answer(stream, |command, looks| match command {
            "query-status" if looks > LOOKS => "0}, \"id\": 999999999, \"x\": {".to_owned(),
            _ => honest(command),
        })?,
        // Behaves, and tells of more than anybody can read.
        "gossip" => {
            let mut shout = stream.try_clone()?;
            answer(stream, |command, looks| {
                if looks > LOOKS && command == "query-status" {
                    let event = "{\"event\": \"RESET\", \"data\": {\"guest\": true}, \
                                 \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n";
                    for _ in 0..200_000 {
                        if shout.write_all(event.as_bytes()).is_err() {
                            break;
                        }
                    }
                }
                honest(command)
            })?;
        }
        _ => answer(stream, |command, _| honest(command))?,
    }
    Ok(())
}

/// What a machine that runs would say, as far as anybody looks.
fn honest(command: &str) -> String {
    match command {
        "query-status" => "{\"status\": \"running\", \"running\": true}",
        "query-hotpluggable-cpus" | "qom-list" | "query-fdsets" => "[]",
        _ => "{}",
    }
    .to_owned()
}

/// Greets and answers each command with what `returned` makes of it, given how often it was asked
/// whether the machine runs.
fn answer(
    mut stream: UnixStream,
    mut returned: impl FnMut(&str, u32) -> String,
) -> std::io::Result<()> {
    stream.write_all(GREETING.as_bytes())?;
    let mut looks = 0;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let Ok(request) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let command = request["execute"].as_str().unwrap_or_default();
        looks += u32::from(command == "query-status");
        let said = returned(command, looks);
        stream.write_all(
            format!("{{\"return\": {said}, \"id\": {}}}\r\n", request["id"]).as_bytes(),
        )?;
        if command == "quit" {
            std::process::exit(0);
        }
    }
    Ok(())
}

/// Writes the same until nobody takes it, then stays.
fn flood(to: &mut impl Write, words: &[u8]) {
    let block = words.repeat(8192);
    while to.write_all(&block).is_ok() {}
    rest();
}

/// For ever: whoever waits must find out by themselves.
fn rest() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn after<'a>(args: &'a [String], word: &str) -> Option<&'a str> {
    let at = args.iter().position(|arg| arg == word)?;
    args.get(at + 1).map(String::as_str)
}
