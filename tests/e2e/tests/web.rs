//! The web console in a real browser, against a real daemon with a real guest, and against a lab with
//! real machines (without a system in them) that moves one and loses a node. The stories are told in `web/browser`; here is what they need of the world.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use e2e::Host;
use e2e::OWN;
use e2e::Options;
use e2e::TestLab;
use e2e::eventually;
use serde_json::Value;
use serde_json::json;

/// Where the browser reaches the daemon, in the host's own network namespace.
const ADDRESS: &str = "127.0.0.1:7443";

/// How long the whole story may take on a machine that builds other things at the same time.
const STORY: Duration = Duration::from_secs(420);

fn web() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web")
}

async fn token(host: &Host, name: &str, role: &str) -> String {
    host.cli(&["token", "create", name, "--role", role]).await.ok().out.trim().to_owned()
}

/// A certificate as an administrator makes one, with its key.
fn certificate(host: &Host) -> Value {
    let (cert, key) = (host.file("cert.pem"), host.file("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=anna", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    json!({ "cert": text(&cert), "key": text(&key) })
}

/// Ends the browser's runner if the test ends before it.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        // It may have ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder of the test's own; gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn beside(other: &Path) -> Self {
        let path = other.with_extension("browser");
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is in the way of nothing.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tells a story in a browser: starts its runner, and looks now and then at what it asks for.
async fn tell(
    mut command: Command,
    story: &str,
    url: &str,
    folder: &Path,
    given: Value,
    mut asked: impl AsyncFnMut(),
) {
    std::fs::write(folder.join("given.json"), given.to_string()).unwrap();
    let log = std::fs::File::create(folder.join("browser.log")).unwrap();
    command.args(["test", story]).current_dir(web()).stdin(Stdio::null());
    command.env("MUSTER_WEB_URL", url).env("MUSTER_WEB_GIVEN", folder.join("given.json"));
    // What the browser keeps goes with the folder.
    command.env("HOME", folder.join("home")).env("XDG_CONFIG_HOME", folder.join("home/config"));
    command.env("CI", "1").env("NO_COLOR", "1");
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let mut runner = Runner(command.spawn().unwrap());
    let told = || std::fs::read_to_string(folder.join("browser.log")).unwrap_or_default();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = runner.0.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < STORY, "the story has no end:\n{}", told());
        asked().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(status.success(), "{status}\n{}", told());
}

/// The browser's runner, with the pages built.
fn playwright() -> String {
    let playwright = web().join("node_modules/.bin/playwright");
    assert!(playwright.exists(), "the browser's runner is missing; run cargo xtask web");
    assert!(web().join("dist/index.html").exists(), "it is not built; run cargo xtask web");
    playwright.to_string_lossy().into_owned()
}

#[tokio::test]
async fn the_web_console_in_a_browser() {
    let playwright = playwright();
    let extra = format!("tls_listen = \"{ADDRESS}\"\n");
    let mut host = Host::start_with(Options { extra, ..Options::default() }).await;
    host.import_tiny().await;
    let link = host.cli(&["web"]).await.ok().out.trim().to_owned();
    assert!(link.starts_with(&format!("https://{ADDRESS}/sign-in#")), "{link}");
    let certificate = certificate(&host);
    let known = ["token", "create", "anna", "--role", "operator", "--certificate"];
    host.cli(&[known.as_slice(), &[&host.file("cert.pem").to_string_lossy()]].concat()).await.ok();
    let (kill, restart) = (host.file("kill"), host.file("restart"));
    let given = json!({
        "link": link,
        "viewer": token(&host, "eve", "viewer").await,
        "brief": token(&host, "brief", "operator").await,
        "certificate": certificate,
        "kill": kill,
        "restart": restart,
    });
    let folder = host.file("browser");
    std::fs::create_dir(&folder).unwrap();
    let command = host.netns().command(&playwright);
    let asked = async || {
        if kill.exists() && host.daemon_pid().is_some() {
            host.kill9();
            std::fs::remove_file(&kill).unwrap();
        }
        if restart.exists() {
            host.restart().await;
            std::fs::remove_file(&restart).unwrap();
        }
    };
    tell(command, "story", &format!("https://{ADDRESS}"), &folder, given, asked).await;

    // What was done in the browser is told with who did it.
    eventually("the machine is off", OWN, async || {
        let vm = host.cli(&["vm", "show", "story", "--json"]).await.ok().json();
        (vm["phase"] == "off").then_some(())
    })
    .await;
    let events = host.events().await;
    let texts: Vec<_> = events.iter().map(|it| it.event.kind.as_str()).collect();
    for kind in ["session.link", "session.begun", "session.ended"] {
        assert!(texts.contains(&kind), "no {kind} in {texts:?}");
    }
}

/// What `web-1` used before and after its migration from n1 to n3 is one line, at whichever node: each of
/// the two measured its part, and the third one is asked.
async fn history_of_a_machine_that_moved(lab: &TestLab) {
    let ops = lab.muster("n2", &["op", "list", "--all", "--json"]).await.ok().json();
    let moved = ops.as_array().unwrap().iter().find(|op| op["migration"]["measured"].is_object());
    let moved = moved.unwrap_or_else(|| panic!("no migration in {ops}"));
    let (begun, ended) = (moved["begun"].as_u64().unwrap(), moved["at"].as_u64().unwrap());
    eventually("both parts are one line", OWN, async || {
        let used = lab.muster("n2", &["vm", "metrics", "web-1", "--json"]).await.ok().json();
        assert!(used["silent"].as_array().is_none_or(Vec::is_empty), "{used}");
        let (from, step) = (used["from"].as_u64()?, used["resolution_s"].as_u64()? * 1_000);
        let series = used["series"].as_array()?.iter().find(|it| it["figure"] == "memory")?;
        let times: Vec<u64> = (0_u64..)
            .zip(series["mean"].as_array()?)
            .filter(|(_, value)| value.as_f64().is_some_and(|bytes| bytes > 1e6))
            .map(|(point, _)| from + point * step)
            .collect();
        let before = times.iter().any(|at| at + step <= begun);
        let after = times.iter().any(|at| *at >= ended);
        (before && after).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_failover_is_seen_in_a_browser() {
    let playwright = playwright();
    let lab = TestLab::up(&["--nodes", "3"]).await;
    lab.muster("n1", &["volume", "create", "shared", "--share", "/muster/share"]).await.ok();
    for n in 1..=4 {
        let name = format!("web-{n}");
        let create = ["vm", "create", &name, "--memory", "64M", "--disk", "size=1M"];
        let rest = ["--no-network", "--volume", "shared", "--start"];
        lab.muster("n1", &[create.as_slice(), &rest].concat()).await.ok();
    }
    let link = lab.muster("n2", &["web"]).await.ok().out.trim().to_owned();
    let lost_link = lab.muster("n1", &["web"]).await.ok().out.trim().to_owned();
    let (url, _) = link.split_once("/sign-in#").unwrap();
    let folder = Folder::beside(lab.dir());
    let power_off = folder.0.join("power-off");
    let mut command = lab.command();
    // A command in a node begins in the node's own root directory.
    let there = web().to_string_lossy().into_owned();
    command.args(["exec", "n2", "--", "sh", "-c", "cd \"$0\" && exec \"$@\"", &there, &playwright]);
    let given = json!({ "link": link, "lostLink": lost_link, "powerOff": power_off });
    tell(command, "failover", url, &folder.0, given, async || {
        if power_off.exists() {
            history_of_a_machine_that_moved(&lab).await;
            lab.run(&["power-off", "n1"]).await.ok();
            std::fs::remove_file(&power_off).unwrap();
        }
    })
    .await;

    // Any node tells what any other used, and says whose part is missing.
    let used = lab.muster("n2", &["node", "metrics", "n3", "--json"]).await.ok().json();
    let series = used["series"].as_array().unwrap();
    let memory = series.iter().find(|it| it["figure"] == "memory").unwrap();
    let most =
        memory["peak"].as_array().unwrap().iter().filter_map(Value::as_f64).fold(0.0, f64::max);
    assert!(most > 1e6, "{used}");
    let moved = lab.muster("n2", &["vm", "metrics", "web-1", "--json"]).await.ok().json();
    assert_eq!(moved["silent"], json!(["n1"]), "{moved}");
    let lost = lab.muster("n2", &["node", "metrics", "n1"]).await;
    assert!(lost.code != 0 && lost.err.contains("muster cluster status"), "{lost:?}");
}
