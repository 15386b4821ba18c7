//! Figures for monitoring programs: of this node and its machines, and what it sees of the cluster.
//!
//! Every node tells of its own machines only, so that a sum over all nodes counts each once. Nothing
//! here needs a majority: what is lost with one is what monitoring is for.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use api::cluster::ClusterView;
use api::types::NodeView;
use api::types::Phase;
use api::types::VmView;
use api::types::VolumeView;
use model::OpState;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::cluster::status::gather;
use crate::views::volume_view;

/// What the text is, as programs ask for it (OpenMetrics 1.0).
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Everything that is told at one moment.
struct Picture {
    node: NodeView,
    cluster: ClusterView,
    vms: Vec<VmView>,
    volumes: Vec<VolumeView>,
    operations: usize,
}

/// All figures of this moment, as text.
pub(crate) async fn text(app: Arc<App>) -> Result<String, std::fmt::Error> {
    let cluster = gather(&app).await;
    let node = app.node_view(&app.truth.state()).await;
    // Disks and volumes are looked at, and one that does not answer must hold up nobody else.
    let writing = tokio::task::spawn_blocking(move || write(&app, cluster, node));
    writing.await.unwrap_or(Err(std::fmt::Error))
}

fn write(app: &App, cluster: ClusterView, node: NodeView) -> Result<String, std::fmt::Error> {
    let state = app.truth.state();
    let own = state.vms.values().filter(|vm| vm.owner == app.node && vm.deleted.is_none());
    let picture = Picture {
        node,
        cluster,
        vms: own.map(|vm| app.vm_view(&state, vm)).collect(),
        volumes: state.volumes.values().map(|volume| volume_view(&state, volume)).collect(),
        operations: state
            .ops
            .values()
            .filter(|op| matches!(op.state, OpState::Running { .. }))
            .count(),
    };
    let mut registry = Registry::with_prefix("muster");
    let mut sheet = Sheet(&mut registry);
    node_figures(&mut sheet, &picture);
    cluster_figures(&mut sheet, &picture.cluster);
    machines(&mut sheet, &picture.vms);
    volumes(&mut sheet, &picture.volumes);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

struct Sheet<'a>(&'a mut Registry);

impl Sheet<'_> {
    /// One figure, or one for each set of labels.
    #[allow(clippy::cast_precision_loss, reason = "figures of monitoring are floating point")]
    fn rows(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, u64)>) {
        let floats = rows.into_iter().map(|(labels, value)| (labels, value as f64));
        self.floats(name, help, floats);
    }

    fn floats(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    #[allow(clippy::cast_precision_loss, reason = "figures of monitoring are floating point")]
    fn one(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value as f64);
        self.0.register(name, help, gauge);
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

/// A word of the API.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn node_figures(sheet: &mut Sheet<'_>, picture: &Picture) {
    let view = &picture.node;
    let build = vec![
        ("version", view.version.clone()),
        ("qemu", view.qemu.clone().unwrap_or_default()),
        ("accelerator", word(&view.accelerator)),
        ("node", view.name.to_string()),
    ];
    sheet.rows("build_info", "Versions of the node; always 1", [(build, 1)]);
    sheet.one("node_cpus", "Processors of the node", u64::from(view.cpus));
    let kinds = [
        ("total", view.memory),
        ("available", view.memory_available),
        ("promised", view.memory_promised),
    ];
    let kinds = kinds.map(|(kind, size)| (label("kind", kind), size.get()));
    let help = "Memory of the node: all, what is available, what machines may use";
    sheet.rows("node_memory_bytes", help, kinds);
    let kinds = [("total", view.storage), ("available", view.storage_available)];
    let kinds = kinds.map(|(kind, size)| (label("kind", kind), size.get()));
    sheet.rows("node_storage_bytes", "The file system of the node's own data", kinds);
    let running = u64::from(view.vms_running);
    sheet.one("node_vms_running", "Machines with a process on the node", running);
    let problems = view.problems.len() as u64;
    sheet.one("node_problems", "What is wrong with the node; muster node show names it", problems);
    let mode = (label("mode", word(&view.mode)), 1);
    sheet.rows("node_mode", "What an administrator wants of the node", [mode]);
    let quarantined = u64::from(view.quarantine.is_some());
    sheet.one("node_quarantined", "Whether the node is not trusted with machines", quarantined);
    sheet.one("operations_running", "Operations under way", picture.operations as u64);
}

fn cluster_figures(sheet: &mut Sheet<'_>, view: &ClusterView) {
    let health = (label("health", word(&view.health)), 1);
    sheet.rows("cluster_health", "How the cluster is, as this node sees it", [health]);
    sheet.one("cluster_voters", "Who decides, with the witness", u64::from(view.voters));
    let may_lose = u64::from(view.may_lose);
    sheet.one("cluster_may_lose", "Voters that may be lost now without a stop", may_lose);
    let leads = u64::from(view.leader == Some(view.node));
    sheet.one("cluster_leader", "Whether this node leads", leads);
    let reached = view.nodes.iter().map(|it| (label("node", &it.name), u64::from(it.reachable)));
    sheet.rows("cluster_node_reachable", "Whether this node reaches another one", reached);
    let ends = view
        .nodes
        .iter()
        .filter_map(|it| Some((label("node", &it.name), it.certificate_ends?.get() / 1_000)));
    let help = "When a node's certificate ends, in seconds since 1970";
    sheet.rows("cluster_certificate_end_seconds", help, ends);
    if let Some(witness) = &view.witness {
        let reached = u64::from(witness.reachable);
        sheet.one("cluster_witness_reachable", "Whether this node reaches the witness", reached);
    }
}

fn machines(sheet: &mut Sheet<'_>, vms: &[VmView]) {
    let of = |vm: &VmView| vec![("vm", vm.name.to_string()), ("id", vm.id.to_string())];
    let phases = vms.iter().map(|vm| {
        let mut labels = of(vm);
        labels.push(("phase", word(&vm.phase)));
        (labels, 1)
    });
    sheet.rows("vm_phase", "The phase of a machine", phases);
    // What wants a person: failed or hung, and whatever else the machine's note says.
    let trouble = |vm: &VmView| {
        u64::from(matches!(vm.phase, Phase::Failed | Phase::Hung) || vm.note.is_some())
    };
    let troubles = vms.iter().map(|vm| (of(vm), trouble(vm)));
    sheet.rows("vm_trouble", "Whether a machine wants a look", troubles);
    let cpus = vms.iter().map(|vm| (of(vm), u64::from(vm.cpus.count)));
    sheet.rows("vm_cpus", "Processors of a machine", cpus);
    let memory = vms.iter().map(|vm| (of(vm), vm.memory.size.get()));
    sheet.rows("vm_memory_bytes", "Memory of a machine", memory);
    let runs = || vms.iter().filter_map(|vm| Some((vm, vm.run.as_ref()?)));
    let busy = runs().map(|(vm, run)| (of(vm), f64::from(run.cpu_percent) / 100.0));
    sheet.floats("vm_cpu_used", "Processors of the host that a machine uses", busy);
    let resident = runs().map(|(vm, run)| (of(vm), run.resident.get()));
    sheet.rows("vm_resident_bytes", "Memory of the host that a machine has", resident);
    let beats = runs().map(|(vm, _)| {
        let mut labels = of(vm);
        labels.push(("heartbeat", word(&vm.guest.heartbeat)));
        (labels, 1)
    });
    sheet.rows("vm_heartbeat", "What is heard of the guest", beats);
    let disks = vms.iter().flat_map(|vm| {
        vm.disks.iter().map(move |disk| {
            let mut labels = of(vm);
            labels.push(("disk", disk.name.to_string()));
            (labels, disk.allocated.map_or(0, |size| size.get()))
        })
    });
    sheet.rows("vm_disk_allocated_bytes", "What a disk takes on its volume", disks);
}

fn volumes(sheet: &mut Sheet<'_>, volumes: &[VolumeView]) {
    let of = |volume: &VolumeView| label("volume", &volume.name);
    let usable = volumes.iter().map(|it| (of(it), u64::from(it.problem.is_none())));
    sheet.rows("volume_usable", "Whether this node can use a volume", usable);
    let sizes = volumes.iter().filter_map(|it| Some((of(it), it.size?.get())));
    sheet.rows("volume_size_bytes", "Size of a volume", sizes);
    let free = volumes.iter().filter_map(|it| Some((of(it), it.free?.get())));
    sheet.rows("volume_free_bytes", "What is free on a volume", free);
}
