//! Disks that go to the machine that waits for a migration of this one, over NBD.
//!
//! The target's QEMU serves its own, still blank, disks; the source's QEMU has each of them as a node and
//! mirrors to it. As for the memory, both speak through local sockets of which we hold the other end
//! (see [`super::migrate`]), and we carry the bytes. A connection says itself which disk it is about.
//!
//! QEMU makes a node that is served ready to be written to, and lets the guest's device have it when the
//! migration has arrived; until then the device has no say in it.

use serde_json::json;
use tokio::sync::mpsc;

use super::image;
use super::machine::Shared;
use super::migrate;
use super::mirror;
use crate::engine::EngineError;
use crate::engine::Extent;
use crate::engine::ImageSlot;
use crate::engine::Outgoing;

/// Name of the sockets, as that of the memory's.
pub(super) const DOOR: &str = "muster-disks";

/// Most disks of one machine that go at once: more than a machine has places for.
const DISKS_MAX: usize = 256;

/// The name by which both sides know a disk.
fn export(slot: ImageSlot) -> String {
    match slot {
        ImageSlot::Disk(disk) => format!("disk-{disk}"),
        ImageSlot::Firmware => "firmware".to_owned(),
    }
}

/// Serves disks of a machine that waits.
pub(super) async fn receive(shared: &Shared, slots: &[ImageSlot]) -> Result<(), EngineError> {
    let addr = json!({ "type": "unix", "data": { "path": DOOR, "abstract": true } });
    let server = json!({ "addr": addr, "max-connections": slots.len() });
    shared.run("nbd-server-start", server).await?;
    for slot in slots {
        let (place, side, _) = mirror::what(shared, *slot)?;
        let served = json!({
            "type": "nbd", "id": format!("in-{place}"), "name": export(*slot),
            "node-name": image::top_node(&mirror::key_of(&place, side)),
            // What the source flushes is flushed, and nothing else has to be.
            "writable": true, "writethrough": false,
        });
        shared.run("block-export-add", served).await?;
    }
    Ok(())
}

/// Serves them no more. Returns when nothing is on its way to the files.
pub(super) async fn receive_end(shared: &Shared) -> Result<(), EngineError> {
    match shared.run("nbd-server-stop", json!({})).await {
        // It is not running.
        Ok(_) | Err(EngineError::Command { .. }) => {}
        Err(error) => return Err(error),
    }
    let left = shared.run("query-block-exports", json!({})).await?;
    match left.as_array().is_some_and(Vec::is_empty) {
        true => Ok(()),
        false => Err(EngineError::Garbage("disks are served without a server".to_owned())),
    }
}

/// Opens the way out.
pub(super) fn send_way(shared: &Shared, count: usize) -> Result<Outgoing, EngineError> {
    let pid = shared.lock().record.run.pid;
    let opened = migrate::way_out(pid, DOOR);
    let (listener, path, inside) =
        opened.map_err(EngineError::io("open a way out of the machine"))?;
    let count = count.min(DISKS_MAX);
    let (tell, connections) = mpsc::channel(count.max(1));
    tokio::spawn(migrate::accept(listener, path, tell, count));
    shared.lock().disks_way = Some(inside);
    Ok(Outgoing { connections })
}

/// Begins to copy one disk over it.
pub(super) async fn send_disk(
    shared: &Shared,
    slot: ImageSlot,
    extent: Extent,
) -> Result<(), EngineError> {
    let (place, side, files) = mirror::what(shared, slot)?;
    mirror::not_copied(shared, &place).await?;
    let Some(way) = shared.lock().disks_way.clone() else {
        let why = "there is no way out".to_owned();
        return Err(EngineError::Command { command: "blockdev-add".to_owned(), why });
    };
    if shared.lock().record.targets.remove(&place).is_some() {
        shared.store()?;
    }
    let (old, new) = (mirror::key_of(&place, side), mirror::key_of(&place, side + 1));
    // Of an attempt that failed half-way.
    shared.close_images(&new, files).await;
    let node = json!({
        "driver": "nbd", "node-name": image::top_node(&new), "export": export(slot),
        "server": { "type": "unix", "path": way },
        // What is empty stays empty, also where a guest writes zeroes or trims.
        "discard": "unmap", "detect-zeroes": "unmap",
    });
    let sync = match extent {
        Extent::OwnFile if files > 1 => "top",
        Extent::OwnFile | Extent::Whole => "full",
    };
    let work = async {
        shared.run("blockdev-add", node).await?;
        mirror::start(shared, (&place, side), (&old, &new), sync).await
    };
    let begun = work.await;
    if begun.is_err() {
        shared.close_images(&new, files).await;
    }
    begun
}
