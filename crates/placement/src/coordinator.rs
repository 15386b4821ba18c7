//! Who should coordinate a volume that nobody coordinates, or whose coordinator is fenced.

use model::ClusterState;
use model::LunContents;
use model::Membership;
use model::NodeId;
use model::NodeMode;
use model::NodeRecord;
use model::VolumeRecord;

/// The node for it: the one that is wanted, or of those that can the one that coordinates least. None
/// where no node can. The same state gives the same answer on each node, so one of them only claims it.
pub fn coordinator(state: &ClusterState, volume: &VolumeRecord) -> Option<NodeId> {
    let wanted = volume.coordination.as_ref()?.wanted;
    let can = |node: &&NodeRecord| sees(node, volume) && is_well(node);
    let nodes = || state.nodes.values().map(|node| &**node).filter(can);
    if let Some(wanted) = nodes().find(|node| Some(node.id) == wanted) {
        return Some(wanted.id);
    }
    let burden = |node: NodeId| {
        let holds = |it: &&std::sync::Arc<VolumeRecord>| {
            it.coordination.as_ref().is_some_and(|it| it.holder == Some(node))
        };
        state.volumes.values().filter(holds).count()
    };
    let cost = |node: &NodeRecord| {
        (node.mode != NodeMode::Active, node.quarantine.is_some(), burden(node.id), node.id)
    };
    nodes().min_by_key(|node| cost(node)).map(|node| node.id)
}

fn is_well(node: &NodeRecord) -> bool {
    node.fenced.is_none() && node.membership == Membership::Member
}

/// A node that cannot read the LUN because another one has reserved it still has a path to it.
fn sees(node: &NodeRecord, volume: &VolumeRecord) -> bool {
    let seen = volume.kind.lun().and_then(|lun| node.luns.get(lun));
    seen.is_some_and(|seen| {
        !seen.read_only && !matches!(&seen.contents, LunContents::Unreadable { .. })
    })
}

#[cfg(test)]
mod tests {
    use model::Bytes;
    use model::Coordination;
    use model::FsKind;
    use model::LunId;
    use model::LunPhase;
    use model::LunSeen;
    use model::UnixMillis;
    use model::VolumeId;
    use model::VolumeKind;
    use std::sync::Arc;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(uuid::Uuid::from_u128(n))
    }

    fn volume(n: u128, holder: Option<u128>) -> VolumeRecord {
        let lun: LunId = "lun".parse().unwrap();
        let path = format!("/muster/volumes/v{n}");
        VolumeRecord {
            id: VolumeId::new(uuid::Uuid::from_u128(n)),
            name: format!("v{n}").parse().unwrap(),
            kind: VolumeKind::Lun {
                path,
                lun,
                fs: FsKind::Xfs,
                uuid: String::new(),
                fences: false,
            },
            created: UnixMillis::new(0),
            coordination: Some(Coordination {
                epoch: 1,
                holder: holder.map(node),
                wanted: None,
                maintenance: false,
                phase: LunPhase::Ready,
            }),
        }
    }

    fn world(contents: &[LunContents]) -> ClusterState {
        let mut state = ClusterState::default();
        for (n, contents) in (1..).zip(contents) {
            let name = format!("n{n}").parse().unwrap();
            let mut record = NodeRecord::new(node(n), name, UnixMillis::new(0));
            let contents = contents.clone();
            let (paths, size) = (Vec::new(), Bytes::gib(1));
            let seen =
                LunSeen { paths, size, read_only: false, fences: false, attached: false, contents };
            record.luns.insert("lun".parse().unwrap(), seen);
            state.nodes.insert(record.id, Arc::new(record));
        }
        state
    }

    #[test]
    fn the_least_burdened_node_with_a_path_gets_it() {
        let dead = LunContents::Unreadable { why: "EIO".to_owned() };
        let mut state = world(&[LunContents::Empty, LunContents::Empty, dead]);
        let free = volume(50, None);
        assert_eq!(coordinator(&state, &free), Some(node(1)));
        let other = volume(51, Some(1));
        state.volumes.insert(other.id, Arc::new(other));
        assert_eq!(coordinator(&state, &free), Some(node(2)), "n1 has one already, n3 no path");
        let mut wanted = free.clone();
        wanted.coordination.as_mut().unwrap().wanted = Some(node(1));
        assert_eq!(coordinator(&state, &wanted), Some(node(1)));
        wanted.coordination.as_mut().unwrap().wanted = Some(node(3));
        assert_eq!(coordinator(&state, &wanted), Some(node(2)), "it has no path");
        for n in [1, 2] {
            Arc::make_mut(state.nodes.get_mut(&node(n)).unwrap()).membership = Membership::Leaving;
        }
        assert_eq!(coordinator(&state, &free), None);
    }
}
