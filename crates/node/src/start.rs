//! Starting and ending the daemon.

use std::fs;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use cluster::raft::PeerService;
use cluster::raft::Timing;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::Millis;
use model::Name;
use model::NetworkId;
use model::NetworkKind;
use model::NodeFacts;
use model::NodeId;
use model::Proposal;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use switch::InstanceTag;
use switch::LinuxHost;
use switch::Switch;
use switch::SwitchConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio_rustls::TlsAcceptor;
use vm::engine::Engine;
use vm::engine::fake::FakeEngine;
use vm::engine::fake::FakeHost;
use vm::engine::qemu::Offer;
use vm::engine::qemu::QemuConfig;
use vm::engine::qemu::QemuEngine;
use vm::engine::qemu::jail::Launcher;
use vm::image::DiskTool;
use vm::lifecycle::Host;

use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;
use crate::cluster::Peers;
use crate::cluster::Place;
use crate::cluster::PlaceDir;
use crate::cluster::Witness;
use crate::cluster::leave;
use crate::cluster::members;
use crate::cluster::networks;
use crate::cluster::out;
use crate::cluster::place;
use crate::cluster::rebuild;
use crate::cluster::rebuild::Telling;
use crate::cluster::renew;
use crate::config::Config;
use crate::config::EngineKind;
use crate::dataplane::Settings;
use crate::events::Events;
use crate::fencing::Fencing;
use crate::fencing::LeaseTask;
use crate::fencing::PermitEngine;
use crate::ha::Ha;
use crate::ha::Outgoing;
use crate::history;
use crate::history::History;
use crate::host;
use crate::http;
use crate::http::Idle;
use crate::images;
use crate::ledger::NodeLedger;
use crate::ledger::Progresses;
use crate::luns::Away;
use crate::luns::Keeper;
use crate::luns::LunRights;
use crate::luns::Luns;
use crate::luns::Plane;
use crate::luns::VolumeProcess;
use crate::migrate::PeerMover;
use crate::migrate::Targets;
use crate::platform;
use crate::ports::SwitchPorts;
use crate::reconcile::Reconcilers;
use crate::sample::Samples;
use crate::tls;
use crate::tls::TlsPort;
use crate::truth::RaftTruth;
use crate::truth::Store;
use crate::truth::StoreError;
use crate::truth::Truth;
use crate::validate::Validations;
use crate::volumes::DISK_TOOL_USER;
use crate::volumes::Volumes;

/// How long the lock of the data is waited for. A program that a killed daemon was just starting
/// holds it until it has become that program.
const LOCK_MAX: Duration = Duration::from_secs(3);

/// Between two attempts to lock the data.
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// Between two attempts of a node to tell the cluster that it has started.
const INTRODUCE_PAUSE: Duration = Duration::from_secs(1);

/// How old a decision to force the quorum may be when it is carried out: the daemon starts anew for
/// it at once.
const FORCING_MAX: Millis = Millis::from_secs(60);

/// Runs the daemon until it is told to end. Machines go on without it.
///
/// # Errors
/// Why it could not start, with what to do.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let _lock = take_directories(&config)?;
    let engine = engine(&config)?;
    let (app, tls_port) = assemble(&config, engine).await?;
    let restart = app.restart.clone();
    let router = http::router(app.clone());
    app.peers.set_app(&app, router.clone());
    let socket = config.socket_path();
    let listener = http::bind_unix(&socket, &config)?;
    tokio::spawn(http::serve_unix(listener, router.clone(), config.clone()));
    if let Some(port) = tls_port {
        let info = &port.info;
        tracing::info!(address = %info.address, fingerprint = info.fingerprint, "TLS port");
        tokio::spawn(http::serve_tls(port, router, app.clone()));
    }
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    // Not under systemd: then there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        ended = wait_for_end() => ended?,
        () = restart.notified() => {
            let _ = fs::remove_file(&socket);
            return Err(start_anew());
        }
    }
    tracing::info!("ending; machines go on");
    let _ = fs::remove_file(&socket);
    Ok(())
}

/// Takes away what a daemon leaves behind for machines that go on: networks and groups. For the
/// end of Muster on a host; a daemon that starts again makes all of it anew.
///
/// # Errors
/// A daemon or a machine still runs, or something cannot be removed.
pub(crate) async fn clear(config: Config) -> anyhow::Result<()> {
    let _lock = take_directories(&config)?;
    let engine = engine(&config)?;
    let strays = engine.strays().await?;
    let alive: Vec<String> =
        strays.iter().filter(|stray| stray.alive).map(|stray| stray.vm.to_string()).collect();
    if !alive.is_empty() {
        bail!(
            "machines still run: {}; start the daemon and shut them down first",
            alive.join(", ")
        );
    }
    for stray in &strays {
        engine.reap(stray.vm).await?;
    }
    if let Ok(Some(place)) = PlaceDir::new(&config.data_dir).read() {
        volume_process(&config, place.identity.node())?.end().await.map_err(anyhow::Error::msg)?;
    }
    if let Some(switch) = start_switch(&config)? {
        let report = switch.remove_all().await?;
        if let Some(failure) = report.failure {
            return Err(failure).context("bridges, taps or rules are left; remove them by hand");
        }
    }
    Ok(())
}

/// Puts a new daemon in the place of this process, with the same arguments. Sockets, files and
/// locks of this one are closed by that; machines go on. Returns only if it fails.
fn start_anew() -> anyhow::Error {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    match std::env::current_exe() {
        Ok(program) => {
            let error = std::process::Command::new(program).arg0(name).args(args).exec();
            anyhow::Error::new(error).context("the daemon cannot start anew; start it again")
        }
        Err(error) => anyhow::Error::new(error).context("this program's own path is unknown"),
    }
}

/// Goes on with a join that was accepted before this start: the log is emptied for the new node
/// id. Whatever moment an earlier attempt ended at, this one goes on from there.
async fn finish_join(
    config: &Config,
    peers: &Peers,
    place: Option<Place>,
) -> anyhow::Result<Option<Place>> {
    let mut place = match place {
        Some(place) if place.joining => place,
        other => return Ok(other),
    };
    let new = place.identity.node();
    let old = node_id(&config.data_dir)?;
    if old != new {
        let path = config.data_dir.join("state.redb");
        let store = match Store::open(&path, new) {
            Ok((store, _)) => store,
            Err(StoreError::OtherNode { .. }) => {
                let (store, _) = Store::open(&path, old)?;
                store.empty_for_join(new).await?;
                store
            }
            Err(error) => return Err(error.into()),
        };
        store.close().await;
        place::write_node_id(&config.data_dir, new)?;
    }
    place.joining = false;
    peers.dir().write(&place)?;
    peers.dir().forget_pending()?;
    tracing::info!(cluster = place.identity.cluster_name(), node = %new, "joined");
    Ok(Some(place))
}

/// Forces the quorum, if that was decided before this start: the log is written to before anything
/// runs on it.
async fn finish_forcing(path: &Path, dir: &PlaceDir, node: NodeId) -> anyhow::Result<()> {
    let Some(forcing) = dir.forcing().context("what was decided on forcing the quorum")? else {
        return Ok(());
    };
    // What was looked at then says nothing about later: a host that died in between may have missed
    // that the others came back.
    if now().since(forcing.proposal.at) >= FORCING_MAX {
        tracing::warn!("the quorum is not forced: that was decided too long ago");
        return dir.forget_forcing().context("what was decided on forcing the quorum");
    }
    let (store, loaded) = Store::open(path, node)?;
    let done = store.force(&loaded, forcing).await;
    store.close().await;
    if done? {
        tracing::error!("the quorum is forced: this node goes on with those that are left");
    } else {
        tracing::warn!("the quorum is not forced: the log has gone on meanwhile");
    }
    dir.forget_forcing().context("what was decided on forcing the quorum")
}

/// Opens the state, and the way to the others if this node is in a cluster.
async fn among_others(
    config: &Config,
    events: &Events,
) -> anyhow::Result<(Peers, Witness, Arc<RaftTruth>)> {
    let peers = Peers::new(config);
    peers.dir().reset_if_asked(&config.data_dir)?;
    let place = peers.dir().read()?;
    let place = finish_join(config, &peers, place).await?;
    if let Some(place) = &place
        && !config.data_dir.join("node-id").try_exists()?
    {
        // Lost with the state, perhaps: the certificate names the node, too.
        place::write_node_id(&config.data_dir, place.identity.node())?;
    }
    let node = node_id(&config.data_dir)?;
    let path = config.data_dir.join("state.redb");
    let out = peers.dir().is_out();
    let timing = Timing::default();
    let memory = config.data_dir.join("witness-seen");
    let witness = Witness::new(node, Arc::new(peers.clone()), timing.heartbeat, memory);
    let open = async || match out {
        false => {
            finish_forcing(&path, peers.dir(), node).await?;
            let (transport, sender) = (witness.transport(), events.sender());
            match peers.dir().rebuild()? {
                Some(_) => RaftTruth::open_quiet(&path, node, transport, timing, sender).await,
                None => RaftTruth::open(&path, node, transport, timing, sender).await,
            }
        }
        true => RaftTruth::open_out(&path, node, events.sender()).await,
    };
    let mut telling = None;
    let truth = match &place {
        Some(place) if !out => {
            let mut lost = rebuild::known_loss(peers.dir(), &path)?;
            loop {
                if let Some(problem) = lost.take() {
                    let telling = telling.insert(Telling::start(config)?);
                    rebuild::begin(config, &peers, place, telling, problem).await?;
                }
                match open().await {
                    Ok(truth) => break truth,
                    // Once: what was just made and is damaged again is on no sound disk.
                    Err(error) if telling.is_some() => return Err(error),
                    Err(error) => lost = Some(rebuild::cause(&error).ok_or(error)?),
                }
            }
        }
        _ => open().await?,
    };
    serve_log(&peers, &witness, &truth, out);
    // A cluster that was being made when the daemon died is not one.
    let begun = |place: &Place| place.members.is_empty() && truth.state().cluster.is_none();
    if let Some(place) = place
        && !(begun(&place) && truth.metrics().borrow().leads())
    {
        // Before anything that waits for a majority: this port is a part of one.
        if peers.identity().is_none() {
            peers.bring_up(place).await?;
        }
        rebuild::fill(config, &peers, node, &truth, telling).await?;
    }
    Ok((peers, witness, truth))
}

/// From now on the log's messages are answered, if this node takes part in it.
fn serve_log(peers: &Peers, witness: &Witness, truth: &Arc<RaftTruth>, out: bool) {
    peers.set_state(truth.watch());
    if out {
        peers.set_out();
        return;
    }
    witness.attach(&truth.replica());
    let service: Arc<dyn PeerService> = truth.clone();
    peers.set_service(Arc::downgrade(&service));
    tokio::spawn(witness.clone().follow(truth.watch()));
}

/// Builds the parts and sets them going, all but the API's sockets.
pub(crate) async fn assemble(
    config: &Config,
    engine: Arc<dyn Engine>,
) -> anyhow::Result<(Arc<App>, Option<TlsPort>)> {
    let name = node_name(config)?;
    let events = Events::new();
    let (peers, witness, truth) = among_others(config, &events).await?;
    let events = events.with_store(truth.store().clone());
    let replica = truth.replica();
    let node = replica.node();
    let truth: Arc<dyn Truth> = truth;
    introduce(&truth, node, &name, config).await?;

    let (out, others) = (peers.dir().is_out(), Arc::new(peers.clone()));
    let (fencing, lease) = Fencing::new(config, node, &name, &truth, others, out)?;
    let ports = Arc::new(SwitchPorts::new(node, truth.clone(), start_switch(config)?));
    if let Err(error) = ports.reconcile().await {
        tracing::warn!(%error, "the host's network is not as it should be");
    }
    let volumes = Volumes::new(node, config.data_dir.clone(), truth.clone());
    let volumes = Arc::new(volumes.context("the image directory cannot be used")?);
    let progresses = Arc::new(Progresses::default());
    let ledger = ledger(node, &name, &truth, &events, &progresses);
    let machines =
        Arc::new(PermitEngine::new(engine.clone(), fencing.lease.clone(), fencing.settings.lease));
    let process = volume_process(config, node)?;
    let samples = Arc::new(Samples::default());
    let mover = PeerMover::new(peers.clone());
    let outgoing = outgoing(&mover, &samples);
    let vm_host = vm_host(machines, &ledger, &ports, &volumes, mover, (&name, &process));
    let targets = Targets::new(node, truth.clone(), vm_host.clone());
    let ha = Ha::new(ledger.clone(), &fencing, config.detect_settings(), outgoing).start()?;
    let tls_port = bind_tls(config, name.as_str()).await?;
    let app = Arc::new(App {
        config: config.clone(),
        node,
        node_name: name,
        started: now(),
        truth,
        events,
        engine,
        hub: targets.hub().clone(),
        progresses,
        ports,
        volumes,
        luns: Luns::new(&config.disk_folders, process.clone()),
        samples,
        history: History::new(&config.data_dir),
        reconcilers: Reconcilers::default(),
        tls: tls_port.as_ref().map(|port| port.info.clone()),
        idle: Idle::default(),
        peers,
        witness: witness.clone(),
        restart: Arc::default(),
        fencing,
        ha,
        validations: Validations::new(&config.data_dir),
        targets,
    });
    set_going(&app, vm_host, ledger, lease, process);
    let lost_after = Duration::from_secs(config.cluster_lost_after_s);
    tokio::spawn(members::follow(replica, app.truth.clone(), witness, lost_after));
    follow_membership(&app);
    Ok((app, tls_port))
}

/// What drivers tell, and in whose name.
fn ledger(
    node: NodeId,
    name: &Name,
    truth: &Arc<dyn Truth>,
    events: &Events,
    progresses: &Arc<Progresses>,
) -> Arc<NodeLedger> {
    Arc::new(NodeLedger {
        node,
        epoch: Arc::new(AtomicU64::new(truth.state().nodes.get(&node).map_or(0, |it| it.epoch))),
        actor: Actor::new(&format!("node {name}")),
        truth: truth.clone(),
        events: events.clone(),
        progresses: progresses.clone(),
    })
}

/// What is measured of machines that leave this node.
fn outgoing(mover: &PeerMover, samples: &Arc<Samples>) -> Outgoing {
    let seen = samples.clone();
    let works = Box::new(move |vm| seen.process(vm).cpu_percent);
    Outgoing { carried: mover.carried(), works }
}

/// Follows what becomes of this node among the others.
fn follow_membership(app: &Arc<App>) {
    tokio::spawn(history::follow(app.clone()));
    tokio::spawn(crate::balance::follow(app.clone()));
    tokio::spawn(http::follow_idle(app.clone()));
    tokio::spawn(leave::follow(app.clone()));
    tokio::spawn(out::follow(app.clone()));
    tokio::spawn(rebuild::remember(app.clone()));
    tokio::spawn(renew::follow(app.clone()));
}

/// What the drivers of VMs need of this host.
fn vm_host(
    engine: Arc<dyn Engine>,
    ledger: &Arc<NodeLedger>,
    ports: &Arc<SwitchPorts>,
    volumes: &Arc<Volumes>,
    mover: PeerMover,
    (name, process): (&Name, &VolumeProcess),
) -> Arc<Host> {
    let (dirs, checks, images) = (volumes.clone(), volumes.clone(), volumes.clone());
    Arc::new(Host {
        engine,
        ledger: ledger.clone(),
        ports: ports.clone(),
        disks: DiskTool::new("/usr/bin/qemu-img", Some(DISK_TOOL_USER)),
        vms_dir: Box::new(move |vm| dirs.vms_dir(vm)),
        volume_ready: Box::new(move |vm| checks.ready(vm).map_err(|error| error.to_string())),
        image_path: Box::new(move |image| images.image_path(image)),
        rights: Arc::new(LunRights::new(ledger.truth.clone(), process.clone())),
        mover: Arc::new(mover),
        arrivals: Arc::default(),
        host_name: name.to_string(),
    })
}

/// Starts the background work.
fn set_going(
    app: &App,
    vm_host: Arc<Host>,
    ledger: Arc<NodeLedger>,
    lease: LeaseTask,
    process: VolumeProcess,
) {
    lease.go();
    let App { truth, engine, hub, ports, samples, reconcilers, volumes, .. } = app;
    let arrivals = vm_host.arrivals.clone();
    tokio::spawn(hub.clone().follow(app.node, vm_host, truth.clone()));
    tokio::spawn(images::follow(volumes.clone(), ledger.clone(), truth.watch()));
    tokio::spawn(samples.clone().follow(hub.clone(), ports.clone(), ledger.clone()));
    tokio::spawn(crate::ha::answers::note(ledger.clone(), hub.clone()));
    tokio::spawn(reconcilers.clone().engine(engine.clone()));
    let name = app.node_name.clone();
    let host = (app.node, app.node_name.clone());
    tokio::spawn(networks::tell(host, truth.clone()));
    tokio::spawn(platform::tell(app.node, name, reconcilers.clone(), truth.clone()));
    let (luns, plane) = (app.luns.clone(), Plane::new(process));
    tokio::spawn(Keeper { luns: luns.clone(), ledger: ledger.clone(), plane }.run());
    let peers = app.peers.clone();
    tokio::spawn(Away { luns, ledger: ledger.clone(), peers }.run());
    tokio::spawn(reconcilers.clone().network(ports.clone(), truth.clone()));
    let keep = Duration::from_secs(app.config.recycle_days.saturating_mul(86_400));
    tokio::spawn(reconcilers.clone().copies(
        ledger.clone(),
        hub.clone(),
        app.vms_dir(),
        arrivals.clone(),
    ));
    tokio::spawn(reconcilers.clone().recycle(ledger, keep));
    tokio::spawn(reconcilers.clone().strays(
        app.node,
        engine.clone(),
        truth.clone(),
        app.vms_dir(),
        arrivals,
    ));
}

/// Makes the directories and locks the data, so that no second daemon uses it.
fn take_directories(config: &Config) -> anyhow::Result<Flock<File>> {
    for (dir, mode) in [(&config.data_dir, 0o711), (&config.run_dir, 0o755)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .with_context(|| format!("{} cannot be made", dir.display()))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o711).create(config.data_dir.join("vms"))?;
    let path = config.data_dir.join("lock");
    let mut file = File::create(&path).with_context(|| format!("{}", path.display()))?;
    let until = Instant::now() + LOCK_MAX;
    loop {
        let error;
        (file, error) = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err(refused) => refused,
        };
        if error != nix::errno::Errno::EWOULDBLOCK {
            return Err(error).with_context(|| format!("{}", path.display()));
        }
        if Instant::now() > until {
            bail!(
                "another daemon uses {}; end it first, or give this one another --data-dir",
                config.data_dir.display()
            );
        }
        std::thread::sleep(LOCK_AGAIN);
    }
}

/// What the node is called.
fn node_name(config: &Config) -> anyhow::Result<Name> {
    match &config.node_name {
        Some(name) => name.parse().with_context(|| format!("node_name '{name}'")),
        None => host::name().parse().context("the host's name cannot be a node's name"),
    }
}

/// This node's id, made at the first start.
fn node_id(data_dir: &Path) -> anyhow::Result<NodeId> {
    let path = data_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().with_context(|| format!("{}", path.display()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let node = NodeId::new(new_uuid());
            let part = path.with_extension("new");
            fs::write(&part, node.to_string())?;
            File::open(&part)?.sync_all()?;
            fs::rename(&part, &path)?;
            Ok(node)
        }
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

/// Says the first words. Alone they come before anything else; in a cluster they wait for a
/// majority, and the node's machines and its API do not wait for that.
async fn introduce(
    truth: &Arc<dyn Truth>,
    node: NodeId,
    name: &Name,
    config: &Config,
) -> anyhow::Result<()> {
    // Alone it leads at once. A leader of others is not sure of them yet.
    if truth.metrics().borrow().leads() && truth.metrics().borrow().voters().len() == 1 {
        return first_words(truth, node, name, config).await;
    }
    let (truth, name, config) = (truth.clone(), name.clone(), config.clone());
    tokio::spawn(async move {
        while let Err(error) = first_words(&truth, node, &name, &config).await {
            tracing::info!(%error, "the cluster does not know of this start yet");
            tokio::time::sleep(INTRODUCE_PAUSE).await;
        }
    });
    Ok(())
}

/// What a node says at each start; the very first time, it makes the network `nat`, too.
async fn first_words(
    truth: &Arc<dyn Truth>,
    node: NodeId,
    name: &Name,
    config: &Config,
) -> anyhow::Result<()> {
    truth.barrier().await?;
    let state = truth.state();
    let actor = Actor::new(&format!("node {name}"));
    let mut commands = vec![Command::NodeStarted {
        node,
        name: name.clone(),
        capacity: host::capacity(config.memory_reserve_mib),
    }];
    if state.nodes.is_empty() && state.networks.is_empty() {
        commands.push(Command::NetworkCreate {
            network: NetworkId::new(new_uuid()),
            name: "nat".parse().context("a constant")?,
            kind: NetworkKind::Nat { subnet: config.nat_subnet },
        });
    }
    if let Some(facts) = new_facts(&state, node, config) {
        commands.push(Command::NodeFactsSet { node, facts: Box::new(facts) });
    }
    for command in commands {
        truth.propose(Proposal { at: now(), actor: actor.clone(), command }).await?;
    }
    Ok(())
}

/// What the node has to say of itself that the cluster does not know yet.
fn new_facts(state: &ClusterState, node: NodeId, config: &Config) -> Option<NodeFacts> {
    let known = &state.nodes.get(&node)?.facts;
    state.cluster.as_ref()?;
    let told = !config.cluster_addresses.is_empty() || !config.cluster_listen.ip().is_unspecified();
    let facts = NodeFacts {
        // By which address others reach it was found out at the join; a guess is no better.
        addresses: if told { config.peer_addresses() } else { known.addresses.clone() },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interfaces: known.interfaces.clone(),
    };
    (facts != *known).then_some(facts)
}

/// Tells this daemon's kernel objects from those of others on the same host.
fn tag(config: &Config) -> InstanceTag {
    InstanceTag::derive(&config.data_dir.to_string_lossy())
}

/// The process that serves this node's volumes on LUNs; started when there is one.
fn volume_process(config: &Config, node: NodeId) -> anyhow::Result<VolumeProcess> {
    let run_dir = std::path::absolute(&config.run_dir)
        .with_context(|| format!("run_dir {}", config.run_dir.display()))?;
    let data_dir = std::path::absolute(&config.data_dir)
        .with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    // Beside the machines' group, which the guard freezes and kills as a whole.
    let machines = machines_group(config)?;
    let mut name = machines.file_name().unwrap_or_default().to_owned();
    name.push("-volumes");
    let listen = crate::luns::port_of(config.cluster_listen).unwrap_or(config.cluster_listen);
    let group = machines.with_file_name(name);
    Ok(VolumeProcess::new(Settings { data_dir, run_dir, listen, node, group }))
}

/// The control group above those of all machines of this daemon.
pub(crate) fn machines_group(config: &Config) -> anyhow::Result<PathBuf> {
    Ok(vm::engine::qemu::machines_group(config.control_group.as_deref(), &tag(config).to_string())?)
}

fn start_switch(config: &Config) -> anyhow::Result<Option<Switch>> {
    if !config.networking {
        return Ok(None);
    }
    let tag = tag(config);
    let host = LinuxHost::new().context("the kernel's network cannot be reached")?;
    let resolv_conf = "/etc/resolv.conf".into();
    Ok(Some(Switch::start(SwitchConfig { tag, resolv_conf }, Arc::new(host))))
}

async fn bind_tls(config: &Config, name: &str) -> anyhow::Result<Option<TlsPort>> {
    let Some(listen) = config.tls_listen else { return Ok(None) };
    let servers = tls::server_configs(&config.data_dir.join("tls"), name)?;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("the TLS port {listen} cannot be opened; set another tls_listen")
    })?;
    let address = listener.local_addr()?;
    let info = tls::TlsInfo { address, fingerprint: servers.fingerprint };
    let (plain, asking) = (TlsAcceptor::from(servers.plain), TlsAcceptor::from(servers.asking));
    Ok(Some(TlsPort { listener, plain, asking, info }))
}

fn engine(config: &Config) -> anyhow::Result<Arc<dyn Engine>> {
    match config.engine {
        EngineKind::Fake => Ok(Arc::new(FakeEngine::new(&FakeHost::without_files()))),
        EngineKind::Qemu => {
            let launcher = Launcher::own().context("this program's own path is unknown")?;
            let run_dir = std::path::absolute(&config.run_dir)
                .with_context(|| format!("run_dir {}", config.run_dir.display()))?;
            let mut qemu = QemuConfig::new(run_dir, &tag(config).to_string(), launcher);
            qemu.uid_base = config.uid_base;
            qemu.cgroup_parent.clone_from(&config.control_group);
            qemu.offer = offer(config)?;
            if let Some(program) = &config.qemu {
                qemu.program.clone_from(program);
            }
            Ok(Arc::new(QemuEngine::new(qemu)?))
        }
    }
}

fn offer(config: &Config) -> anyhow::Result<Offer> {
    let machine = match &config.guest_machine {
        None => None,
        Some(text) => {
            let version = model::machine_version(&format!("-{text}"));
            Some(version.with_context(|| {
                format!("guest_machine = {text:?} is no version; write one such as \"10.0\"")
            })?)
        }
    };
    Ok(Offer { cpu: config.guest_cpu.clone(), machine })
}

async fn wait_for_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cluster::raft::Forcing;
    use cluster::raft::NoPeers;
    use model::UnixMillis;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_decision_to_force_the_quorum_lapses() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("state.redb");
        let (dir, node) = (PlaceDir::new(data.path()), NodeId::new(new_uuid()));
        let events = tokio::sync::broadcast::channel(16).0;
        let (peers, timing) = (Arc::new(NoPeers), Timing::default());
        let truth = RaftTruth::open(&path, node, peers, timing, events).await.unwrap();
        let after = truth.store().last_entry().unwrap();
        truth.replica().stop().await;
        truth.store().close().await;
        drop(truth);
        for (at, done) in [(UnixMillis::new(1_000), false), (now(), true)] {
            let lost = BTreeSet::from([NodeId::new(new_uuid())]);
            let command = Command::QuorumForced { lost, word: new_uuid(), witness: node };
            let forcing = Forcing {
                after,
                term: 1,
                voters: BTreeSet::from([node]),
                learners: BTreeSet::new(),
                proposal: Proposal { at, actor: Actor::new("test"), command },
            };
            dir.keep_forcing(&forcing).unwrap();
            finish_forcing(&path, &dir, node).await.unwrap();
            assert_eq!(dir.forcing().unwrap(), None, "it is looked at once");
            let (store, _) = Store::open(&path, node).unwrap();
            assert_eq!(store.last_entry() != Some(after), done);
            store.close().await;
        }
    }
}
