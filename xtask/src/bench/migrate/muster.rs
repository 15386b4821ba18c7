//! The same guest as a machine of Muster's, migrated between the two nodes of a lab by the command
//! that a person would type. It hears and is heard in the lab's world, at the switch that both
//! nodes' guests are plugged into.

use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::Value;

use super::Kind;
use super::passage::Done;
use super::passage::MIB;
use super::passage::Passage;
use super::passage::Predicted;
use super::passage::observe;
use crate::lab::Lab;
use crate::outside;
use crate::outside::ticks::Watch;

/// The machine; off and gone when it is dropped with its lab, or by [`Muster::end`].
pub(super) struct Muster<'lab> {
    lab: &'lab Lab,
    kind: Kind,
    name: String,
    on: String,
    watch: Watch,
}

/// What runs guests on the nodes, by QEMU's word.
pub(super) fn accelerator(lab: &Lab) -> Result<String> {
    let nodes = lab.muster("n1", &["node", "list"])?;
    let word = nodes[0]["accelerator"].as_str().context("a node without an accelerator")?;
    Ok(word.to_owned())
}

impl<'lab> Muster<'lab> {
    /// Boots the guest. It rests.
    pub(super) fn boot(lab: &'lab Lab, kind: Kind) -> Result<Self> {
        let name = format!("bench-{}", kind.name);
        let (on, watch) = outside::boot(lab, &name, kind.memory_mib)?;
        watch.run(kind.load)?;
        watch.rest()?;
        Ok(Self { lab, kind, name, on, watch })
    }

    /// Migrates the guest to the other node.
    pub(super) fn migrate(&mut self) -> Result<Passage> {
        let to = self.lab.nodes().iter().find(|node| **node != self.on);
        let to = to.context("a lab of one node")?.clone();
        let passage = observe(&self.watch, self.kind.load, || {
            let began = Instant::now();
            let said = self.lab.muster(&self.on, &["vm", "migrate", &self.name, "--to", &to])?;
            let ended = Instant::now();
            let wall_ms = ended.duration_since(began).as_secs_f64() * 1e3;
            read(&said, wall_ms, ended).map(Some)
        })?;
        let view = self.lab.muster(&to, &["vm", "show", &self.name])?;
        ensure!(view["node"] == to.as_str(), "{} is on {}, not on {to}", self.name, view["node"]);
        self.on = to;
        passage.context("Muster said nothing of the migration")
    }

    /// Takes the machine away, so that the next one may have its address.
    pub(super) fn end(self) -> Result<()> {
        self.lab.muster(&self.on, &["vm", "off", &self.name, "--yes"])?;
        self.lab.muster(&self.on, &["vm", "delete", &self.name, "--purge", "--yes"])?;
        Ok(())
    }
}

/// What `muster vm migrate --json` says.
fn read(said: &Value, wall_ms: f64, ended: Instant) -> Result<Done> {
    let figure = |part: &str, what: &str| outside::told(said, part, what);
    Ok(Done {
        ended,
        total_ms: figure("measured", "total_ms")?,
        wall_ms,
        pause_ms: figure("measured", "pause_ms")?,
        mib: figure("measured", "bytes")? / MIB,
        passes: figure("measured", "passes")?,
        predicted: Some(Predicted {
            total_ms: figure("predicted", "total_ms")?,
            pause_ms: figure("predicted", "pause_ms")?,
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::read;

    #[test]
    fn what_vm_migrate_says_is_understood() {
        let measured = json!({"total_ms": 231, "pause_ms": 14, "passes": 3, "bytes": 3 << 20});
        let predicted = json!({"total_ms": 250, "pause_ms": 20});
        let said = json!({
            "vm": "a", "from": "n1", "to": "n2", "predicted": predicted, "measured": measured,
        });
        let done = read(&said, 260.0, Instant::now()).unwrap();
        assert_eq!((done.total_ms, done.wall_ms, done.mib), (231.0, 260.0, 3.0));
        assert_eq!(done.predicted.map(|it| it.pause_ms), Some(20.0));
        let error = read(&json!({"measured": {}}), 1.0, Instant::now()).unwrap_err().to_string();
        assert!(error.contains("measured.total_ms"), "{error}");
    }
}
