//! The tutorial, word for word: its commands are typed as they stand there, in their order, on a
//! host with nothing of Muster on it, and what it shows is compared with what is printed.
//!
//! What the test does beyond typing:
//! - `cargo ...` is left out: the test run has installed and built these things already;
//! - `ADDRESS` is the guest's address, and `ssh` is told not to ask about unknown hosts, and is
//!   tried again while the guest still boots;
//! - where the text says to wait, it waits;
//! - what the text ends with Ctrl-C is interrupted after a while;
//! - the daemon is told of other directories than the usual ones, by its environment.
//!
//! Everything runs in a network and a process namespace of its own: `kill -9 $(pidof muster)` ends
//! this daemon and no other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fmt::Write;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;
use std::time::Duration;

use e2e::Host;
use e2e::Options;
use e2e::eventually;
use e2e::guest_image;
use e2e::muster_bin;

/// How long the whole of it may take: a real Debian boots under emulation on a busy machine.
const LIMIT: Duration = Duration::from_secs(1700);

/// Words of the shown output that are another host's.
const FOREIGN: [&str; 1] = ["vmhost"];

/// The shell's part: what is typed is evaluated in one shell, between marks.
const DRIVER: &str = r#"
cd "$PLACE"
await() { for try in $(seq 1200); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; return 1; }
address() { muster vm list --json | grep -o '"addresses":\["[0-9.]*"' | grep -o '[0-9][0-9.]*'; }
type_line() {
    printf '\n@@@ %s\n' "$1"
    case $1 in
    *'&') eval "$1" >>daemon.log 2>&1; await muster whoami ;;
    *Ctrl-C*) timeout --foreground -s INT 10 bash -c "$1" </dev/null; [ $? = 130 ] ;;
    ssh\ *) await ssh_once "$1"; eval "$1" </dev/null ;;
    *) eval "$1" </dev/null ;;
    esac
    printf '\n@@= %s\n' $?
}
ssh_once() { eval "$1" </dev/null; }
boot_ends() { muster vm list --json | grep -q '"heartbeat":"ok"' && [ -n "$(address)" ]; }
"#;

/// A block of the text.
enum Block {
    Commands(Vec<String>),
    Output(Vec<String>),
}

fn text() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operate/tutorial.md");
    std::fs::read_to_string(path).unwrap()
}

/// The blocks of commands (`sh`) and of output (`text`), in their order.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let body: Vec<String> =
            lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect();
        match kind {
            "sh" => blocks.push(Block::Commands(whole_lines(&body))),
            "text" => blocks.push(Block::Output(body)),
            other => panic!("a block of {other:?} is neither commands nor output"),
        }
    }
    blocks
}

/// Commands, with those that go over several lines joined.
fn whole_lines(body: &[String]) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    let mut open = false;
    for line in body.iter().filter(|line| !line.trim().is_empty()) {
        let (text, goes_on) = match line.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line.as_str(), false),
        };
        match whole.last_mut().filter(|_| open) {
            Some(last) => last.push_str(text.trim_start()),
            None => whole.push(text.to_owned()),
        }
        open = goes_on;
    }
    whole
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The script that types everything.
fn script(blocks: &[Block]) -> String {
    let mut script = DRIVER.to_owned();
    let mut waited = false;
    for block in blocks {
        let Block::Commands(commands) = block else { continue };
        for command in commands.iter().filter(|command| !command.starts_with("cargo ")) {
            let typed = command.replace("@ADDRESS", "@$(address)");
            writeln!(script, "type_line {}", quoted(&typed)).unwrap();
            if command.starts_with("muster vm list") && !waited {
                waited = true;
                // "Wait until the list shows the heartbeat ok and an address."
                writeln!(script, "await boot_ends\ntype_line {}", quoted(&typed)).unwrap();
            }
        }
    }
    script
}

/// What was printed between the marks: each command with its output, and whether it ended well.
fn typed(log: &str) -> Vec<(String, String, bool)> {
    log.split("\n@@@ ")
        .skip(1)
        .map(|part| {
            let (command, rest) = part.split_once('\n').unwrap_or((part, ""));
            let (output, code) = rest.rsplit_once("\n@@= ").unwrap_or((rest, "cut off"));
            (command.to_owned(), output.to_owned(), code.trim() == "0")
        })
        .collect()
}

/// Whether a printed line says what the shown one says: its words in their order, numbers and
/// names of other hosts left out.
fn says(printed: &str, shown: &str) -> bool {
    let mut words = printed.split_whitespace();
    shown
        .split_whitespace()
        .filter(|word| !FOREIGN.contains(word) && word.starts_with(|it: char| it.is_alphabetic()))
        .all(|wanted| words.any(|word| word == wanted))
}

/// What a person has in the directory of the source tree.
fn lay_out(place: &Path) {
    std::fs::create_dir_all(place.join("target/release")).unwrap();
    std::fs::create_dir_all(place.join("bin")).unwrap();
    std::os::unix::fs::symlink(muster_bin(), place.join("target/release/muster")).unwrap();
    let image = guest_image("debian12.qcow2");
    std::os::unix::fs::symlink(image.parent().unwrap(), place.join("target/guests")).unwrap();
    let ssh = "#!/bin/sh\nexec /usr/bin/ssh -o StrictHostKeyChecking=no -o BatchMode=yes \
               -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=60 \"$@\"\n";
    std::fs::write(place.join("bin/ssh"), ssh).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.join("bin/ssh"), mode).unwrap();
}

/// Whoever types; everything in the process namespace ends with it.
struct Typist(Child);

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_tutorial_works_word_for_word() {
    let blocks = blocks(&text());
    let host = Host::prepare(&Options::default());
    let place = host.file("source");
    lay_out(&place);
    std::fs::write(place.join("script"), script(&blocks)).unwrap();
    let log_path = place.join("log");
    let log = std::fs::File::create(&log_path).unwrap();
    let mut command = host.netns().command("unshare");
    command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "bash"]);
    command.arg(place.join("script")).env("PLACE", &place);
    command.env("MUSTER_CONFIG", host.config_path()).env("MUSTER_SOCKET", host.socket());
    command.env_remove("MUSTER_HOST").env_remove("MUSTER_TOKEN");
    let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let mut typist = Typist(command.spawn().unwrap());
    eventually("the tutorial ends", LIMIT, async || typist.0.try_wait().unwrap()).await;

    let log = std::fs::read_to_string(log_path).unwrap();
    println!("{log}");
    let daemon = std::fs::read_to_string(place.join("daemon.log")).unwrap_or_default();
    let typed = typed(&log);
    for (command, output, ended_well) in &typed {
        assert!(ended_well, "{command}\n{output}\nthe daemon:\n{daemon}");
    }
    // Each shown line was printed by a command of the block before it.
    let mut before: &[String] = &[];
    let mut shown = 0;
    for block in &blocks {
        let lines = match block {
            Block::Commands(commands) => {
                before = commands;
                continue;
            }
            Block::Output(lines) => lines,
        };
        let bare = |command: &str| command.split(" #").next().unwrap_or_default().trim().to_owned();
        let printed: Vec<&str> = typed
            .iter()
            .filter(|(command, ..)| before.iter().any(|it| bare(it) == bare(command)))
            .flat_map(|(_, output, _)| output.lines())
            .collect();
        for line in lines.iter().filter(|line| !matches!(line.trim(), "" | "...")) {
            let found = printed.iter().any(|printed| says(printed, line));
            assert!(found, "the tutorial shows {line:?}, printed was:\n{}", printed.join("\n"));
            shown += 1;
        }
    }
    assert!(shown > 10, "the tutorial shows next to nothing");
    assert!(host.traces().processes.is_empty(), "{:?}", host.traces());
}

#[test]
fn a_shown_line_is_compared_by_its_words() {
    assert!(says("web-1  running  ok  1  0 %  10.77.0.2  h7  -", "web-1 running ok 1 7 % vmhost"));
    assert!(!says("web-1  off  ok", "web-1 running ok"));
    let text = "a\n```sh\none \\\n    two   # why\n```\n```text\nthree\n```\n";
    let blocks = blocks(text);
    assert!(matches!(&blocks[0], Block::Commands(it) if it == &["one two   # why"]));
    assert!(matches!(&blocks[1], Block::Output(it) if it == &["three"]));
}
