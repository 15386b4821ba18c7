//! What the API shows: records of the state joined with what is seen on this node.

use std::collections::HashMap;

use api::history::Figure;
use api::types::Accelerator;
use api::types::DiskView;
use api::types::FilesystemView;
use api::types::GuestView;
use api::types::Heartbeat;
use api::types::ImageView;
use api::types::NetworkView;
use api::types::NicView;
use api::types::NodeLoadView;
use api::types::NodeView;
use api::types::OpView;
use api::types::Phase;
use api::types::ProgressView;
use api::types::RunView;
use api::types::TokenView;
use api::types::VmSummary;
use api::types::VmView;
use api::types::VolumeView;
use model::Bytes;
use model::CloudInit;
use model::ClusterState;
use model::DiskSource;
use model::ImagePlace;
use model::ImageRecord;
use model::NetworkRecord;
use model::NicSpec;
use model::NodeId;
use model::OpRecord;
use model::Power;
use model::TokenRecord;
use model::UnixMillis;
use model::VmRecord;
use model::VolumeRecord;
use vm::engine::Accel;
use vm::guest::FreezeState;
use vm::guest::Heartbeat as Beat;
use vm::lifecycle::Phase as Seen;
use vm::lifecycle::RunStatus;
use vm::lifecycle::Status;
use vm::lifecycle::VmFiles;

use crate::app::App;
use crate::history::Object;
use crate::history::Values;
use crate::host;
use crate::http::reached_at;

impl App {
    /// One line of the list.
    pub(crate) fn vm_summary(&self, state: &ClusterState, vm: &VmRecord) -> VmSummary {
        let status = self.hub.status(vm.id).unwrap_or_default();
        // Thousands of lines are made at a time: what only a run has is looked for only then.
        let (heartbeat, addresses) = match &status.run {
            None => (Heartbeat::Off, Vec::new()),
            Some(_) => {
                let nics = self.nic_views(vm, &status).into_iter();
                (self.guest_view(vm, &status).heartbeat, nics.flat_map(|it| it.addresses).collect())
            }
        };
        VmSummary {
            id: vm.id,
            name: vm.name.clone(),
            phase: phase(vm, &status),
            heartbeat,
            cpus: vm.spec.cpus.count,
            memory: vm.spec.memory.size,
            cpu_percent: self.samples.process(vm.id).cpu_percent,
            addresses,
            node: node_name(state, vm),
            tags: vm.spec.tags.clone(),
            busy: vm.busy().and_then(|op| state.ops.get(&op)).map(|op| op.request.verb()),
        }
    }

    /// The machines of this node, for other nodes' lists.
    pub(crate) fn own_vm_summaries(&self) -> Vec<VmSummary> {
        let state = self.truth.state();
        let own = state.vms.values().filter(|vm| vm.owner == self.node);
        own.map(|vm| self.vm_summary(&state, vm)).collect()
    }

    /// Everything of a VM.
    pub(crate) fn vm_view(&self, state: &ClusterState, vm: &VmRecord) -> VmView {
        let status = self.hub.status(vm.id).unwrap_or_default();
        let spec = vm.spec.clone();
        VmView {
            id: vm.id,
            name: vm.name.clone(),
            phase: phase(vm, &status),
            power: vm.power,
            note: status.note.clone(),
            node: node_name(state, vm),
            volume: vm.volume.and_then(|id| Some(state.volumes.get(&id)?.name.clone())),
            pinned: vm.pinned.clone(),
            cpu: vm.cpu.clone(),
            generation: vm.generation,
            revision: vm.revision,
            cpus: spec.cpus,
            memory: spec.memory,
            firmware: spec.firmware,
            profile: spec.profile,
            disks: self.disk_views(state, vm),
            nics: self.nic_views(vm, &status),
            services: spec.services,
            on_crash: spec.on_crash,
            description: spec.description,
            tags: spec.tags,
            keys: spec.keys,
            cloud_init: spec.cloud_init.map(without_secrets),
            saved: vm.saved,
            op: vm.busy().and_then(|op| state.ops.get(&op)).map(|op| self.op_view(op)),
            last_exit: vm.last_exit.clone(),
            answered: vm.answered,
            created: vm.created,
            deleted: vm.deleted,
            run: status.run.as_ref().map(|run| self.run_view(vm, run)),
            guest: self.guest_view(vm, &status),
        }
    }

    fn run_view(&self, vm: &VmRecord, run: &RunStatus) -> RunView {
        let sample = self.samples.process(vm.id);
        let ability = self.reconcilers.ability();
        RunView {
            pid: run.info.pid,
            started: UnixMillis::new(run.info.started_ms),
            accelerator: accelerator(run.info.accel),
            accelerator_reason: ability
                .as_ref()
                .map_or_else(String::new, |it| it.accel_reason.clone()),
            qemu: ability.map_or_else(String::new, |it| it.engine),
            cpus: run.cpus,
            memory: run.balloon.map_or(run.memory, |left| left.min(run.memory)),
            cpu_percent: sample.cpu_percent,
            resident: sample.resident,
            missing_limits: run.info.missing_limits.clone(),
        }
    }

    fn disk_views(&self, state: &ClusterState, vm: &VmRecord) -> Vec<DiskView> {
        let files = VmFiles::new(&self.volumes.vms_dir(vm), vm.id);
        vm.spec
            .disks
            .iter()
            .map(|disk| DiskView {
                id: disk.id,
                name: disk.name.clone(),
                size: disk.size,
                allocated: self.volumes.allocated(vm, files.disk(disk)).map(Bytes::new),
                image: match disk.source {
                    DiskSource::Blank => None,
                    DiskSource::Image { image } => {
                        state.images.get(&image).map(|image| image.name.to_string())
                    }
                },
                format: disk.format,
                read_only: disk.read_only,
            })
            .collect()
    }

    fn nic_views(&self, vm: &VmRecord, status: &Status) -> Vec<NicView> {
        let by_agent = self.addresses_by_mac(vm);
        vm.spec
            .nics
            .iter()
            .map(|nic| {
                let mut view = nic_view(nic);
                if status.run.is_some() {
                    view.addresses = match by_agent.get(&nic.mac.to_string()) {
                        Some(addresses) if !addresses.is_empty() => addresses.clone(),
                        _ => {
                            self.samples.addresses(nic.id).iter().map(ToString::to_string).collect()
                        }
                    };
                }
                view
            })
            .collect()
    }

    /// An operation with its progress.
    pub(crate) fn op_view(&self, op: &OpRecord) -> OpView {
        let progress = if op.is_running() { self.progresses.get(op.id) } else { None };
        OpView {
            id: op.id,
            verb: op.request.verb(),
            title: op.title(),
            target: op.target.clone(),
            vm: op.request.vm(),
            image: op.request.image(),
            actor: op.actor.clone(),
            begun: op.begun,
            deadline: op.deadline,
            state: op.state.clone(),
            migration: op.migration.as_deref().cloned(),
            progress: progress.map(|progress| ProgressView {
                step: progress.step,
                done: progress.done,
                total: progress.total,
            }),
        }
    }

    /// A network with what is wrong with it here.
    pub(crate) fn network_view(
        &self,
        state: &ClusterState,
        network: &NetworkRecord,
    ) -> NetworkView {
        let key = network.name.key();
        let adapters = state
            .vms
            .values()
            .filter(|vm| vm.deleted.is_none())
            .flat_map(|vm| vm.spec.nics.iter().map(move |nic| (vm, nic)))
            .filter(|(_, nic)| nic.network.key() == key)
            .map(|(vm, nic)| format!("{}/{}", vm.name, nic.name))
            .collect();
        NetworkView {
            id: network.id,
            name: network.name.clone(),
            kind: network.kind.clone(),
            created: network.created,
            adapters,
            problem: self.ports.problem(network.id),
        }
    }

    /// This node.
    pub(crate) async fn node_view(&self, state: &ClusterState) -> NodeView {
        let memory = host::memory();
        let (storage, storage_available) = host::space(&self.config.data_dir);
        // The engine itself is asked by one party only: a QEMU that does not answer holds up whoever asks it.
        let ability = self.reconcilers.ability_soon().await;
        let reconcilers = self.reconcilers.views();
        let failed = reconcilers.iter().filter(|view| view.result != "ok");
        let problems = failed.map(|view| format!("{}: {}", view.name, view.result)).collect();
        let record = state.nodes.get(&self.node);
        NodeView {
            id: self.node,
            name: self.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            cpus: host::cpus(),
            memory: memory.total,
            memory_available: memory.available,
            memory_promised: promised(state, self.node),
            storage,
            storage_available,
            vms_running: u32::try_from(self.hub.running().len()).unwrap_or(u32::MAX),
            qemu: ability.as_ref().map(|ability| ability.engine.clone()),
            accelerator: ability
                .as_ref()
                .map_or(Accelerator::Tcg, |ability| accelerator(ability.accel)),
            accelerator_reason: ability
                .as_ref()
                .map_or_else(String::new, |ability| ability.accel_reason.clone()),
            missing_limits: ability.map_or_else(Vec::new, |ability| ability.missing_limits),
            mode: record.map_or_else(Default::default, |node| node.mode),
            quarantine: record.and_then(|node| node.quarantine),
            load: self.history.recent(Object::Node).map(|seen| load(&seen, host::cpus())),
            problems,
            tls_fingerprint: self.tls.as_ref().map(|tls| tls.fingerprint.clone()),
            tls_address: self.tls.as_ref().map(|tls| reached_at(self, tls.address).to_string()),
            reconcilers,
        }
    }

    /// Directory of the VMs' directories.
    pub(crate) fn vms_dir(&self) -> std::path::PathBuf {
        self.config.data_dir.join("vms")
    }

    fn guest_view(&self, vm: &VmRecord, status: &Status) -> GuestView {
        let seen = match (&status.run, self.hub.guest(vm.id)) {
            (Some(_), Some(guest)) => guest.status().borrow().clone(),
            _ => return GuestView { heartbeat: Heartbeat::Off, ..GuestView::default() },
        };
        let facts = seen.facts.as_deref().cloned().unwrap_or_default();
        let os = facts.os.unwrap_or_default();
        GuestView {
            heartbeat: match seen.heartbeat {
                Beat::NotInstalled => Heartbeat::NotInstalled,
                Beat::Ok => Heartbeat::Ok,
                Beat::NoContact => Heartbeat::NoContact,
                Beat::Lost => Heartbeat::Lost,
                Beat::Off => Heartbeat::Off,
            },
            agent: facts.agent,
            hostname: facts.hostname,
            os: os.pretty.or(os.id),
            kernel: os.kernel,
            timezone: facts.timezone,
            users: facts.users,
            filesystems: facts
                .filesystems
                .into_iter()
                .map(|it| FilesystemView {
                    mountpoint: it.mountpoint,
                    kind: it.kind,
                    total: it.total.map(Bytes::new),
                    used: it.used.map(Bytes::new),
                })
                .collect(),
            frozen: seen.freeze != FreezeState::Thawed,
            cpus_online: facts.processors.map(|it| it.in_use()),
            cpus_offline: facts.processors.map(|it| it.idle()),
            memory_online: facts.memory.map(|it| Bytes::new(it.in_use())),
            memory_offline: facts.memory.map(|it| Bytes::new(it.idle())),
        }
    }

    /// Addresses that the guest's agent tells, without loopback and prefix, by Ethernet address.
    fn addresses_by_mac(&self, vm: &VmRecord) -> HashMap<String, Vec<String>> {
        let Some(guest) = self.hub.guest(vm.id) else { return HashMap::new() };
        let Some(facts) = guest.status().borrow().facts.clone() else { return HashMap::new() };
        facts
            .interfaces
            .iter()
            .filter_map(|interface| {
                let addresses = interface
                    .addresses
                    .iter()
                    .filter_map(|address| address.split('/').next())
                    // What every adapter has and nobody outside can use.
                    .filter(|address| !address.starts_with("fe80:"))
                    .map(str::to_owned)
                    .collect();
                Some((interface.mac.clone()?, addresses))
            })
            .collect()
    }
}

/// An image with its users.
pub(crate) fn image_view(state: &ClusterState, image: &ImageRecord) -> ImageView {
    ImageView {
        id: image.id,
        name: image.name.clone(),
        source: image.source.clone(),
        format: image.format,
        state: image.state.clone(),
        created: image.created,
        used_by: state.users_of_image(image.id).into_iter().cloned().collect(),
        place: image.place,
    }
}

/// A volume, as this node sees it.
pub(crate) fn volume_view(state: &ClusterState, volume: &VolumeRecord) -> VolumeView {
    let problem = crate::volumes::check(volume).err().map(|error| error.to_string());
    let (size, free) = match &volume.coordination {
        None => crate::host::space(std::path::Path::new(volume.kind.path())),
        // The volume process knows it; whoever looks here waits while there is no coordinator.
        Some(_) => Default::default(),
    };
    let vms = state.vms.values().filter(|vm| vm.volume == Some(volume.id));
    let lies_here =
        |place| matches!(place, ImagePlace::Volume { volume: on, .. } if on == volume.id);
    let images = state.images.values().filter(|image| lies_here(image.place));
    VolumeView {
        id: volume.id,
        name: volume.name.clone(),
        kind: volume.kind.clone(),
        created: volume.created,
        used_by: vms
            .map(|vm| vm.name.to_string())
            .chain(images.map(|image| image.name.to_string()))
            .collect(),
        size: problem.is_none().then_some(size),
        free: problem.is_none().then_some(free),
        problem,
        coordination: None,
    }
}

/// A token without anything secret.
pub(crate) fn token_view(token: &TokenRecord) -> TokenView {
    TokenView {
        id: token.id,
        name: token.name.clone(),
        role: token.role,
        created: token.created,
        expires: token.expires,
        certificate: token.certificate.clone(),
    }
}

/// Memory that VMs with a process may use.
pub(crate) fn promised(state: &ClusterState, node: NodeId) -> Bytes {
    state
        .vms
        .values()
        .filter(|vm| vm.owner == node)
        .filter(|vm| matches!(vm.power, Power::Running | Power::Paused))
        .fold(Bytes::ZERO, |sum, vm| sum.checked_add(vm.spec.memory.size).unwrap_or(sum))
}

fn node_name(state: &ClusterState, vm: &VmRecord) -> String {
    state.nodes.get(&vm.owner).map_or_else(|| vm.owner.to_string(), |node| node.name.to_string())
}

fn nic_view(nic: &NicSpec) -> NicView {
    NicView {
        id: nic.id,
        name: nic.name.clone(),
        mac: nic.mac,
        network: nic.network.clone(),
        reserved_address: nic.address.map(|address| address.to_string()),
        addresses: Vec::new(),
        link_up: nic.link_up,
    }
}

/// What was measured of a node, in whole percent.
fn load(seen: &Values, cpus: u32) -> NodeLoadView {
    let of =
        |figure: Figure| seen[Figure::ALL.iter().position(|it| *it == figure).expect("one of all")];
    // What is not a number becomes 0.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 100")]
    let whole = |percent: f32| percent.round().clamp(0.0, 100.0) as u8;
    #[allow(clippy::cast_precision_loss, reason = "hosts have some hundreds")]
    let each = of(Figure::CpuPercent) / cpus.max(1) as f32;
    NodeLoadView {
        cpu: whole(each),
        waits_for_cpu: whole(of(Figure::CpuPressure)),
        waits_for_memory: whole(of(Figure::MemoryPressure)),
        waits_for_disks: whole(of(Figure::IoPressure)),
    }
}

fn without_secrets(mut cloud_init: CloudInit) -> CloudInit {
    if cloud_init.password_hash.is_some() {
        cloud_init.password_hash = Some("(set)".to_owned());
    }
    // Raw user-data may hold anything, passwords among it.
    if cloud_init.user_data.is_some() {
        cloud_init.user_data = Some("(set)".to_owned());
    }
    cloud_init
}

fn accelerator(accel: Accel) -> Accelerator {
    match accel {
        Accel::Kvm => Accelerator::Kvm,
        Accel::Tcg => Accelerator::Tcg,
    }
}

/// One word for the settled state and what is seen.
fn phase(vm: &VmRecord, status: &Status) -> Phase {
    if vm.deleted.is_some() {
        return Phase::Deleted;
    }
    match status.phase {
        Seen::Creating => Phase::Creating,
        Seen::Starting => Phase::Starting,
        Seen::Running => Phase::Running,
        Seen::Paused => Phase::Paused,
        Seen::Saving => Phase::Saving,
        Seen::Migrating => Phase::Migrating,
        Seen::Stopping => Phase::Stopping,
        Seen::Hung => Phase::Hung,
        Seen::Failed => Phase::Failed,
        Seen::Looking | Seen::Off => match vm.power {
            Power::Off => Phase::Off,
            Power::Saved => Phase::Saved,
            Power::Running | Power::Paused => Phase::Starting,
        },
    }
}
