//! Names completed by the shell.

use crate::fake::Answer;
use crate::fake::Fake;
use crate::program::Ran;
use crate::program::command;
use crate::program::spawn;
use crate::samples;

/// What bash would be offered for the last word.
fn complete(fake: &Fake, words: &[&str]) -> Ran {
    let mut command = command(fake);
    command
        .env("MUSTER_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_COMPLETE_SPACE", "true")
        .env("_CLAP_IFS", "\n")
        .arg("--")
        .args(words);
    let ran = spawn(command, b"").end();
    assert_eq!((ran.code, &*ran.stderr), (0, ""), "{words:?}");
    ran
}

#[test]
fn names_come_from_the_daemon() {
    let fake = Fake::new();
    let cases: [(&[&str], &str); 6] = [
        (&["muster", "vm", "start", "w"], "web-1\nweb-2"),
        (&["muster", "image", "show", "d"], "debian"),
        (&["muster", "vm", "create", "x", "--image", "d"], "debian"),
        (&["muster", "vm", "disk", "resize", "web-1", "d"], "disk0"),
        (&["muster", "vm", "nic", "remove", "web-1", "n"], "net0"),
        (&["muster", "op", "wait", "0"], samples::OP),
    ];
    for (words, names) in cases {
        assert_eq!(complete(&fake, words).stdout.trim(), names, "{words:?}");
    }
}

#[test]
fn a_socket_on_the_line_is_asked() {
    let fake = Fake::new();
    let other = Fake::new();
    let socket = other.socket();
    let words = ["muster", "--socket", socket.to_str().unwrap(), "vm", "start", "w"];
    assert_eq!(complete(&fake, &words).stdout.trim(), "web-1\nweb-2");
    assert_eq!((fake.calls().len(), other.calls().len()), (0, 1));
}

#[test]
fn trouble_gives_no_names_and_no_noise() {
    let words = ["muster", "vm", "start", "w"];
    for answer in
        [Answer::Hang, Answer::HangUp, Answer::Raw(b"{".to_vec()), samples::error(403, "forbidden")]
    {
        let fake = Fake::new();
        fake.on("VmList", [answer]);
        assert_eq!(complete(&fake, &words).stdout.trim(), "");
    }
    let fake = Fake::new();
    std::fs::remove_file(fake.socket()).unwrap();
    assert_eq!(complete(&fake, &words).stdout.trim(), "");
}
