//! Talking to the nft program: one transaction in, one listing out, both JSON.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::host::Announced;
use crate::host::HostError;
use crate::rules::DIGEST_SET_PREFIX;
use crate::rules::FAMILIES;
use crate::rules::LEARNT_SETS;
use crate::rules::RulesId;
use crate::tag::InstanceTag;
use crate::tag::LinkName;

/// nft answers in milliseconds; one that hangs must not hold up the switch for good.
const NFT_SECONDS_MAX: u64 = 20;
/// As much of nft's complaint as is shown.
const STDERR_CHARS_MAX: usize = 2_000;

/// Applies a transaction: all of it or nothing.
pub(super) async fn load(transaction: &Value) -> Result<(), HostError> {
    let input = transaction.to_string();
    run(&["-j", "-f", "-"], input.as_bytes()).await.map(|_| ())
}

/// What of ours nft has.
pub(super) struct Tables {
    /// The rules, when both tables carry the same digest.
    pub(super) rules: Option<RulesId>,
    /// Whether any table of rules exists.
    pub(super) tables: bool,
    /// Whether addresses are noted.
    pub(super) learning: bool,
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
pub(super) async fn observe(tag: &InstanceTag) -> Result<Tables, HostError> {
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
    let chain = ["-j", "list", "chain", "bridge", &tag.learning_table(), "learn"];
    let learning = match run(&chain, &[]).await {
        Ok(_) => true,
        Err(HostError::Nft { .. }) => false,
        Err(other) => return Err(other),
    };
    Ok(Tables { rules: whole, tables, learning })
}

/// Addresses noted by the kernel, the latest first.
pub(super) async fn announced(tag: &InstanceTag) -> Result<Vec<Announced>, HostError> {
    let mut found: Vec<(u64, Announced)> = Vec::new();
    for set in LEARNT_SETS {
        match run(&["-j", "list", "set", "bridge", &tag.learning_table(), set], &[]).await {
            Ok(listing) => found.extend(learnt(&listing)),
            // Nothing has been applied yet.
            Err(HostError::Nft { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    // The one that is kept longest was announced last.
    found.sort_by_key(|(left, _)| std::cmp::Reverse(*left));
    Ok(found.into_iter().map(|(_, announced)| announced).collect())
}

fn learnt(listing: &[u8]) -> Vec<(u64, Announced)> {
    let listing: Value = serde_json::from_slice(listing).unwrap_or_default();
    let items = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let elements = items.iter().filter_map(|item| item["set"]["elem"].as_array()).flatten();
    let element = |element: &Value| {
        let element = &element["elem"];
        let [tap, address] = element["val"]["concat"].as_array()?.as_slice() else { return None };
        let address = address.as_str()?.parse().ok()?;
        let tap = LinkName::new(tap.as_str()?);
        Some((element["expires"].as_u64().unwrap_or_default(), Announced { tap, address }))
    };
    elements.filter_map(element).collect()
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
