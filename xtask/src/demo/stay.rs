//! The end of a demo that somebody watches: what it made goes on, a browser gets in by a link, and
//! Ctrl-C takes everything down.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use super::Demo;
use crate::lab::Lab;
use crate::stop;

/// How often it is looked whether somebody wants the end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Says how to look around, and waits for Ctrl-C (or SIGTERM). Being interrupted is the good end here.
pub(super) fn stay(demo: &Demo, host: bool, lab: Option<&Lab>) -> Result<()> {
    if host {
        demo.what_next();
    }
    if let Some(lab) = lab {
        println!("\n{}", lab_text(lab)?);
    }
    println!("\nAll of it goes on until Ctrl-C, which takes it down.");
    while stop::check().is_ok() {
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Where the lab's web console is, with a link that signs in, and what to try there.
fn lab_text(lab: &Lab) -> Result<String> {
    let by = lab.nodes().first().context("a lab without nodes")?;
    let made = lab.muster(by, &["web"])?;
    let part = |name: &str| made[name].as_str().context("muster web has said no link");
    let (link, fingerprint) = (part("url")?, part("fingerprint")?);
    let (address, _) = link.split_once("/sign-in").context("a strange link")?;
    let at = address.trim_start_matches("https://");
    let vms = lab.muster(by, &["vm", "list"])?;
    let vms = vms.as_array().into_iter().flatten();
    let vms = vms.map(|vm| format!("{} on {}", word(&vm["name"]), word(&vm["node"])));
    let (command, dir) = (lab.binary().display(), lab.dir().display());
    let last = lab.nodes().last().context("a lab without nodes")?;
    Ok(format!(
        "The lab of {} nodes goes on, with {}. Its web console, served by every node:\n\n  \
         {address}\n\n\
         This link signs in, once, within five minutes:\n\n  {link}\n\n\
         The browser does not know the certificate; its SHA-256 is\n  {fingerprint}\n\
         From another machine: ssh -L {port}:{at} THIS-MACHINE, and localhost:{port} in the address.\n\n\
         Watch the page while you type:\n\n  \
         {command} lab --dir {dir} power-off {last}\n  \
         {command} lab --dir {dir} power-on {last}\n  \
         {command} lab --dir {dir} shell {by}        (muster there is that node's)\n  \
         {command} --socket {socket} web     (another link)",
        lab.nodes().len(),
        vms.collect::<Vec<_>>().join(", "),
        port = at.rsplit(':').next().unwrap_or_default(),
        socket = lab.socket(by).display(),
    ))
}

fn word(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Ends one thing after the other, all of them also when one fails; the first failure is told.
pub(super) fn end_all<const N: usize>(ends: [&mut dyn FnMut() -> Result<()>; N]) -> Result<()> {
    ends.into_iter().map(|end| end()).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::end_all;

    #[test]
    fn what_cannot_be_ended_keeps_nothing_else_up() {
        let (mut first, mut last) = (0, 0);
        let failed = end_all([
            &mut || {
                first += 1;
                bail!("the lab does not go")
            },
            &mut || {
                last += 1;
                Ok(())
            },
            &mut || bail!("nor this"),
        ]);
        assert_eq!((first, last), (1, 1));
        assert_eq!(failed.unwrap_err().to_string(), "the lab does not go");
        assert!(end_all([&mut || Ok(())]).is_ok());
    }
}
