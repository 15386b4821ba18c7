//! A guest agent in this process that does what a test tells it, good or bad.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::io::DuplexStream;
use tokio::sync::watch;

use crate::guest::AgentStream;
use crate::guest::Connect;

/// What the agent does instead of a proper answer to one command.
#[derive(Debug, Clone)]
pub(super) enum Quirk {
    /// Nothing.
    Silent,
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, again and again.
    Endless(Vec<u8>),
    /// This as the return value.
    Returns(Value),
    /// An error of this class.
    Error(&'static str),
    /// Close the port.
    Close,
}

#[derive(Default)]
pub(super) struct Guest {
    /// What commands do instead; the count says how many times.
    pub(super) quirks: HashMap<&'static str, (u32, Quirk)>,
    /// Commands seen, in order.
    pub(super) seen: Vec<String>,
    pub(super) files: BTreeMap<String, String>,
    pub(super) directories: Vec<String>,
    pub(super) frozen: bool,
    pub(super) hostname: String,
    pub(super) time: Option<i64>,
    /// Processors, online or not. The first cannot be taken off.
    pub(super) processors: Vec<bool>,
    /// Blocks of memory of 128 MiB, online or not.
    pub(super) blocks: Vec<bool>,
    /// Commands that the agent says it does not allow.
    pub(super) blocked: Vec<&'static str>,
    pub(super) version: &'static str,
    /// An agent from before QEMU 4.0 does not repeat ids.
    pub(super) old: bool,
    open: BTreeMap<i64, String>,
}

/// The port of a guest with an agent in it.
#[derive(Clone)]
pub(super) struct FakePort {
    guest: Arc<Mutex<Guest>>,
    up: watch::Sender<bool>,
    /// Bytes that the guest sends into each new connection before anything else.
    pub(super) greeting: Vec<u8>,
}

impl FakePort {
    pub(super) fn new() -> Self {
        let guest = Guest {
            hostname: "debian".into(),
            version: "8.2.0",
            processors: vec![true],
            blocks: vec![true],
            ..Guest::default()
        };
        Self {
            guest: Arc::new(Mutex::new(guest)),
            up: watch::channel(true).0,
            greeting: Vec::new(),
        }
    }

    pub(super) fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap()
    }

    /// Starts or stops the agent. While it is down the port takes bytes and nobody reads them.
    pub(super) fn set_up(&self, up: bool) {
        self.up.send_replace(up);
    }

    pub(super) fn quirk(&self, command: &'static str, times: u32, quirk: Quirk) {
        self.guest().quirks.insert(command, (times, quirk));
    }

    pub(super) fn count(&self, command: &str) -> usize {
        self.guest().seen.iter().filter(|seen| *seen == command).count()
    }

    pub(super) fn open(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(self.clone().serve(theirs));
        ours
    }

    async fn serve(self, stream: DuplexStream) {
        let mut up = self.up.subscribe();
        let (read, mut write) = tokio::io::split(stream);
        let mut read = BufReader::new(read);
        let _ = write.write_all(&self.greeting).await;
        loop {
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            let mut line = Vec::new();
            let got = (&mut read).take(1 << 20).read_until(b'\n', &mut line).await;
            if got.unwrap_or(0) == 0 {
                return;
            }
            if !*up.borrow() {
                // It went down while it waited: what was sent to it is lost.
                continue;
            }
            let start = line.iter().position(|byte| *byte == b'{').unwrap_or(0);
            let Ok(request) = serde_json::from_slice::<Value>(&line[start..]) else { continue };
            let command = request["execute"].as_str().unwrap_or_default().to_owned();
            match self.answer(&command, &request) {
                Answer::Bytes(bytes) => {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Answer::Endless(bytes) => while write.write_all(&bytes).await.is_ok() {},
                Answer::Close => return,
            }
        }
    }

    fn answer(&self, command: &str, request: &Value) -> Answer {
        let mut guest = self.guest();
        guest.seen.push(command.to_owned());
        let quirk = guest.quirks.get_mut(command).filter(|(times, _)| *times > 0);
        let quirk = quirk.map(|(times, quirk)| {
            *times -= 1;
            quirk.clone()
        });
        let reply = match quirk {
            Some(Quirk::Silent) => return Answer::Bytes(Vec::new()),
            Some(Quirk::Bytes(bytes)) => return Answer::Bytes(bytes),
            Some(Quirk::Endless(bytes)) => return Answer::Endless(bytes),
            Some(Quirk::Close) => return Answer::Close,
            Some(Quirk::Returns(value)) => Ok(value),
            Some(Quirk::Error(class)) => Err(class),
            None => guest.run(command, &request["arguments"]),
        };
        let mut reply = match reply {
            Ok(value) if command == "guest-shutdown" && value.is_null() => {
                return Answer::Bytes(Vec::new());
            }
            Ok(value) => json!({ "return": value }),
            Err(class) => json!({ "error": { "class": class, "desc": "no\x1b such thing" } }),
        };
        if let Some(id) = request.get("id").filter(|_| !guest.old) {
            reply["id"] = id.clone();
        }
        let mut bytes = format!("{reply}\n").into_bytes();
        if command == "guest-sync-delimited" {
            bytes.insert(0, 0xff);
        }
        Answer::Bytes(bytes)
    }
}

enum Answer {
    Bytes(Vec<u8>),
    Endless(Vec<u8>),
    Close,
}

const COMMANDS: [&str; 23] = [
    "guest-sync-delimited",
    "guest-ping",
    "guest-info",
    "guest-get-osinfo",
    "guest-get-host-name",
    "guest-get-timezone",
    "guest-get-users",
    "guest-network-get-interfaces",
    "guest-get-fsinfo",
    "guest-file-open",
    "guest-file-write",
    "guest-file-close",
    "guest-exec",
    "guest-exec-status",
    "guest-shutdown",
    "guest-set-time",
    "guest-fsfreeze-freeze",
    "guest-get-time",
    "guest-get-vcpus",
    "guest-set-vcpus",
    "guest-get-memory-blocks",
    "guest-get-memory-block-info",
    "guest-set-memory-blocks",
];

impl Guest {
    fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, &'static str> {
        if self.blocked.contains(&command) {
            return Err("CommandNotFound");
        }
        let frozen_takes = ["guest-sync", "guest-ping", "guest-info", "guest-fsfreeze"];
        if self.frozen && !frozen_takes.iter().any(|known| command.starts_with(known)) {
            return Err("CommandNotFound");
        }
        Ok(match command {
            "guest-sync-delimited" => arguments["id"].clone(),
            "guest-ping" => json!({}),
            "guest-info" => {
                let more = ["guest-fsfreeze-thaw", "guest-fsfreeze-status"];
                let commands: Vec<Value> = COMMANDS
                    .iter()
                    .chain(&more)
                    .map(|name| json!({ "name": name, "enabled": !self.blocked.contains(name) }))
                    .collect();
                json!({ "version": self.version, "supported_commands": commands })
            }
            "guest-get-osinfo" => json!({
                "id": "debian", "version-id": "12", "kernel-release": "6.1.0-56-cloud-amd64",
                "pretty-name": "Debian GNU/Linux 12 (bookworm)", "machine": "x86_64",
            }),
            "guest-get-host-name" => json!({ "host-name": self.hostname }),
            "guest-get-timezone" => json!({ "zone": "CET", "offset": 3600 }),
            "guest-get-users" => json!([{ "user": "root" }, { "user": "ann" }, { "user": "root" }]),
            "guest-network-get-interfaces" => json!([{
                "name": "eth0", "hardware-address": "52:54:00:AB:00:01",
                "ip-addresses": [
                    { "ip-address": "10.77.0.5", "ip-address-type": "ipv4", "prefix": 24 },
                    { "ip-address": "<script>", "prefix": 24 },
                    { "ip-address": "fe80::1", "prefix": 4000 },
                ],
            }]),
            "guest-get-fsinfo" => json!([
                { "mountpoint": "/", "type": "ext4", "total-bytes": 1000, "used-bytes": 400 },
            ]),
            "guest-file-open" => return self.open_file(arguments),
            "guest-file-write" => {
                let path = self.open.get(&arguments["handle"].as_i64().unwrap()).ok_or("bad")?;
                let data = STANDARD.decode(arguments["buf-b64"].as_str().unwrap()).unwrap();
                self.files.insert(path.clone(), String::from_utf8(data.clone()).unwrap());
                json!({ "count": data.len(), "eof": false })
            }
            "guest-file-close" => {
                self.open.remove(&arguments["handle"].as_i64().unwrap()).ok_or("bad")?;
                json!({})
            }
            "guest-exec" => {
                assert_eq!(arguments["path"], "mkdir");
                self.directories.push(arguments["arg"][1].as_str().unwrap().to_owned());
                json!({ "pid": 7 })
            }
            "guest-exec-status" => json!({ "exited": true, "exitcode": 0, "out-data": "b2s=" }),
            "guest-shutdown" => Value::Null,
            "guest-get-time" => json!(self.time),
            "guest-set-time" => {
                self.time = arguments["time"].as_i64();
                json!({})
            }
            "guest-fsfreeze-freeze" => {
                self.frozen = true;
                json!(2)
            }
            "guest-fsfreeze-thaw" => {
                self.frozen = false;
                json!(2)
            }
            "guest-get-vcpus" => list("logical-id", &self.processors),
            "guest-get-memory-blocks" => list("phys-index", &self.blocks),
            "guest-get-memory-block-info" => json!({ "size": 128 << 20 }),
            "guest-set-vcpus" => {
                switch(&mut self.processors, "logical-id", &arguments["vcpus"])?;
                json!(arguments["vcpus"].as_array().unwrap().len())
            }
            "guest-set-memory-blocks" => {
                switch(&mut self.blocks, "phys-index", &arguments["mem-blks"])?;
                json!([])
            }
            "guest-fsfreeze-status" => json!(if self.frozen { "frozen" } else { "thawed" }),
            _ => return Err("CommandNotFound"),
        })
    }

    fn open_file(&mut self, arguments: &Value) -> Result<Value, &'static str> {
        let path = arguments["path"].as_str().unwrap().to_owned();
        let parent = path.rsplit_once('/').unwrap().0.to_owned();
        let exists = match arguments["mode"].as_str().unwrap() {
            "r" => self.files.contains_key(&path),
            _ => parent == "/run" || self.directories.contains(&parent),
        };
        if !exists {
            return Err("GenericError");
        }
        let handle = self.open.len() as i64 + 1000;
        self.open.insert(handle, path);
        Ok(json!(handle))
    }
}

fn list(id: &str, parts: &[bool]) -> Value {
    let item =
        |(at, online): (usize, &bool)| json!({ id: at, "online": online, "can-offline": at > 0 });
    parts.iter().enumerate().map(item).collect()
}

fn switch(parts: &mut [bool], id: &str, items: &Value) -> Result<(), &'static str> {
    for item in items.as_array().unwrap() {
        let at = usize::try_from(item[id].as_u64().unwrap()).unwrap();
        *parts.get_mut(at).ok_or("GenericError")? = item["online"].as_bool().unwrap();
    }
    Ok(())
}

#[async_trait]
impl Connect for FakePort {
    async fn connect(&self) -> std::io::Result<Box<dyn AgentStream>> {
        Ok(Box::new(self.open()))
    }
}
