//! `muster` on a terminal, as a person at a keyboard has it.

use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::Host;
use crate::OWN;
use crate::muster_bin;

/// Pause between two looks at what was printed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The key Ctrl-C.
pub const CTRL_C: &[u8] = b"\x03";

/// The program on a terminal of its own (made by `script` of bsdutils), under a shell that compares
/// the terminal's settings before and after.
pub struct Terminal {
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts `muster` with these words.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn new(host: &Host, words: &str) -> Self {
        let program = muster_bin().display();
        // The shell must outlive the program's Ctrl-C to tell how it ended.
        let shell = format!(
            "trap : INT; stty rows 30 cols 120; before=$(stty -g); {program} {words}; code=$?; \
             after=$(stty -g); [ \"$before\" = \"$after\" ] && echo terminal=same \
             || echo terminal=changed; echo code=$code"
        );
        let mut script = Command::new("script");
        script.args(["-qfec", &shell, "/dev/null"]);
        script.env("MUSTER_SOCKET", host.socket()).env("TERM", "xterm").env("SHELL", "/bin/sh");
        script.env_remove("NO_COLOR").env_remove("MUSTER_HOST").env_remove("MUSTER_TOKEN");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = script.spawn().expect("script is essential on Debian");
        let seen = Arc::new(Mutex::new(String::new()));
        let (sink, mut stdout) = (seen.clone(), child.stdout.take().expect("it is a pipe"));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..count]);
                sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { child, seen }
    }

    /// Everything that was printed.
    pub fn seen(&self) -> String {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a text was printed.
    ///
    /// # Panics
    /// If it is not.
    pub async fn expect(&self, text: &str) {
        let begun = Instant::now();
        while !self.seen().contains(text) {
            assert!(begun.elapsed() < 2 * OWN, "no {text:?} in {:?}", self.seen());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Presses keys.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn press(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().expect("it is a pipe").write_all(keys).expect("it is there");
    }

    /// Waits for the program's end and returns everything that was printed.
    ///
    /// # Panics
    /// If it does not end, ends with another exit code, or leaves the terminal changed.
    pub async fn end(mut self, code: i32) -> String {
        self.expect("code=").await;
        self.expect(&format!("code={code}")).await;
        let seen = self.seen();
        assert!(seen.contains("terminal=same"), "{seen}");
        // Nothing may stay switched on that is switched on by escape sequences.
        for (on, off) in [("\u{1b}[?1049h", "\u{1b}[?1049l"), ("\u{1b}[?25l", "\u{1b}[?25h")] {
            assert!(seen.rfind(on) <= seen.rfind(off), "{on:?} is left on: {seen:?}");
        }
        drop(self.child.stdin.take());
        seen
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
