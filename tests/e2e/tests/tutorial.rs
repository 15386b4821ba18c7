//! The tutorials of two nodes and a witness, and of a machine that moves, word for word: their
//! commands are typed as they stand there, and what they show must appear. What differs from run to
//! run, and what a hand on a keyboard does, is in blocks of the kind `console`, which are only read.
//!
//! What the test does beyond typing: `cargo ...` is left out (the test command has done it, and has
//! built a binary of its own); the lab has a directory of its own; and the last command of a block is
//! typed again until it says what the text shows, as the text asks for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use e2e::GUEST;
use e2e::TestLab;
use e2e::eventually;
use e2e::guest_image;
use e2e::muster_bin;
use tokio::process::Command;

/// What is typed, and what must be seen after it.
struct Block {
    commands: Vec<String>,
    shown: Vec<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let body = lines.by_ref().take_while(|line| *line != "```").map(str::to_owned);
        match (kind, blocks.last_mut()) {
            ("console", _) => body.for_each(drop),
            ("sh", _) => blocks.push(Block { commands: body.collect(), shown: Vec::new() }),
            ("text", Some(last)) if last.shown.is_empty() => last.shown = body.collect(),
            _ => panic!("a block of {kind:?} where none can be"),
        }
    }
    blocks
}

/// Whether a line of the output has the words of a shown one, in their order. Spaces and what
/// stands between (sizes, times) differ from run to run.
fn shows(output: &str, shown: &str) -> bool {
    output.lines().any(|line| {
        shown
            .split_whitespace()
            .try_fold(line, |rest, word| Some(rest.split_once(word)?.1))
            .is_some()
    })
}

/// Stands for the source tree's top, as far as the text needs it.
struct Place(PathBuf);

impl Place {
    fn new(lab: &TestLab) -> Self {
        let this = Self(lab.dir().with_extension("place"));
        let guests = this.0.join("target/guests");
        fs::create_dir_all(&guests).unwrap();
        symlink(guest_image("tiny.img"), guests.join("tiny.img")).unwrap();
        this
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Types a line into a shell.
///
/// # Errors
/// What it said, if it failed.
async fn typed(lab: &TestLab, place: &Place, line: &str) -> Result<String, String> {
    let ours = muster_bin().parent().unwrap().display().to_string();
    let path = format!("{ours}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(&place.0).env("PATH", path);
    command.env("MUSTER_LAB", lab.dir()).stdin(Stdio::null());
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test]
async fn two_nodes_and_a_witness_as_the_tutorial_says() {
    follow("tutorial-cluster.md").await;
}

#[tokio::test]
async fn a_machine_that_moves_as_the_tutorial_says() {
    follow("tutorial-migrate.md").await;
}

/// Does all that a page says.
async fn follow(page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operate").join(page);
    let blocks = blocks(&fs::read_to_string(path).unwrap());
    assert!(blocks.len() >= 8 && blocks.iter().filter(|it| !it.shown.is_empty()).count() >= 6);
    let lab = TestLab::new();
    let place = Place::new(&lab);
    for block in blocks {
        let mut commands: Vec<_> =
            block.commands.iter().filter(|line| !line.starts_with("cargo ")).collect();
        let last = if block.shown.is_empty() { None } else { commands.pop() };
        for line in commands {
            if let Err(said) = typed(&lab, &place, line).await {
                panic!("{line}\n{said}");
            }
        }
        let Some(line) = last else { continue };
        eventually(&format!("{line} shows {:?}", block.shown), GUEST, async || {
            let output = typed(&lab, &place, line).await.ok()?;
            block.shown.iter().all(|shown| shows(&output, shown)).then_some(())
        })
        .await;
    }
}
