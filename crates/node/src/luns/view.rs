//! What is shown of a volume on a LUN: who coordinates it, and how each node reaches its files.

use std::collections::BTreeMap;
use std::time::Duration;

use api::volume::CoordinationView;
use api::volume::VolumeAccess;
use api::volume::VolumeNodeView;
use futures::future::join_all;
use model::Bytes;
use model::ClusterState;
use model::Coordination;
use model::LunContents;
use model::NodeId;
use model::NodeRecord;
use model::UnixMillis;
use model::VolumeId;
use model::VolumeRecord;
use model::ends_mounts;
use peer::Method;

use crate::app::App;
use crate::dataplane::words::Shown;
use crate::dataplane::words::Told;
use crate::dataplane::words::Way;

/// How long another node may take to say how it reaches its volumes.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// What each node said of its volumes; none of one that did not answer.
pub(crate) struct Answers(BTreeMap<NodeId, Option<BTreeMap<VolumeId, Told>>>);

/// Asks all nodes; only this one where no volume lies on a LUN.
pub(crate) async fn gather(app: &App, state: &ClusterState) -> Answers {
    if state.volumes.values().all(|it| it.coordination.is_none()) {
        return Answers(BTreeMap::new());
    }
    let asked = state.nodes.keys().map(|node| async move {
        let told: Option<Vec<Told>> = if *node == app.node {
            Some(app.luns.told().await)
        } else {
            app.peers.ask(*node, Method::VOLUMES, &(), ASK_LIMIT).await.ok()
        };
        (*node, told.map(|told| told.into_iter().map(|it| (it.volume, it)).collect()))
    });
    Answers(join_all(asked).await.into_iter().collect())
}

impl Answers {
    fn of(&self, node: NodeId, volume: VolumeId) -> Option<Option<&Told>> {
        Some(self.0.get(&node)?.as_ref()?.get(&volume))
    }

    /// All and free space, as this node knows it.
    pub(crate) fn space(&self, node: NodeId, volume: VolumeId) -> Option<(Bytes, Bytes)> {
        let (all, free) = self.of(node, volume)??.shown.as_ref()?.space?;
        Some((Bytes::new(all), Bytes::new(free)))
    }
}

/// Who coordinates a volume, and how each node reaches it. None of one that lies on no LUN.
pub(crate) fn coordination_view(
    app: &App,
    state: &ClusterState,
    volume: &VolumeRecord,
    answers: &Answers,
) -> Option<CoordinationView> {
    let now = volume.coordination.as_ref()?;
    let name = |node: NodeId| state.nodes.get(&node).map(|it| it.name.clone());
    let on = |node: &std::sync::Arc<NodeRecord>| volume_on(app, volume, now, node, answers);
    let mut nodes: Vec<VolumeNodeView> = state.nodes.values().map(on).collect();
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    Some(CoordinationView {
        epoch: now.epoch,
        coordinator: now.holder.and_then(name),
        wanted: now.wanted.and_then(name),
        maintenance: now.maintenance,
        phase: now.phase,
        nodes,
    })
}

fn volume_on(
    app: &App,
    volume: &VolumeRecord,
    now: &Coordination,
    node: &NodeRecord,
    answers: &Answers,
) -> VolumeNodeView {
    let seen = volume.kind.lun().and_then(|lun| node.luns.get(lun));
    let path = seen.is_some_and(|it| !matches!(it.contents, LunContents::Unreadable { .. }));
    let (access, way, since) = match answers.of(node.id, volume.id) {
        None => (VolumeAccess::Unknown, Some("the node does not answer".to_owned()), None),
        Some(told) => access(told.and_then(|it| it.shown.as_ref()), now, volume),
    };
    let trouble = (node.id == app.node).then(|| app.luns.trouble(volume.id)).flatten();
    let since = trouble.as_ref().map(|it| it.since).or(since);
    let why = trouble.map(|it| it.why).or_else(|| lost(volume, now, node)).or(way);
    VolumeNodeView { node: node.name.clone(), access, path, why, since }
}

/// How a node says that it reaches the files, why not directly, and since when.
fn access(
    shown: Option<&Shown>,
    now: &Coordination,
    volume: &VolumeRecord,
) -> (VolumeAccess, Option<String>, Option<UnixMillis>) {
    let Some(shown) = shown.filter(|it| it.mounted) else {
        let problem = shown.and_then(|it| it.problem.clone());
        let why = match now.in_use() {
            true => problem.or_else(|| Some("it is not mounted there yet".to_owned())),
            false => None,
        };
        return (VolumeAccess::None, why, None);
    };
    let (access, why) = match shown.way {
        Way::Direct => (VolumeAccess::Direct, None),
        Way::NoPath if !volume.kind.fences() => (
            VolumeAccess::BlockRedirected,
            Some("the LUN takes no reservations, so only its coordinator writes to it"),
        ),
        Way::NoPath => (VolumeAccess::BlockRedirected, Some("it has no path to the LUN")),
        Way::NoKey => {
            (VolumeAccess::BlockRedirected, Some("its path to the LUN does not work, or not yet"))
        }
        Way::FileRedirected => (
            VolumeAccess::FileRedirected,
            Some("what was read or written last cannot be reached directly: holes, odd blocks"),
        ),
        Way::Waiting => (VolumeAccess::Waiting, Some("there is no coordinator to talk to yet")),
    };
    (access, why.map(str::to_owned), Some(shown.since))
}

/// What is the matter with a coordinator that was lost.
fn lost(volume: &VolumeRecord, now: &Coordination, node: &NodeRecord) -> Option<String> {
    let fenced = node.fenced.as_ref().filter(|_| now.holder == Some(node.id))?;
    let why = match ends_mounts(&fenced.proof, volume.kind.fences()) {
        true => "it is fenced; another node takes over",
        false => {
            "it is fenced by the end of its lease, which does not end a mount, and the LUN takes no \
             reservations: nobody takes over before it is back"
        }
    };
    Some(why.to_owned())
}
