//! What this host's QEMU can give the processors of guests.
//!
//! QEMU is asked, not `/proc/cpuinfo`: what a guest can have depends on the processor, on the kernel
//! and on QEMU itself. A machine of no kind is started and told to expand models (QEMU's
//! `query-cpu-model-expansion`), and what comes out is tried: a machine with all of it must start.
//!
//! Some features need others. A set that QEMU starts with has all that its members need, and so has
//! what several such sets have in common: a baseline need not be tried on each node.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::ability::ask;
use crate::engine::Accel;

/// How long QEMU may take for all questions together.
const LIMIT: Duration = Duration::from_secs(20);

/// Most text that is read: an expansion has some 12 KiB.
const TEXT_MAX: u64 = 1 << 20;

/// Features that are no part of what a guest computes with, or that cannot be moved: nested
/// virtualization (whose state is the host's), what KVM tells about itself (which the machine type
/// decides), enclaves, and a time stamp counter that must not change.
const NOT_OFFERED: [&str; 6] = ["vmx", "svm", "kvm", "hv-", "sgx", "invtsc"];

/// The same, by their whole names: what is said of the virtual machine itself, and parts of `svm`.
const NOT_FEATURES: [&str; 17] = [
    "hypervisor",
    "monitor",
    "npt",
    "lbrv",
    "nrip-save",
    "tsc-scale",
    "vmcb-clean",
    "flushbyasid",
    "decodeassists",
    "pause-filter",
    "pfthreshold",
    "avic",
    "v-vmsave-vmload",
    "vgif",
    "vnmi",
    "x2avic",
    "virt-ssbd",
];

/// What QEMU can give beyond a base model, at most what the model `most` has; everything that the
/// host has where none is named.
pub(super) async fn beyond(
    program: &Path,
    accel: Accel,
    base: &str,
    most: Option<&str>,
) -> Result<BTreeSet<String>, String> {
    let help = ask(program, &["-cpu", "help"]).await.map_err(|error| error.to_string())?;
    let names = flags(&help);
    let whole = match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    };
    let mut models = vec![whole, base];
    models.extend(most);
    let text = expand(program, accel, &models).await?;
    let mut expansions = expansions(&text)?.into_iter();
    let mut next = || expansions.next().ok_or_else(|| "QEMU answered too little".to_owned());
    let (whole, least) = (next()?, next()?);
    let has = |set: &BTreeSet<String>, one: &String| set.contains(one);
    let missing: Vec<&String> =
        least.iter().filter(|one| names.contains(*one) && !has(&whole, one)).collect();
    if !missing.is_empty() {
        return Err(format!("not even {base} can be given here: {missing:?} are missing"));
    }
    let limit = match most {
        Some(_) => next()?,
        None => whole.clone(),
    };
    let offered: BTreeSet<String> = names
        .into_iter()
        .filter(|one| has(&whole, one) && has(&limit, one) && !has(&least, one))
        .collect();
    prove(program, accel, base, &offered).await?;
    Ok(offered)
}

fn accel_word(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    }
}

/// Names of features, from what QEMU prints as help.
fn flags(help: &str) -> BTreeSet<String> {
    let (_, list) = help.split_once("CPUID flags:").unwrap_or_default();
    let is_feature = |word: &&str| {
        !NOT_OFFERED.iter().any(|begin| word.starts_with(begin)) && !NOT_FEATURES.contains(word)
    };
    list.split_whitespace().filter(is_feature).map(str::to_owned).collect()
}

/// Asks QEMU what models are made of, and gives all that it said.
async fn expand(program: &Path, accel: Accel, models: &[&str]) -> Result<String, String> {
    let mut script = json!({ "execute": "qmp_capabilities" }).to_string();
    for name in models {
        let arguments = json!({ "type": "full", "model": { "name": name } });
        let ask = json!({ "execute": "query-cpu-model-expansion", "arguments": arguments });
        script.push('\n');
        script.push_str(&ask.to_string());
    }
    script.push('\n');
    script.push_str(&json!({ "execute": "quit" }).to_string());
    let args = ["-machine", "none", "-accel", accel_word(accel)];
    run(program, &args, &script).await
}

/// Starts a machine with everything that is to be offered; QEMU refuses what it cannot give.
async fn prove(
    program: &Path,
    accel: Accel,
    base: &str,
    features: &BTreeSet<String>,
) -> Result<(), String> {
    let cpu = model::GuestCpu { base: base.to_owned(), features: features.clone() };
    let cpu = cpu.to_qemu();
    let args = ["-machine", "pc", "-m", "16M", "-accel", accel_word(accel), "-cpu", &cpu];
    let script =
        format!("{}\n{}", json!({ "execute": "qmp_capabilities" }), json!({ "execute": "quit" }));
    let text = run(program, &args, &script).await?;
    // It greets, takes the capabilities and quits, or it ends before it says a word.
    match text.lines().filter(|line| line.contains("\"return\"")).count() {
        2.. => Ok(()),
        _ => Err("QEMU does not start with all that it says it can give".to_owned()),
    }
}

async fn run(program: &Path, args: &[&str], script: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(["-S", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let work = async {
        let mut text = Vec::new();
        if let (Some(mut stdin), Some(stdout)) = (stdin, stdout) {
            // One that has ended takes no more; what it said before says why.
            let _ = stdin.write_all(format!("{script}\n").as_bytes()).await;
            stdout.take(TEXT_MAX).read_to_end(&mut text).await?;
        }
        child.wait().await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("QEMU does not answer".to_owned()),
    }
}

/// The features that are on, for each model that was asked for.
fn expansions(text: &str) -> Result<Vec<BTreeSet<String>>, String> {
    let mut all = Vec::new();
    for line in text.lines() {
        let Ok(answer) = serde_json::from_str::<Value>(line) else { continue };
        if let Some(error) = answer.get("error") {
            let words = error["desc"].as_str().unwrap_or("QEMU refused a question");
            return Err(words.to_owned());
        }
        let Some(props) = answer["return"]["model"]["props"].as_object() else { continue };
        let on = props.iter().filter(|(_, value)| value.as_bool() == Some(true));
        all.push(on.map(|(name, _)| name.clone()).collect());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: &str = "/usr/bin/qemu-system-x86_64";
    const BASE: &str = "Nehalem-v1";

    async fn offered(most: &str) -> Result<BTreeSet<String>, String> {
        beyond(Path::new(QEMU), Accel::Tcg, BASE, Some(most)).await
    }

    #[tokio::test]
    async fn newer_models_have_more_and_no_model_has_what_the_host_cannot_give() {
        let same = offered(BASE).await.unwrap();
        assert_eq!(same, BTreeSet::new());
        let westmere = offered("Westmere-v1").await.unwrap();
        assert!(westmere.contains("aes") && !westmere.contains("avx2"), "{westmere:?}");
        let haswell = offered("Haswell-v4").await.unwrap();
        assert!(haswell.contains("avx2") && haswell.is_superset(&westmere), "{haswell:?}");
        // The emulator has no such thing, whatever the model says.
        assert!(!haswell.contains("invpcid") && !haswell.contains("spec-ctrl"), "{haswell:?}");
        let all = beyond(Path::new(QEMU), Accel::Tcg, BASE, None).await.unwrap();
        assert!(all.is_superset(&haswell) && all.len() > haswell.len());
        assert!(all.iter().all(|one| !one.starts_with("svm") && !one.starts_with("kvm")));
    }

    #[tokio::test]
    async fn a_model_that_is_not_there_is_an_error_that_names_it() {
        let error = offered("Nonsense-v9").await.unwrap_err();
        assert!(error.contains("Nonsense-v9"), "{error}");
        // The emulator cannot even be this: nothing is promised on top of it.
        let error = beyond(Path::new(QEMU), Accel::Tcg, "Opteron_G3-v1", None).await.unwrap_err();
        assert!(error.contains("misalignsse"), "{error}");
    }

    #[tokio::test]
    async fn what_qemu_cannot_start_with_is_not_offered() {
        let impossible = BTreeSet::from(["invpcid".to_owned()]);
        assert!(prove(Path::new(QEMU), Accel::Tcg, BASE, &impossible).await.is_err());
        assert_eq!(prove(Path::new(QEMU), Accel::Tcg, BASE, &BTreeSet::new()).await, Ok(()));
        let error = run(Path::new("/nonexistent/qemu"), &[], "").await.unwrap_err();
        assert!(!error.is_empty());
    }
}
