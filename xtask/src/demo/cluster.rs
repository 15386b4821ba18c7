//! The cluster's scene, in labs: a machine's host loses power, once of two nodes with a witness and once
//! of three.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::Step;
use crate::lab::Lab;
use crate::lab::Reach;
use crate::lab::processes;

/// The machine of this scene.
const VM: &str = "demo2";

/// The witness of two nodes, where all of them see it.
const WITNESS: &str = "/muster/share/witness";

/// Plays the scene; gives the lab of three nodes, with its machine.
pub(super) fn play(binary: &Path, reach: Reach, steps: &mut Vec<Step>) -> Result<Lab> {
    two_nodes(binary, steps)?;
    three_nodes(binary, reach, steps)
}

fn three_nodes(binary: &Path, reach: Reach, steps: &mut Vec<Step>) -> Result<Lab> {
    let began = Instant::now();
    println!("\nA lab of three nodes ...");
    let lab = Lab::up_for(binary, super::LAB, 3, reach)?;
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
    // Whoever looks around finds a cluster in which every node takes machines.
    println!("  $ muster node resume {to}");
    lab.muster("n2", &["node", "resume", &to])?;
    Ok(lab)
}

/// The harder loss of the two: of the node that leads, so that the other one needs the witness's
/// vote first.
fn two_nodes(binary: &Path, steps: &mut Vec<Step>) -> Result<()> {
    let began = Instant::now();
    println!("\nA lab of two nodes and a witness ...");
    let lab = Lab::up(binary, super::LAB, 2)?;
    fs::create_dir(lab.share().join("witness")).context("the witness's directory")?;
    println!("  $ muster cluster witness set --directory {WITNESS}");
    lab.muster("n1", &["cluster", "witness", "set", "--directory", WITNESS])?;
    lab.votes("n1", 3)?;
    super::done(steps, "witness", "two nodes and a witness vote", began);

    let leader = lab.leader("n1")?.context("nobody leads")?;
    let other = if leader == "n1" { "n2" } else { "n1" };
    let began = Instant::now();
    lab.boot(&leader, VM)?;
    let said = format!("{VM} runs on {leader}, which leads");
    super::done(steps, "machine of two", &said, began);

    let before = processes(VM)?;
    let began = Instant::now();
    println!("  $ muster lab power-off {leader}");
    lab.lab(&["power-off", &leader])?;
    lab.another_process(VM, &before)?;
    let said = format!("{other} and the witness have decided; it is started there");
    super::done(steps, "failover of two", &said, began);
    lab.answers(other, VM, |node| node == other)?;
    super::done(steps, "answers of two", &format!("its guest answers on {other}"), began);
    let now = processes(VM)?;
    ensure!(now.len() == 1, "{VM} has {} processes", now.len());
    Ok(())
}
