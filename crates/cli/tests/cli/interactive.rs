//! Console and live view, with a pipe and on a terminal that `script` (bsdutils) makes.

use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use crate::fake::Answer;
use crate::fake::DEADLINE;
use crate::fake::Fake;
use crate::program::command;
use crate::program::run;
use crate::program::start;

/// A shell on a terminal of its own that runs the program between two looks at the terminal.
struct Terminal {
    child: Child,
    seen: Arc<Mutex<String>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    fn new(fake: &Fake, line: &str) -> Self {
        let muster = command(fake);
        let program = muster.get_program().to_str().unwrap();
        let shell = format!(
            "trap : INT; stty rows 30 cols 120; before=$(stty -g); \
             sh -c 'echo $$ > pid; exec {program} {line}'; code=$?; \
             after=$(stty -g); [ \"$before\" = \"$after\" ] && echo terminal=same \
             || echo terminal=changed; echo code=$code"
        );
        let mut script = Command::new("script");
        script.args(["-qfec", &shell, "/dev/null"]);
        script.env("MUSTER_SOCKET", fake.socket()).env("TERM", "xterm").env("SHELL", "/bin/sh");
        script.env_remove("NO_COLOR").current_dir(fake.folder.path());
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = script.spawn().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let mut stdout = child.stdout.take().unwrap();
        let sink = seen.clone();
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count) = stdout.read(&mut chunk) {
                if count == 0 {
                    return;
                }
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        Self { child, seen, reader }
    }

    fn wait_for(&self, text: &str) {
        let begun = Instant::now();
        while !self.seen.lock().unwrap().contains(text) {
            assert!(begun.elapsed() < DEADLINE, "no {text:?} in {}", self.seen.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Sends the program a signal.
    fn signal(&self, fake: &Fake, name: &str) {
        let pid = std::fs::read_to_string(fake.folder.path().join("pid")).unwrap();
        assert!(Command::new("kill").args([name, pid.trim()]).status().unwrap().success());
    }

    /// Everything that was seen, after the program has ended with that code and put the terminal
    /// back.
    fn end(mut self, code: i32) -> String {
        self.wait_for("code=");
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        self.reader.join().unwrap();
        let seen = self.seen.lock().unwrap().clone();
        assert!(seen.contains("terminal=same"), "{seen}");
        assert!(seen.contains(&format!("code={code}")), "{seen}");
        seen
    }
}

#[test]
fn a_pipe_is_sent_to_the_console_and_its_answer_printed() {
    let fake = Fake::new();
    // The escape has no meaning in a pipe: what is sent is sent as it is.
    let ran = start(&fake, &["vm", "console", "web-1", "--linger", "1"], "uptime\u{1d}\n").end();
    assert_eq!((ran.code, &*ran.stdout), (0, "hello\r\nuptime\u{1d}\n"), "{}", ran.stderr);
}

#[test]
fn a_console_that_the_daemon_closes_ends() {
    let fake = Fake::new();
    fake.on("VmSerial", [Answer::Close("bye\r\n")]);
    let ran = start(&fake, &["vm", "console", "web-1", "--no-input"], "").end();
    assert_eq!((ran.code, &*ran.stdout), (0, "bye\r\n"));
    assert!(ran.stderr.contains("closed by the daemon"), "{}", ran.stderr);
}

#[test]
fn a_console_that_is_refused_says_why() {
    let fake = Fake::new();
    fake.on("VmSerial", [crate::samples::error(409, "conflict")]);
    let ran = run(&fake, &["vm", "console", "web-1"]);
    assert_eq!(ran.code, 5);
    assert!(ran.stderr.contains("hint: do this instead"), "{}", ran.stderr);
}

#[test]
fn the_escape_leaves_the_console_and_the_terminal_is_as_before() {
    let fake = Fake::new();
    let mut terminal = Terminal::new(&fake, "vm console web-1");
    terminal.wait_for("Ctrl-] leaves the console");
    terminal.wait_for("hello");
    // Ctrl-C is a key for the guest there.
    terminal.press(b"abc\x03def");
    terminal.wait_for("def");
    terminal.press(b"\x1d");
    let seen = terminal.end(0);
    assert!(seen.contains("left the console"), "{seen}");
}

#[test]
fn signals_end_console_and_live_view_and_the_terminal_is_as_before() {
    for line in ["vm console web-1", "top"] {
        for signal in ["-INT", "-TERM", "-HUP"] {
            let fake = Fake::new();
            let terminal = Terminal::new(&fake, line);
            terminal.wait_for(if line == "top" { "web-1" } else { "hello" });
            terminal.signal(&fake, signal);
            terminal.end(130);
        }
    }
}

#[test]
fn a_console_that_breaks_puts_the_terminal_back() {
    let fake = Fake::new();
    fake.on("VmSerial", [Answer::Close("bye\r\n")]);
    let terminal = Terminal::new(&fake, "vm console web-1");
    terminal.end(0);
}

#[test]
fn ctrl_c_ends_the_followed_events_on_a_terminal() {
    let fake = Fake::new();
    let mut terminal = Terminal::new(&fake, "event list --follow");
    terminal.wait_for("is off");
    terminal.press(b"\x03");
    terminal.end(130);
}

#[test]
fn the_live_view_leaves_by_q_and_by_ctrl_c() {
    for (keys, code) in [(&b"q"[..], 0), (b"\x03", 130)] {
        let fake = Fake::new();
        let mut terminal = Terminal::new(&fake, "top");
        terminal.wait_for("web-1");
        fake.wait_for("VmList", 2);
        terminal.press(b"m");
        terminal.press(keys);
        let seen = terminal.end(code);
        assert!(seen.contains("\u{1b}[?1049l"), "the screen before was not put back: {seen:?}");
    }
}

#[test]
fn the_live_view_goes_on_without_a_daemon() {
    let fake = Fake::new();
    let list = || crate::samples::answer("VmList");
    fake.on("VmList", [list(), samples_error(), samples_error(), list()]);
    let mut terminal = Terminal::new(&fake, "top");
    terminal.wait_for("it does not work");
    fake.wait_for("VmList", 4);
    terminal.press(b"q");
    terminal.end(0);
}

fn samples_error() -> Answer {
    crate::samples::error(503, "unavailable")
}

#[test]
fn a_question_on_a_terminal_says_what_is_lost() {
    for (answer, code, called) in [(&b"n\r"[..], 2, false), (b"y\r", 0, true)] {
        let fake = Fake::new();
        let mut terminal = Terminal::new(&fake, "vm off web-1");
        terminal.wait_for("Go on? [y/N]");
        terminal.press(answer);
        let seen = terminal.end(code);
        assert!(seen.contains("data that the guest has not written is lost"), "{seen}");
        assert_eq!(fake.ids().contains(&"VmOff"), called);
    }
    let fake = Fake::new();
    let mut terminal = Terminal::new(&fake, "vm off web-1");
    terminal.wait_for("Go on? [y/N]");
    terminal.press(b"\x03");
    terminal.end(130);
    assert!(fake.calls().is_empty());
}

#[test]
fn ctrl_c_at_a_progress_bar_on_a_terminal() {
    let fake = Fake::new();
    let running = crate::samples::at("vm_start", "booting", 1, 4);
    fake.on("VmStart", [Answer::Json(200, running)]).on("OpWait", [Answer::Hang]);
    let mut terminal = Terminal::new(&fake, "vm start web-1");
    terminal.wait_for("25%");
    terminal.press(b"\x03");
    let seen = terminal.end(130);
    assert!(seen.contains("left to itself"), "{seen}");
}

#[test]
fn a_viewer_reaches_the_screen() {
    for unix in [false, true] {
        let fake = Fake::new();
        let path = fake.folder.path().join("vnc");
        let mut command = command(&fake);
        command.args(["vm", "console", "web-1", "--vnc"]);
        if unix {
            command.arg("--listen").arg(&path);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut address).unwrap();
        let mut heard = [0; 12];
        if unix {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let mut viewer = std::os::unix::net::UnixStream::connect(address.trim()).unwrap();
            viewer.write_all(b"world").unwrap();
            viewer.read_exact(&mut heard).unwrap();
        } else {
            let mut viewer = std::net::TcpStream::connect(address.trim()).unwrap();
            viewer.write_all(b"world").unwrap();
            viewer.read_exact(&mut heard).unwrap();
        }
        assert_eq!(&heard, b"hello\r\nworld");
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(!path.exists(), "the socket was left behind");
    }
}
