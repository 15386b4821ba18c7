//! `cargo xtask bench ui`: the web console in a real browser, with thousands of machines that only
//! pretend. What is measured, and how, stands in `web/browser/bench.spec.ts`; here is the daemon behind
//! it, and the report.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;
use serde_json::json;

use super::daemon::Daemon;
use super::daemon::Engine;
use super::host::build;
use super::host::create;
use super::host::name;
use super::process;
use super::report::Report;
use crate::run::root;
use crate::stop;
use crate::web;

/// How long the work that creating machines leaves may take.
const CALM_LIMIT: Duration = Duration::from_secs(300);

/// How many of the machines run.
const RUNNING: usize = 100;

/// What the browser may take beside the minutes in which its memory is watched.
const BROWSER_LIMIT: Duration = Duration::from_secs(300);

/// Options of `cargo xtask bench ui`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Machines in the state.
    #[arg(long, default_value_t = 8_000)]
    vms: usize,
    /// How long the page's memory is watched under a stream of events, in minutes.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Measure this program instead of building it; its pages are those that were built with it.
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
}

/// A figure as the browser's script writes it.
#[derive(Debug, Deserialize)]
struct Figure {
    metric: String,
    value: f64,
    unit: String,
    #[serde(default)]
    target: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let binary = match &args.muster {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display()))?,
        None => {
            web::build()?;
            build()?
        }
    };
    let mut report = Report::default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    report.note("host processors", cpus as f64, "");
    report.note("load average before", process::load(), "");
    let mut daemon = Daemon::with_tls(&binary, Engine::Fake)?;
    daemon.start()?;
    let result = measure(&mut report, &daemon, args);
    result.with_context(|| format!("the daemon's last words:\n{}", daemon.log_tail()))?;
    report.note("load average after", process::load(), "");
    let missed = report.finish("ui")?;
    if !missed.is_empty() {
        bail!("targets missed:\n  {}", missed.join("\n  "));
    }
    Ok(())
}

fn measure(report: &mut Report, daemon: &Daemon, args: &Args) -> Result<()> {
    println!("\n{} machines, fake engine", args.vms);
    create(daemon, args.vms)?;
    let running: Vec<String> = (0..RUNNING.min(args.vms)).map(name).collect();
    let mut client = daemon.client();
    for vm in &running {
        client.post(&format!("/v1/vms/{vm}/start"), &json!({}))?;
    }
    daemon.calm(CALM_LIMIT)?;
    let token = daemon.muster(&["token", "create", "bench", "--role", "operator"])?;
    let link = daemon.muster(&["web"])?;
    let (link, token) = (link.trim(), token.trim());
    let url = link.split("/sign-in").next().context("`muster web` printed no address")?;
    let out = daemon.file("browser.json");
    let given = daemon.file("given.json");
    let told = json!({
        "link": link, "token": token, "out": out, "vms": args.vms, "minutes": args.minutes,
        "running": running,
    });
    fs::write(&given, told.to_string())?;
    browse(daemon, url, &given, Duration::from_secs(args.minutes * 60))?;
    let text = fs::read_to_string(&out).context("the browser's script wrote no figures")?;
    let figures: Vec<Figure> = serde_json::from_str(&text)?;
    for Figure { metric, value, unit, target } in figures {
        let unit = match unit.as_str() {
            "ms" => "ms",
            "kB" => "kB",
            "MiB" => "MiB",
            "%" => "%",
            other => bail!("{metric}: the unit {other} is not known"),
        };
        match target {
            Some(target) => report.at_most(metric, value, unit, target),
            None => report.note(metric, value, unit),
        }
    }
    Ok(())
}

/// Runs the browser's script.
fn browse(daemon: &Daemon, url: &str, given: &Path, watched: Duration) -> Result<()> {
    let web = root().join("web");
    let playwright = web.join("node_modules/.bin/playwright");
    if !playwright.exists() {
        bail!("the browser's runner is missing: cargo xtask web");
    }
    let home = daemon.file("home");
    let mut child = Command::new(playwright)
        .args(["test", "bench"])
        .current_dir(web)
        .env("MUSTER_WEB_URL", url)
        .env("MUSTER_WEB_GIVEN", given)
        // What the browser keeps goes with the bench.
        .env("HOME", &home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("CI", "1")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .spawn()
        .context("the browser's runner does not start")?;
    let ended =
        stop::until("the browser has ended", BROWSER_LIMIT + watched, || Ok(child.try_wait()?));
    if ended.is_err() {
        // It may have ended meanwhile.
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended?;
    if !status.success() {
        bail!("the browser's script failed ({status})");
    }
    Ok(())
}
