//! Talking to the nft program: one transaction in, one listing out, both JSON.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::host::HostError;
use crate::rules::DIGEST_SET_PREFIX;
use crate::rules::FAMILIES;
use crate::rules::RulesId;
use crate::tag::InstanceTag;

/// nft answers in milliseconds; one that hangs must not hold up the switch for good.
const NFT_SECONDS_MAX: u64 = 20;
/// As much of nft's complaint as is shown.
const STDERR_CHARS_MAX: usize = 2_000;

/// Applies a transaction: all of it or nothing.
pub(super) async fn load(transaction: &Value) -> Result<(), HostError> {
    let input = transaction.to_string();
    run(&["-j", "-f", "-"], input.as_bytes()).await.map(|_| ())
}

/// Whether the rules with this digest are loaded: one small question per table.
pub(super) async fn is_loaded(tag: &InstanceTag, rules: &RulesId) -> Result<bool, HostError> {
    let set = format!("{DIGEST_SET_PREFIX}{}", rules.digest);
    for family in FAMILIES {
        match run(&["-j", "list", "set", family, &tag.table(), &set], &[]).await {
            Ok(_) => {}
            Err(HostError::Nft { .. }) => return Ok(false),
            Err(other) => return Err(other),
        }
    }
    Ok(true)
}

/// What of our rules the kernel has, and whether any table of ours exists.
pub(super) async fn observe(tag: &InstanceTag) -> Result<(Option<RulesId>, bool), HostError> {
    let mut found: Vec<RulesId> = Vec::new();
    let mut tables = false;
    for family in FAMILIES {
        match run(&["-j", "list", "table", family, &tag.table()], &[]).await {
            Ok(listing) => {
                tables = true;
                found.extend(identify(&listing));
            }
            Err(HostError::Nft { stderr }) if stderr.contains("No such file or directory") => {}
            Err(other) => return Err(other),
        }
    }
    let whole = match found.as_slice() {
        [a, b] if a.digest == b.digest => {
            Some(RulesId { digest: a.digest.clone(), rules: a.rules + b.rules })
        }
        _ => None,
    };
    Ok((whole, tables))
}

fn identify(listing: &[u8]) -> Option<RulesId> {
    let listing: Value = serde_json::from_slice(listing).ok()?;
    let items = listing["nftables"].as_array()?;
    let digest = items.iter().find_map(|item| {
        item["set"]["name"].as_str()?.strip_prefix(DIGEST_SET_PREFIX).map(str::to_owned)
    })?;
    let rules = items.iter().filter(|item| item.get("rule").is_some()).count();
    Some(RulesId { digest, rules })
}

async fn run(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, HostError> {
    let missing = |source: io::Error| HostError::NftMissing { source };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(missing)?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A broken pipe means that nft has ended; its exit status tells why.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(Duration::from_secs(NFT_SECONDS_MAX), work)
        .await
        .map_err(|_| missing(io::ErrorKind::TimedOut.into()))?
        .map_err(missing)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(HostError::Nft { stderr: text.trim().chars().take(STDERR_CHARS_MAX).collect() })
}
