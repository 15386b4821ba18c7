//! The TLS port: roles, tokens, the pinned certificate, and peers that speak something else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use api::endpoint as ep;
use api::types::EventQuery;
use e2e::BOOT;
use e2e::Host;
use e2e::OWN;
use e2e::Options;
use e2e::Ran;
use e2e::eventually;
use e2e::muster_bin;
use e2e::tiny;

/// Peers that connect and say nothing, at the same time.
const SILENT_PEERS: usize = 100;

/// Where a daemon can be reached from other machines, as its administrator reads it.
struct Door {
    address: String,
    fingerprint: String,
}

async fn door(host: &Host) -> Door {
    let node = host.cli(&["node", "show", "--json"]).await.ok().json();
    let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
    Door { address: text("tls_address"), fingerprint: text("tls_fingerprint") }
}

impl Door {
    /// The program on another machine: nothing but address, fingerprint and token.
    fn muster(&self, host: &Host, token: &str, args: &[&str]) -> Command {
        let mut command = host.netns().command(&muster_bin().to_string_lossy());
        command.args(["--host", &self.address, "--fingerprint", &self.fingerprint]).args(args);
        command.env("MUSTER_TOKEN", token).env_remove("MUSTER_SOCKET").env_remove("MUSTER_HOST");
        command.stdin(Stdio::null());
        command
    }

    async fn run(&self, host: &Host, token: &str, args: &[&str]) -> Ran {
        ended(self.muster(host, token, args)).await
    }
}

async fn ended(mut command: Command) -> Ran {
    let ran = tokio::task::spawn_blocking(move || command.output()).await;
    let output: Output = ran.unwrap().unwrap();
    Ran::new(&output)
}

async fn token(host: &Host, name: &str, role: &str) -> String {
    let made = host.cli(&["token", "create", name, "--role", role]).await.ok();
    let secret = made.out.trim().to_owned();
    assert!(secret.len() >= 32 && !secret.contains(char::is_whitespace), "{made:?}");
    secret
}

fn options() -> Options {
    let extra = "tls_listen = \"127.0.0.1:0\"\n".to_owned();
    Options { engine: "fake", networking: false, extra, ..Options::default() }
}

#[tokio::test]
async fn each_role_may_do_what_it_should_and_no_more() {
    let host = Host::start_with(options()).await;
    let door = door(&host).await;
    let create = ["vm", "create", "one", "--no-network", "--memory", "128M"];
    // What each role gets, by exit code: 0 done, 4 not allowed.
    let table: [(&[&str], [i32; 3]); 9] = [
        (&["whoami"], [0, 0, 0]),
        (&["vm", "list"], [0, 0, 0]),
        (&["node", "show"], [0, 0, 0]),
        (&["vm", "start", "one"], [4, 0, 5]),
        (&["vm", "console", "one", "--linger", "0"], [4, 0, 0]),
        (&["vm", "off", "one", "--yes"], [4, 0, 5]),
        (&["network", "create", "lab", "--subnet", "10.79.0.0/24"], [4, 4, 0]),
        (&["token", "list"], [4, 4, 0]),
        (&["vm", "delete", "one", "--yes"], [4, 4, 0]),
    ];
    let mut tokens = Vec::new();
    for role in ["viewer", "operator", "administrator"] {
        tokens.push(token(&host, role, role).await);
    }
    assert_eq!(door.run(&host, &tokens[0], &create).await.code, 4);
    assert_eq!(door.run(&host, &tokens[1], &create).await.code, 4);
    door.run(&host, &tokens[2], &create).await.ok();
    for (args, codes) in table {
        for (token, code) in tokens.iter().zip(codes) {
            let ran = door.run(&host, token, args).await;
            // The fake engine has no console to open; that is another answer than "not allowed".
            let console = args.get(1) == Some(&"console") && code == 0 && ran.code != 4;
            assert!(ran.code == code || console, "{args:?}: {code} wanted, {ran:?}");
            if code == 4 {
                assert!(ran.err.contains("muster token create"), "no next step: {ran:?}");
            }
        }
    }
    // Everything that was done is told with who did it.
    let query = EventQuery { after: Some(0), limit: Some(1000) };
    let nothing = api::endpoint::Nothing {};
    let events = host.client().call::<ep::EventList>(&[], &query, &nothing).await.unwrap();
    let by = |words: &str| events.iter().any(|it| it.event.actor.as_deref() == Some(words));
    assert!(by("token operator") && by("token administrator") && !by("token viewer"), "{events:?}");
}

#[tokio::test]
async fn a_token_is_worth_nothing_once_it_is_wrong_revoked_or_too_old() {
    let mut host = Host::start_with(options()).await;
    let door = door(&host).await;
    let secret = token(&host, "ci", "viewer").await;
    let whoami = ["whoami", "--json"];
    let seen = door.run(&host, &secret, &whoami).await.ok().json();
    assert_eq!((seen["actor"].as_str(), seen["role"].as_str()), (Some("token ci"), Some("viewer")));

    // By a file, as scripts do it.
    let file = host.file("token");
    std::fs::write(&file, format!("{secret}\n")).unwrap();
    let file = file.display().to_string();
    let mut by_file = door.muster(&host, "", &["--token-file", &file, "whoami"]);
    by_file.env_remove("MUSTER_TOKEN");
    ended(by_file).await.ok();
    // Without one, it is a wrong command line; with another one, it is not allowed.
    let mut none = door.muster(&host, "", &["whoami"]);
    none.env_remove("MUSTER_TOKEN");
    let none = ended(none).await;
    assert!(none.code == 2 && none.err.contains("token"), "{none:?}");
    for wrong in ["x", &secret[1..], &format!("{secret}0"), &"f".repeat(100_000), "a b\tc"] {
        let ran = door.run(&host, wrong, &["whoami"]).await;
        assert_eq!(ran.code, 4, "{ran:?}");
    }
    // It is kept as a digest only, and survives a restart.
    host.kill9();
    for file in ["state.redb", "../daemon.log", "../run/api.sock"] {
        let kept = std::fs::read(host.data_dir().join(file)).unwrap_or_default();
        let found = kept.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "the secret is in {file}");
    }
    host.restart().await;
    let again = self::door(&host).await;
    assert_eq!(again.fingerprint, door.fingerprint, "a restart must not change the certificate");
    again.run(&host, &secret, &whoami).await.ok();

    host.cli(&["token", "revoke", "ci", "--yes"]).await.ok();
    assert_eq!(again.run(&host, &secret, &whoami).await.code, 4);
    let made = host.cli(&["token", "create", "short", "--valid", "2s"]).await.ok();
    let short = made.out.trim();
    eventually("a token's time is over", OWN, async || {
        (again.run(&host, short, &whoami).await.code == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_certificate_is_refused_before_the_token_is_sent() {
    let host = Host::start_with(options()).await;
    let good = door(&host).await;
    let secret = token(&host, "t", "administrator").await;
    // As people copy it: with colons and in capitals.
    let digits = good.fingerprint.replace(':', "").to_uppercase();
    let pairs: Vec<_> = digits.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
    let spelt = Door { address: good.address.clone(), fingerprint: pairs.join(":") };
    spelt.run(&host, &secret, &["whoami"]).await.ok();

    let other = Door { address: good.address.clone(), fingerprint: "ab".repeat(32) };
    let ran = other.run(&host, &secret, &["vm", "list"]).await;
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.err.contains("certificate") && ran.err.contains("node show"), "{ran:?}");
    for bad in ["", "abc", &"g".repeat(64)] {
        let bad = Door { address: good.address.clone(), fingerprint: bad.to_owned() };
        assert_eq!(bad.run(&host, &secret, &["vm", "list"]).await.code, 2);
    }
    // Somebody in the middle, with a certificate of their own: another daemon.
    let middle = Host::start_with(options()).await;
    let theirs = door(&middle).await;
    let fooled = Door { address: theirs.address, fingerprint: good.fingerprint };
    let ran = fooled.run(&middle, &secret, &["whoami"]).await;
    assert_eq!(ran.code, 6, "{ran:?}");
    let log = middle.log_tail();
    assert!(!log.contains("Bearer") && !log.contains(&secret), "{log}");
}

#[tokio::test]
async fn peers_that_are_silent_or_speak_nonsense_keep_nobody_waiting() {
    let host = Host::start_with(options()).await;
    let door = door(&host).await;
    let secret = token(&host, "t", "viewer").await;
    let address: std::net::SocketAddr = door.address.parse().unwrap();
    let peers = host.netns().inside(move || {
        let mut peers = Vec::new();
        for at in 0..SILENT_PEERS {
            let mut peer = TcpStream::connect(address).unwrap();
            // Some begin a handshake, some another protocol, most say nothing at all.
            let words: &[u8] = match at % 4 {
                0 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                1 => b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n",
                _ => b"",
            };
            peer.write_all(words).unwrap();
            peers.push(peer);
        }
        peers
    });
    let mut peers = tokio::task::spawn_blocking(|| peers.join().unwrap()).await.unwrap();
    for _ in 0..5 {
        door.run(&host, &secret, &["vm", "list"]).await.ok();
    }
    // Plain HTTP gets no answer, least of all a list of machines.
    peers[1].set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = Vec::new();
    let _ = peers[1].read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    drop(peers);
    door.run(&host, &secret, &["vm", "list"]).await.ok();
}

#[tokio::test]
async fn a_console_goes_over_tls() {
    let extra = options().extra;
    let host = Host::start_with(Options { extra, ..Options::default() }).await;
    let door = door(&host).await;
    let secret = token(&host, "ops", "operator").await;
    host.import_tiny().await;
    let vm = host.create(&tiny("far")).await;
    vm.start().await;
    vm.wait_heartbeat().await;
    let mut console = door.muster(&host, &secret, &["vm", "console", "far", "--linger", "20"]);
    console.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = console.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    input.write_all(b"\necho $((6 * 7))-is-it\n").unwrap();
    let heard = tokio::task::spawn_blocking(move || {
        let (mut seen, mut chunk) = (String::new(), [0; 4096]);
        while !seen.contains("42-is-it") {
            match output.read(&mut chunk).unwrap() {
                0 => break,
                count => seen.push_str(&String::from_utf8_lossy(&chunk[..count])),
            }
        }
        seen
    });
    let heard = tokio::time::timeout(BOOT, heard).await.unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(heard.contains("42-is-it"), "{heard}");
    let png = host.file("far.png");
    let shot = ["vm", "screenshot", "far", "-o", &png.display().to_string()];
    door.run(&host, &secret, &shot).await.ok();
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
}
