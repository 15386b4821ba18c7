//! The cluster's scene: three nodes in a lab, a machine on one of them, and its host loses power.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::Step;
use crate::lab::Lab;
use crate::lab::processes;

/// The machine of this scene.
const VM: &str = "demo2";

/// Plays the scene; the lab is gone afterwards.
pub(super) fn play(binary: &Path, steps: &mut Vec<Step>) -> Result<()> {
    let began = Instant::now();
    println!("\nA lab of three nodes ...");
    let lab = Lab::up(binary, "demo", 3)?;
    let said = "three nodes are one cluster, with a shared volume and a fence device";
    super::done(steps, "cluster", said, began);

    let began = Instant::now();
    lab.boot("n2", VM)?;
    super::done(steps, "machine", &format!("{VM} runs on n2, and its guest answers"), began);

    let before = processes(VM)?;
    ensure!(before.len() == 1, "{VM} has {} processes", before.len());
    let began = Instant::now();
    println!("  $ muster lab power-off n2");
    lab.lab(&["power-off", "n2"])?;
    lab.another_process(VM, &before)?;
    super::done(steps, "failover", "n2 has no power; another node has started it", began);
    let to = lab.answers("n1", VM, |node| node != "n2")?;
    super::done(steps, "answers", &format!("its guest answers on {to}"), began);
    let now = processes(VM)?;
    ensure!(now.len() == 1, "{VM} has {} processes", now.len());

    let began = Instant::now();
    println!("  $ muster lab power-on n2");
    lab.lab(&["power-on", "n2"])?;
    lab.whole("n1", "n2").context("after its return")?;
    super::done(steps, "return", "n2 is back and takes part; the machine stays where it is", began);

    let began = Instant::now();
    println!("  $ muster node drain {to}");
    lab.muster("n2", &["node", "drain", &to])?;
    let on = lab.answers("n2", VM, |node| node != to)?;
    super::done(steps, "drain", &format!("{to} is empty; the guest goes on, on {on}"), began);
    Ok(())
}
