//! Brings the volumes of this node where the state wants them, and claims those that fall to it.
//!
//! What a pass does with one volume is the pure [`wish`]; the rest is doing it. Rule of the claim: it is
//! made only while nothing of this host holds the LUN, so whatever is mounted here in an epoch of this
//! node was mounted in that epoch.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::ClusterState;
use model::Command;
use model::Coordination;
use model::LunPhase;
use model::Membership;
use model::NodeId;
use model::NodeRecord;
use model::Speaker;
use model::VolumeRecord;
use model::attached_elsewhere;
use model::ends_mounts;

use super::Luns;
use super::Plane;
use super::PlaneError;
use super::plane::device_of;
use super::tell::tell;
use crate::dataplane::words::Reign;
use crate::dataplane::words::Told;
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
    GiveBack {
        /// Whether nobody is to see its files any more, on any node.
        detach: bool,
    },
    /// Take it off its LUN.
    Clear {
        /// Whether the file system is destroyed.
        wipe: bool,
    },
    /// It is another node's, or nobody's: do not coordinate it.
    Leave,
    /// See that nothing of it is mounted here, then claim it.
    Claim,
}

/// The task that owns this node's part of volumes on LUNs.
pub(crate) struct Keeper {
    pub(crate) luns: Luns,
    pub(crate) ledger: Arc<NodeLedger>,
    pub(crate) plane: Plane,
}

impl Keeper {
    /// Works until the daemon ends.
    pub(crate) async fn run(self) {
        // What this node knows at its start may be older than what its volume process is doing by order of
        // the daemon before this one: that goes on until the newest is known.
        while let Err(error) = self.ledger.truth.barrier().await {
            tracing::debug!(%error, "volumes are left as they are");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut states = self.ledger.truth.watch();
        loop {
            let told = tell(&self.luns, self.ledger.node, &self.ledger.actor, &self.ledger.truth);
            if let Err(error) = told.await {
                tracing::debug!(%error, "the cluster does not know which LUNs are seen here");
            }
            let state = states.borrow_and_update().clone();
            self.look_after(&state).await;
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

    /// One pass over all volumes on LUNs.
    async fn look_after(&self, state: &ClusterState) {
        let on_luns: Vec<_> =
            state.volumes.values().filter(|it| it.coordination.is_some()).collect();
        let told = match self.plane.states().await {
            Ok(told) => told,
            Err(error) => {
                for volume in on_luns {
                    self.luns.show(volume.id, Err(error.to_string()));
                }
                return;
            }
        };
        if on_luns.is_empty() && told.is_empty() {
            return;
        }
        if let Err(error) = self.plane.members(state).await {
            tracing::warn!(%error, "volumes are not shared with other nodes");
        }
        for volume in on_luns {
            let outcome = self.pass(state, volume, told.get(&volume.id)).await;
            self.luns.show(volume.id, outcome);
        }
        for gone in told.keys().filter(|it| !state.volumes.contains_key(it)) {
            if let Err(error) = self.plane.detach(*gone).await {
                tracing::warn!(volume = %gone, %error, "a volume that is no more is still in use");
            }
        }
    }

    async fn pass(
        &self,
        state: &ClusterState,
        volume: &VolumeRecord,
        told: Option<&Told>,
    ) -> Result<(), String> {
        let Some(me) = state.nodes.get(&self.ledger.node) else { return Ok(()) };
        let Some(now) = &volume.coordination else { return Ok(()) };
        let device = device_of(volume, me);
        let device = device.as_deref();
        match wish(state, volume, me) {
            Wish::Nothing => Ok(()),
            Wish::Leave => {
                self.plane.resign(volume, device).await.map_err(words)?;
                self.show(state, volume, me).await
            }
            Wish::Claim => {
                self.plane.resign(volume, device).await.map_err(words)?;
                free(device).await?;
                let by = Speaker { node: me.id, epoch: me.epoch };
                let claim = Command::VolumeClaim { volume: volume.id, epoch: now.epoch, by };
                self.propose(claim).await
            }
            Wish::GiveBack { detach } => {
                if detach {
                    self.detach(volume).await?;
                    let others = attached_elsewhere(state, volume, me.id);
                    if !others.is_empty() {
                        return Err(format!("it is still in use on {}", others.join(", ")));
                    }
                }
                self.give_back(volume, now, me, device).await
            }
            Wish::Coordinate => self.coordinate(state, volume, now, me, told).await,
            Wish::Clear { wipe } => self.clear(volume, now, me, wipe).await,
        }
    }

    async fn coordinate(
        &self,
        state: &ClusterState,
        volume: &VolumeRecord,
        now: &Coordination,
        me: &NodeRecord,
        told: Option<&Told>,
    ) -> Result<(), String> {
        let device = device_of(volume, me);
        let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        let reign = told.and_then(|it| it.reign.as_ref());
        let ready = now.phase == LunPhase::Ready;
        let good = |it: &Reign| u64::from(it.epoch) == now.epoch && it.ended.is_none();
        match reign {
            // Who may come is told to a coordinator once. A new epoch tells it to everybody.
            Some(reign) if good(reign) && reign.members != members => {
                return self.give_back(volume, now, me, device.as_deref()).await;
            }
            Some(reign) if good(reign) && ready => return self.show(state, volume, me).await,
            Some(reign) if !good(reign) => {
                let why = reign.ended.as_deref().unwrap_or("an epoch that is over");
                tracing::warn!(volume = %volume.name, why, "it is given back, to be taken anew");
                return self.give_back(volume, now, me, device.as_deref()).await;
            }
            _ => {}
        }
        self.surely(volume, now).await?;
        let here = device.as_deref().ok_or_else(|| PlaneError::NoPath.to_string())?;
        match self.plane.coordinate(volume, here, now.epoch, members).await {
            Ok(()) => {}
            Err(PlaneError::Begun(_)) => {
                return self.give_back(volume, now, me, device.as_deref()).await;
            }
            Err(error) => return Err(error.to_string()),
        }
        if !ready {
            let by = Speaker { node: me.id, epoch: me.epoch };
            let done = Command::VolumePrepared { volume: volume.id, epoch: now.epoch, by };
            return self.propose(done).await;
        }
        self.show(state, volume, me).await
    }

    async fn give_back(
        &self,
        volume: &VolumeRecord,
        now: &Coordination,
        me: &NodeRecord,
        device: Option<&Path>,
    ) -> Result<(), String> {
        self.plane.resign(volume, device).await.map_err(words)?;
        if let Some(device) = device {
            unused(device).await?;
        }
        let by = Speaker { node: me.id, epoch: me.epoch };
        self.propose(Command::VolumeGiveBack { volume: volume.id, epoch: now.epoch, by }).await
    }

    async fn clear(
        &self,
        volume: &VolumeRecord,
        now: &Coordination,
        me: &NodeRecord,
        wipe: bool,
    ) -> Result<(), String> {
        self.detach(volume).await?;
        self.surely(volume, now).await?;
        let others = attached_elsewhere(&self.ledger.truth.state(), volume, me.id);
        if !others.is_empty() {
            return Err(format!("it is still in use on {}", others.join(", ")));
        }
        let device = device_of(volume, me).ok_or_else(|| PlaneError::NoPath.to_string())?;
        self.plane.unmark(volume).await.map_err(words)?;
        self.plane.resign(volume, Some(&device)).await.map_err(words)?;
        self.plane.clear(volume, &device, now.epoch, wipe).await.map_err(words)?;
        let by = Speaker { node: me.id, epoch: me.epoch };
        self.propose(Command::VolumeGone { volume: volume.id, epoch: now.epoch, by }).await
    }

    /// Shows the files of a volume that is in use, and those of no other.
    async fn show(
        &self,
        state: &ClusterState,
        volume: &VolumeRecord,
        me: &NodeRecord,
    ) -> Result<(), String> {
        let Some(now) = &volume.coordination else { return Ok(()) };
        if !now.in_use() || me.membership != Membership::Member {
            return self.detach(volume).await;
        }
        let device = device_of(volume, me).filter(|_| volume.kind.fences());
        if let (Some(_), Some(lun)) = (&device, volume.kind.lun()) {
            self.luns.set_attached(lun, true);
            if !me.luns.get(lun).is_some_and(|it| it.attached) {
                // Said first, done then: by the next pass.
                return Ok(());
            }
        }
        let holder = now.holder.filter(|it| state.nodes.contains_key(it));
        let reign = (now.epoch, holder);
        self.plane.follow(volume, device.as_deref(), reign).await.map_err(words)
    }

    async fn detach(&self, volume: &VolumeRecord) -> Result<(), String> {
        self.plane.detach(volume.id).await.map_err(words)?;
        if let Some(lun) = volume.kind.lun() {
            self.luns.set_attached(lun, false);
        }
        Ok(())
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

fn words(error: PlaneError) -> String {
    error.to_string()
}

/// Nothing of this host may have a LUN mounted that it claims.
async fn free(device: Option<&Path>) -> Result<(), String> {
    unused(device.ok_or_else(|| PlaneError::NoPath.to_string())?).await
}

async fn unused(device: &Path) -> Result<(), String> {
    let device = device.to_owned();
    let used = tokio::task::spawn_blocking(move || super::probe::is_in_use(&device)).await;
    match used {
        Ok(false) => Ok(()),
        _ => Err(PlaneError::InUse.to_string()),
    }
}

/// What passes depend on, so that other changes of the state wake nobody.
fn shape(state: &ClusterState) -> impl PartialEq + use<> {
    let attached = |node: &NodeRecord| node.luns.values().filter(|it| it.attached).count();
    let nodes: Vec<_> = state
        .nodes
        .values()
        .map(|it| (it.id, it.fenced.is_some(), attached(it), it.facts.addresses.clone()))
        .collect();
    let volumes: Vec<_> =
        state.volumes.values().map(|it| (it.id, it.coordination.clone())).collect();
    (volumes, nodes)
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
                _ if !now.wants_mount() => Wish::GiveBack { detach: true },
                _ if elsewhere || me.membership != Membership::Member => {
                    Wish::GiveBack { detach: false }
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
                attached: false,
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
        assert_eq!(wishes(&state), [Wish::GiveBack { detach: false }, Wish::Leave]);
        change(&mut state, |it| it.holder = None);
        assert_eq!(wishes(&state), [Wish::Leave, Wish::Claim]);
        change(&mut state, |it| it.maintenance = true);
        assert_eq!(wishes(&state), [Wish::Leave, Wish::Leave]);
        change(&mut state, |it| it.holder = Some(node(1)));
        assert_eq!(wishes(&state), [Wish::GiveBack { detach: true }, Wish::Leave]);
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
