//! Peers' suites, unchanged, on the mount points of a coordinator and of another node: `pjdfstest` (the Rust
//! one) and `fsx`, where `cargo xtask install` has put them. What is not promised is listed here and in
//! `docs/operate/volumes.md`, and is all that may fail.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use crate::cluster::Cluster;
use crate::cluster::EXT4;
use crate::cluster::XFS;
use crate::cluster::on_both;

const SIZE: u64 = 320 << 20;

/// Kinds of files that the mount point does not have: cases that need one may fail.
const NOT_PROMISED_KINDS: &[&str] = &["::fifo", "::socket", "::block", "::char"];

/// Cases that make such files without a kind in their names.
const NOT_PROMISED: &[&str] = &[
    "open::fifo_nonblock_wronly",
    "open::socket_error",
    "mkfifo::changed_time_fields_success",
    "mkfifo::permission_bits_from_mode",
    "mkfifo::uid_gid_eq_euid_egid",
    "mknod::changed_time_fields_success",
    "mknod::permission_bits_from_mode",
    "mknod::uid_gid_eq_euid_egid",
];

/// Cases that pass at least; a suite that ran nothing would prove nothing.
const PASSED_MIN: usize = 200;

/// A program of `target/tools`, if it is there.
fn tool(name: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let found = target.join("tools/bin").join(name);
    if !found.exists() {
        // The test command installs them: there, nothing is to pass for want of them.
        assert!(
            std::env::var_os("MUSTER_SUITES").is_none(),
            "{name} is not at {}",
            found.display()
        );
        println!("{name} is not installed (cargo xtask install): nothing was proved with it");
        return None;
    }
    Some(found)
}

/// Runs the suite in a folder; what failed that is promised, and how many cases passed.
fn suite(program: &Path, config: &Path, folder: &Path) -> (Vec<String>, usize) {
    let mut command = Command::new(program);
    command.arg("-c").arg(config).arg("-p").arg(folder);
    let output = command.stderr(Stdio::null()).output().expect("pjdfstest");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut wrong = Vec::new();
    let mut passed = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (name, result) = (words.next().unwrap_or(""), words.next_back());
        let promised = !NOT_PROMISED.contains(&name)
            && !NOT_PROMISED_KINDS.iter().any(|kind| name.ends_with(kind));
        match result {
            Some("ok" | "success") => passed += 1,
            Some("FAILED") if promised && name.contains("::") => wrong.push(name.to_owned()),
            _ => {}
        }
    }
    (wrong, passed)
}

#[test]
fn pjdfstest_finds_nothing_that_is_promised() {
    if tool("pjdfstest").is_none() {
        return;
    }
    // It takes half a minute for each, so the second one by hand: MUSTER_PJDFSTEST_XFS=1.
    let xfs = std::env::var_os("MUSTER_PJDFSTEST_XFS").is_some();
    for mkfs in [EXT4, XFS].into_iter().take(if xfs { 2 } else { 1 }) {
        let cluster = &mut Cluster::new(2, SIZE, mkfs);
        let program = tool("pjdfstest").expect("it was there");
        let config = cluster.rig.folder.path().join("pjdfstest.toml");
        let words = "[features]\nposix_fallocate = {}\nutime_now = {}\nutimensat = {}\n\
                     [settings]\nnaptime = 0.005\n[dummy_auth]\n\
                     entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
        std::fs::write(&config, words).expect("a file");
        let begun = std::time::Instant::now();
        let run = |number: usize| {
            let folder = cluster.at(number, &format!("suite-{number}"));
            std::fs::create_dir_all(&folder).expect("a folder");
            let (program, config) = (program.clone(), config.clone());
            std::thread::spawn(move || suite(&program, &config, &folder))
        };
        let both = [run(0), run(1)];
        for (number, thread) in both.into_iter().enumerate() {
            let (wrong, passed) = thread.join().expect("it ends");
            println!("node {number}: {passed} passed, {:?}", begun.elapsed());
            assert!(passed >= PASSED_MIN, "it did next to nothing: {passed}");
            assert!(wrong.is_empty(), "node {number}: {wrong:#?}");
        }
        cluster.end();
    }
}

#[test]
fn fsx_reads_what_it_wrote() {
    if tool("fsx").is_none() {
        return;
    }
    on_both(2, SIZE, |cluster| {
        let program = tool("fsx").expect("it was there");
        for number in 0..2 {
            let config = cluster.rig.folder.path().join("fsx.toml");
            std::fs::write(
                &config,
                "flen = 262144\n[opsize]\nmax = 65536\n[weights]\nclose_open = 1.0\nread = 10.0\n\
                 write = 10.0\nmapread = 0.0\nmapwrite = 0.0\ntruncate = 5.0\ninvalidate = 0.0\n\
                 fsync = 1.0\nfdatasync = 1.0\npunch_hole = 5.0\nposix_fallocate = 2.0\n\
                 sendfile = 2.0\nposix_fadvise = 1.0\ncopy_file_range = 2.0\n",
            )
            .expect("a file");
            let output = Command::new(&program)
                .args(["-N", "2000", "-S", "7", "-f"])
                .arg(&config)
                .arg("-P")
                .arg(cluster.rig.folder.path())
                .arg(cluster.at(number, &format!("fsx-{number}")))
                .output()
                .expect("fsx");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let more = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "node {number}: {text} {more}");
        }
    });
}
