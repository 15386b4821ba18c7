//! LUNs, by node and path.

use std::collections::BTreeMap;

use api::ApiError;
use api::endpoint as ep;
use api::volume::LunNodeView;
use api::volume::LunView;
use model::ClusterState;
use model::LunId;
use model::NodeRecord;

use crate::http::Call;
use crate::http::Mounts;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::DiskList, _, _>(list);
}

async fn list(call: Call<ep::DiskList>) -> Result<Vec<LunView>, ApiError> {
    Ok(disks(&call.app.truth.state()))
}

fn disks(state: &ClusterState) -> Vec<LunView> {
    let mut nodes: Vec<&NodeRecord> = state.nodes.values().map(|node| &**node).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut luns: BTreeMap<&LunId, Vec<LunNodeView>> = BTreeMap::new();
    for lun in nodes.iter().flat_map(|node| node.luns.keys()) {
        luns.entry(lun).or_insert_with(|| nodes.iter().map(|node| seen(node, lun)).collect());
    }
    luns.into_iter().map(|(lun, seen)| disk(state, lun, seen)).collect()
}

fn disk(state: &ClusterState, lun: &LunId, seen: Vec<LunNodeView>) -> LunView {
    let volume = state.volumes.values().find(|it| it.kind.lun() == Some(lun));
    let sizes = || state.nodes.values().filter_map(|it| it.luns.get(lun)).map(|it| it.size);
    let problem = match (sizes().min(), sizes().max()) {
        (Some(least), Some(most)) if least != most => {
            Some(format!("nodes see different sizes: {least} to {most}; rescan it on each"))
        }
        _ => None,
    };
    LunView {
        lun: lun.clone(),
        size: sizes().min().unwrap_or_default(),
        volume: volume.map(|it| it.name.clone()),
        problem,
        nodes: seen,
    }
}

fn seen(node: &NodeRecord, lun: &LunId) -> LunNodeView {
    let seen = node.luns.get(lun);
    LunNodeView {
        node: node.name.clone(),
        paths: seen.map(|it| it.paths.clone()).unwrap_or_default(),
        holds: seen.map(|it| it.contents.words()),
        read_only: seen.is_some_and(|it| it.read_only),
        fences: seen.is_some_and(|it| it.fences),
    }
}
