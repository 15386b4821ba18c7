//! The client against the real agent, run on this host with everything dangerous blocked.

use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;
use tokio::net::UnixStream;

use crate::guest::AgentClient;
use crate::guest::AgentError;
use crate::guest::AgentInfo;
use crate::guest::CallLimits;

/// What would touch this host.
const BLOCKED: &str = "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,\
    guest-set-time,guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,\
    guest-fstrim,guest-set-vcpus,guest-set-memory-blocks,guest-set-user-password,\
    guest-ssh-add-authorized-keys,guest-ssh-remove-authorized-keys,guest-file-open,guest-exec";

struct Agent(Child);

impl Agent {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("ga.sock");
        let child = Command::new("/usr/sbin/qemu-ga")
            .args(["-m", "unix-listen", "-b", BLOCKED])
            .arg("-p")
            .arg(socket)
            .arg("-t")
            .arg(dir)
            .arg("-f")
            .arg(dir.join("ga.pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-ga is installed (package qemu-guest-agent)");
        Self(child)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connect(dir: &Path) -> AgentClient {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(dir.join("ga.sock")).await {
            Ok(stream) => return AgentClient::new(Box::new(stream), 7),
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_real_agent_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let _agent = Agent::start(dir.path());
    let mut client = connect(dir.path()).await;
    let limits = CallLimits::within(Duration::from_secs(30));
    client.sync(Duration::from_secs(30)).await.unwrap();
    let info = client.call("guest-info", None, limits).await.unwrap();
    let info = AgentInfo::parse(&info).unwrap();
    assert!(info.allows("guest-ping") && info.allows("guest-get-osinfo"));
    assert!(!info.allows("guest-shutdown"));

    let mut facts = crate::guest::GuestFacts::default();
    for question in crate::guest::facts::Question::ALL {
        let reply = client.call(question.command(), None, limits).await.unwrap();
        question.take(&reply, &mut facts).unwrap();
    }
    let os = facts.os.unwrap();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(os.kernel.as_deref(), Some(kernel.trim()));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(facts.hostname.as_deref(), Some(hostname.trim()));
    let loopback = facts.interfaces.iter().find(|interface| interface.name == "lo").unwrap();
    assert!(loopback.addresses.contains(&"127.0.0.1/8".to_owned()));

    let blocked = json!({ "path": "true" });
    let error = client.call("guest-exec", Some(blocked), limits).await.unwrap_err();
    assert!(error.is_answer(), "{error}");

    // Nonsense, a cut command and a foreign sync before ours: the next command is answered.
    drop(client);
    let mut client = connect(dir.path()).await;
    for _ in 0..3 {
        let cut = CallLimits { deadline: Duration::from_secs(30), reply_bytes: 10 };
        let error = client.call("guest-info", None, cut).await.unwrap_err();
        assert!(matches!(error, AgentError::TooLong { .. }), "{error}");
        assert_eq!(client.call("guest-ping", None, limits).await.unwrap(), json!({}));
    }
}
