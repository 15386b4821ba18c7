//! The web console in a real browser, against a real daemon with a real guest: the story is told in
//! `web/browser/story.spec.ts`; here is what it needs of the world.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use e2e::Host;
use e2e::OWN;
use e2e::Options;
use e2e::eventually;
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

/// Ends the browser's runner if the test ends before it.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        // It may have ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_web_console_in_a_browser() {
    let playwright = web().join("node_modules/.bin/playwright");
    assert!(playwright.exists(), "the browser's runner is missing; run cargo xtask web");
    assert!(web().join("dist/index.html").exists(), "it is not built; run cargo xtask web");

    let extra = format!("tls_listen = \"{ADDRESS}\"\n");
    let mut host = Host::start_with(Options { extra, ..Options::default() }).await;
    host.import_tiny().await;
    let link = host.cli(&["web"]).await.ok().out.trim().to_owned();
    assert!(link.starts_with(&format!("https://{ADDRESS}/sign-in#")), "{link}");
    let (kill, restart) = (host.file("kill"), host.file("restart"));
    let given = json!({
        "link": link,
        "viewer": token(&host, "eve", "viewer").await,
        "brief": token(&host, "brief", "operator").await,
        "kill": kill,
        "restart": restart,
    });
    std::fs::write(host.file("given.json"), given.to_string()).unwrap();

    let log = std::fs::File::create(host.file("browser.log")).unwrap();
    let mut command = host.netns().command(&playwright.to_string_lossy());
    command.arg("test").current_dir(web()).stdin(Stdio::null());
    command.env("MUSTER_WEB_URL", format!("https://{ADDRESS}"));
    command.env("MUSTER_WEB_GIVEN", host.file("given.json")).env("CI", "1").env("NO_COLOR", "1");
    // What the browser keeps goes with the host.
    command.env("HOME", host.file("home")).env("XDG_CONFIG_HOME", host.file("home/config"));
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let mut runner = Runner(command.spawn().unwrap());

    let begun = Instant::now();
    let status = loop {
        if let Some(status) = runner.0.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < STORY, "the story has no end:\n{}", told(&host));
        if kill.exists() && host.daemon_pid().is_some() {
            host.kill9();
            std::fs::remove_file(&kill).unwrap();
        }
        if restart.exists() {
            host.restart().await;
            std::fs::remove_file(&restart).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(status.success(), "{status}\n{}", told(&host));

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

fn told(host: &Host) -> String {
    std::fs::read_to_string(host.file("browser.log")).unwrap_or_default()
}
