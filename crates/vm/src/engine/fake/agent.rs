//! The guest agent of a fake guest.

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;

/// Longest line that it reads.
const AGENT_LINE_MAX: u64 = 64 * 1024;

/// The guest agent of the fake guest: knows how to synchronise, to tell what it can do, and to answer
/// a ping.
pub(super) async fn answer(
    mut stream: UnixStream,
    silent: impl Fn() -> bool,
) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read).take(AGENT_LINE_MAX);
    loop {
        let mut line = Vec::new();
        read.set_limit(AGENT_LINE_MAX);
        if read.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if silent() {
            continue;
        }
        // A client flushes the agent's parser with a byte that is not JSON before it synchronises.
        let start = line.iter().position(|byte| *byte == b'{').unwrap_or(line.len());
        let request = serde_json::from_slice::<serde_json::Value>(&line[start..]);
        let Ok(request) = request else { continue };
        let id = &request["arguments"]["id"];
        let reply = match request["execute"].as_str() {
            Some("guest-sync-delimited") => {
                write.write_all(&[0xff]).await?;
                serde_json::json!({ "return": id })
            }
            Some("guest-sync") => serde_json::json!({ "return": id }),
            Some("guest-ping") => serde_json::json!({ "return": {} }),
            Some("guest-info") => {
                let ping = serde_json::json!({ "name": "guest-ping", "enabled": true });
                serde_json::json!({ "return": { "version": "0", "supported_commands": [ping] } })
            }
            other => serde_json::json!({
                "error": {
                    "class": "CommandNotFound",
                    "desc": format!("The command {} has not been found", other.unwrap_or("?")),
                }
            }),
        };
        write.write_all(format!("{reply}\n").as_bytes()).await?;
    }
}
