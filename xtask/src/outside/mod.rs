//! A guest as it is seen from outside of its machine, by somebody in its network: for the bench and
//! the demo of live migration.
//!
//! ```text
//!   the world of a lab, or a namespace of a bench          (space)
//!     10.90.3.1  --- switch ---  10.90.3.200  the guest of xtask/guests/bench, on whichever node
//!        takes its ticks         every 5 ms   UDP, stamped as they come             (ticks, stamp)
//!        pings it                every 10 ms                                        (ping, stamp)
//!        asks for a page         every 50 ms  HTTP, each request by itself          (web)
//! ```
//!
//! All of it is done by threads inside the namespace; nothing of it is in the machine's own network.

pub(crate) mod ping;
pub(crate) mod space;
mod stamp;
pub(crate) mod ticks;
pub(crate) mod web;

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;

use self::space::Space;
use self::ticks::Watch;
use crate::lab::Lab;

/// The guest's address; it stands in `xtask/guests/bench/on-event`.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 90, 3, 200);

/// Whoever looks: a lab's world in the network of its guests.
pub(crate) const HOST: &str = "10.90.3.1/24";

/// The adapter of all such guests, which have the same address one after the other.
pub(crate) const MAC: &str = "52:54:00:77:00:10";

/// The image, and the network, of such machines in a lab.
const IMAGE: &str = "bench";
const NETWORK: &str = "lan";

/// A lab's node puts its guests into the network that all nodes share by this bridge.
const BRIDGE: &str = "lan0";

/// Brings what all such machines need into a lab.
pub(crate) fn prepare(lab: &Lab, image: &Path) -> Result<()> {
    let image = image.display().to_string();
    let import = ["image", "import", IMAGE, &image, "--format", "raw", "--volume", "shared"];
    lab.muster("n1", &import)?;
    lab.muster("n1", &["network", "create", NETWORK, "--bridge", BRIDGE])?;
    Ok(())
}

/// Makes a machine with such a guest, starts it, and waits until it answers. Returns its node, and
/// what hears it.
pub(crate) fn boot(lab: &Lab, name: &str, memory_mib: u64) -> Result<(String, Watch)> {
    let memory = format!("{memory_mib}M");
    let nic = format!("network={NETWORK},mac={MAC}");
    let create = [
        "vm", "create", name, "--image", IMAGE, "--memory", &memory, "--volume", "shared", "--nic",
        &nic,
    ];
    lab.muster("n1", &create)?;
    lab.muster("n1", &["vm", "start", name])?;
    let on = lab.answers("n1", name, |_| true)?;
    Ok((on, Watch::new(&Space::open(&lab.world())?)?))
}

/// A figure of a migration as the command line tells it, or an operation: what was `measured`, or
/// `predicted`.
pub(crate) fn told(report: &Value, part: &str, what: &str) -> Result<f64> {
    let value = report[part][what].as_f64();
    value.with_context(|| format!("the migration tells no {part}.{what}: {report}"))
}
