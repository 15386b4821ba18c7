//! Brings the volumes of this node where the state wants them, and claims those that fall to it.
//!
//! What a pass does with one volume is the pure [`wish`]; the rest is doing it. Rule of the claim: it is
//! made only while nothing of this host holds the LUN, so whatever is mounted here in an epoch of this
//! node was mounted in that epoch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::ClusterState;
use model::Command;
use model::Coordination;
use model::LunPhase;
use model::Membership;
use model::NodeRecord;
use model::Speaker;
use model::VolumeRecord;
use model::ends_mounts;

use super::Luns;
use super::PlaneError;
use super::VolumePlane;
use super::plane::device_of;
use super::tell::tell;
use crate::ledger::NodeLedger;

/// How often LUNs are looked at when nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is to be done with a volume here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Nothing, or nothing that is known for sure.
    Nothing,
    /// Coordinate it.
    Coordinate,
    /// Unmount it and give it back.
    GiveBack,
    /// Take it off its LUN.
    Clear {
        /// Whether the file system is destroyed.
        wipe: bool,
    },
    /// It is another node's, or nobody's: see that nothing of it is here, and no more.
    Leave,
    /// See that nothing of it is here, then claim it.
    Claim,
}

/// The task that owns this node's part of volumes on LUNs.
pub(crate) struct Keeper {
    pub(crate) luns: Luns,
    pub(crate) ledger: Arc<NodeLedger>,
    pub(crate) plane: Arc<dyn VolumePlane>,
}

impl Keeper {
    /// Works until the daemon ends.
    pub(crate) async fn run(self) {
        let mut states = self.ledger.truth.watch();
        loop {
            let told = tell(&self.luns, self.ledger.node, &self.ledger.actor, &self.ledger.truth);
            if let Err(error) = told.await {
                tracing::debug!(%error, "the cluster does not know which LUNs are seen here");
            }
            let state = states.borrow_and_update().clone();
            let on_luns = state.volumes.values().filter(|it| it.coordination.is_some());
            for volume in on_luns {
                let outcome = self.pass(&state, volume).await;
                self.luns.show(volume.id, outcome);
            }
            let shape = shape(&state);
            let quiet = tokio::time::sleep(LOOK_EVERY);
            tokio::pin!(quiet);
            loop {
                tokio::select! {
                    () = &mut quiet => break,
                    () = self.luns.hurry.notified() => break,
                    changed = states.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        if self::shape(&states.borrow_and_update()) != shape {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn pass(&self, state: &ClusterState, volume: &VolumeRecord) -> Result<(), String> {
        let Some(me) = state.nodes.get(&self.ledger.node) else { return Ok(()) };
        let Some(now) = &volume.coordination else { return Ok(()) };
        let device = device_of(volume, me);
        let (device, epoch) = (device.as_deref(), now.epoch);
        let wish = wish(state, volume, me);
        let by = Speaker { node: me.id, epoch: me.epoch };
        let words = |error: PlaneError| error.to_string();
        let id = volume.id;
        match wish {
            Wish::Nothing => Ok(()),
            Wish::Leave => {
                let left = self.plane.is_coordinated(volume).await;
                if left { self.plane.leave(volume, device).await.map_err(words) } else { Ok(()) }
            }
            Wish::Claim => {
                self.plane.leave(volume, None).await.map_err(words)?;
                free(device).await?;
                self.propose(Command::VolumeClaim { volume: id, epoch, by }).await
            }
            Wish::GiveBack => {
                self.plane.leave(volume, device).await.map_err(words)?;
                self.propose(Command::VolumeGiveBack { volume: id, epoch, by }).await
            }
            Wish::Coordinate => {
                let ready = now.phase == LunPhase::Ready;
                if ready && self.plane.is_coordinated(volume).await {
                    return Ok(());
                }
                self.surely(volume, now).await?;
                let device = device.ok_or_else(|| PlaneError::NoPath.to_string())?;
                self.plane.coordinate(volume, device, epoch).await.map_err(words)?;
                if ready {
                    return Ok(());
                }
                self.propose(Command::VolumePrepared { volume: id, epoch, by }).await
            }
            Wish::Clear { wipe } => {
                self.plane.leave(volume, device).await.map_err(words)?;
                self.surely(volume, now).await?;
                let device = device.ok_or_else(|| PlaneError::NoPath.to_string())?;
                self.plane.clear(volume, device, epoch, wipe).await.map_err(words)?;
                self.propose(Command::VolumeGone { volume: id, epoch, by }).await
            }
        }
    }

    /// The state says so still, and not only as this node last heard it. What may happen between this and
    /// the deed is the reservation's to stop, or the loss of power that is the proof without one.
    async fn surely(&self, volume: &VolumeRecord, seen: &Coordination) -> Result<(), String> {
        self.ledger.truth.barrier().await.map_err(|error| error.to_string())?;
        let state = self.ledger.truth.state();
        let now = state.volumes.get(&volume.id).and_then(|it| it.coordination.as_ref());
        let fenced = state.nodes.get(&self.ledger.node).is_none_or(|it| it.fenced.is_some());
        if now == Some(seen) && !fenced {
            return Ok(());
        }
        Err("it changed hands meanwhile".to_owned())
    }

    async fn propose(&self, command: Command) -> Result<(), String> {
        self.ledger.propose(command).await.map_err(|error| error.to_string())
    }
}

/// Nothing of this host may hold a LUN that it claims.
async fn free(device: Option<&Path>) -> Result<(), String> {
    let device = device.ok_or_else(|| PlaneError::NoPath.to_string())?.to_owned();
    let used = tokio::task::spawn_blocking(move || super::probe::is_in_use(&device)).await;
    match used {
        Ok(false) => Ok(()),
        _ => Err(PlaneError::InUse.to_string()),
    }
}

/// What passes depend on, so that other changes of the state wake nobody.
fn shape(state: &ClusterState) -> Vec<(model::VolumeId, Option<Coordination>, Vec<bool>)> {
    let well = || state.nodes.values().map(|node| node.fenced.is_some()).collect();
    state.volumes.values().map(|it| (it.id, it.coordination.clone(), well())).collect()
}

/// What this node is to do with a volume.
fn wish(state: &ClusterState, volume: &VolumeRecord, me: &NodeRecord) -> Wish {
    let Some(now) = &volume.coordination else { return Wish::Nothing };
    // Whether it may do anything at all is being decided by others.
    if me.fenced.is_some() {
        return Wish::Nothing;
    }
    let well = |node| {
        let node = state.nodes.get(&node);
        node.is_some_and(|it| it.fenced.is_none() && it.membership == Membership::Member)
    };
    match now.holder {
        Some(holder) if holder == me.id => {
            let elsewhere = now.wanted.is_some_and(|wanted| wanted != me.id && well(wanted));
            match now.phase {
                LunPhase::Leaving { wipe } => Wish::Clear { wipe },
                _ if !now.wants_mount() || elsewhere || me.membership != Membership::Member => {
                    Wish::GiveBack
                }
                _ => Wish::Coordinate,
            }
        }
        Some(holder) => {
            let fenced = state.nodes.get(&holder).and_then(|it| it.fenced.as_ref());
            let over = fenced.is_some_and(|it| ends_mounts(&it.proof, volume.kind.fences()));
            if over { claim(state, volume, now, me) } else { Wish::Leave }
        }
        None => claim(state, volume, now, me),
    }
}

fn claim(state: &ClusterState, volume: &VolumeRecord, now: &Coordination, me: &NodeRecord) -> Wish {
    let idle = now.phase == LunPhase::Ready && now.maintenance;
    let mine = placement::coordinator(state, volume) == Some(me.id);
    if mine && !idle { Wish::Claim } else { Wish::Leave }
}

#[cfg(test)]
mod tests {
    use model::Bytes;
    use model::FenceProof;
    use model::Fenced;
    use model::FsKind;
    use model::LunContents;
    use model::LunSeen;
    use model::Millis;
    use model::NodeId;
    use model::UnixMillis;
    use model::VolumeId;
    use model::VolumeKind;
    use uuid::Uuid;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn world(fences: bool, holder: Option<u128>) -> ClusterState {
        let mut state = ClusterState::default();
        let lun: model::LunId = "lun".parse().unwrap();
        for n in 1..=2 {
            let name = format!("n{n}").parse().unwrap();
            let mut record = NodeRecord::new(node(n), name, UnixMillis::new(0));
            let seen = LunSeen {
                paths: vec!["/dev/x".to_owned()],
                size: Bytes::gib(1),
                read_only: false,
                fences,
                contents: LunContents::Empty,
            };
            record.luns.insert(lun.clone(), seen);
            state.nodes.insert(record.id, Arc::new(record));
        }
        let path = "/muster/volumes/v".to_owned();
        let record = VolumeRecord {
            id: VolumeId::new(Uuid::from_u128(9)),
            name: "v".parse().unwrap(),
            kind: VolumeKind::Lun { path, lun, fs: FsKind::Xfs, uuid: String::new(), fences },
            created: UnixMillis::new(0),
            coordination: Some(Coordination {
                epoch: 3,
                holder: holder.map(node),
                wanted: None,
                maintenance: false,
                phase: LunPhase::Ready,
            }),
        };
        state.volumes.insert(record.id, Arc::new(record));
        state
    }

    fn change(state: &mut ClusterState, change: impl FnOnce(&mut Coordination)) {
        let id = VolumeId::new(Uuid::from_u128(9));
        let record = Arc::make_mut(state.volumes.get_mut(&id).unwrap());
        change(record.coordination.as_mut().unwrap());
    }

    fn fence(state: &mut ClusterState, n: u128, proof: FenceProof) {
        let node = Arc::make_mut(state.nodes.get_mut(&node(n)).unwrap());
        node.fenced = Some(Fenced { at: UnixMillis::new(1), proof });
    }

    fn wishes(state: &ClusterState) -> [Wish; 2] {
        let volume = state.volumes.values().next().unwrap();
        [1, 2].map(|n| wish(state, volume, state.nodes.get(&node(n)).unwrap()))
    }

    #[test]
    fn one_node_has_it_and_the_others_have_nothing_of_it() {
        assert_eq!(wishes(&world(true, Some(1))), [Wish::Coordinate, Wish::Leave]);
        assert_eq!(wishes(&world(true, None)), [Wish::Claim, Wish::Leave]);
        let mut state = world(true, Some(1));
        change(&mut state, |it| it.wanted = Some(node(2)));
        assert_eq!(wishes(&state), [Wish::GiveBack, Wish::Leave]);
        change(&mut state, |it| it.holder = None);
        assert_eq!(wishes(&state), [Wish::Leave, Wish::Claim]);
        change(&mut state, |it| it.maintenance = true);
        assert_eq!(wishes(&state), [Wish::Leave, Wish::Leave]);
        change(&mut state, |it| it.holder = Some(node(1)));
        assert_eq!(wishes(&state), [Wish::GiveBack, Wish::Leave]);
        change(&mut state, |it| it.phase = LunPhase::Leaving { wipe: true });
        assert_eq!(wishes(&state), [Wish::Clear { wipe: true }, Wish::Leave]);
    }

    #[test]
    fn what_a_fenced_node_had_is_taken_over_where_its_mounts_have_ended() {
        let lease = FenceProof::LeaseOver { waited: Millis::from_secs(60) };
        for (fences, proof, other) in [
            (false, lease.clone(), Wish::Leave),
            (true, lease, Wish::Claim),
            (false, FenceProof::Statement, Wish::Claim),
            (true, FenceProof::Left, Wish::Leave),
        ] {
            let mut state = world(fences, Some(1));
            fence(&mut state, 1, proof);
            assert_eq!(wishes(&state), [Wish::Nothing, other]);
        }
    }
}
