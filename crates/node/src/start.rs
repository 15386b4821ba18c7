//! Starting and ending the daemon.

use std::fs;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use cluster::raft::NoPeers;
use cluster::raft::Timing;
use model::Actor;
use model::Command;
use model::Name;
use model::NetworkId;
use model::NetworkKind;
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
use vm::engine::qemu::QemuConfig;
use vm::engine::qemu::QemuEngine;
use vm::engine::qemu::jail::Launcher;
use vm::image::DiskTool;
use vm::lifecycle::Host;

use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;
use crate::config::Config;
use crate::config::EngineKind;
use crate::events::Events;
use crate::host;
use crate::http;
use crate::hub::Hub;
use crate::images;
use crate::ledger::NodeLedger;
use crate::ledger::Progresses;
use crate::ports::SwitchPorts;
use crate::reconcile::Reconcilers;
use crate::sample::Samples;
use crate::tls;
use crate::truth::RaftTruth;
use crate::truth::Truth;
use crate::volumes::DISK_TOOL_USER;
use crate::volumes::Volumes;

/// Between two attempts of a node to tell the cluster that it has started.
const INTRODUCE_PAUSE: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to end. Machines go on without it.
///
/// # Errors
/// Why it could not start, with what to do.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let _lock = take_directories(&config)?;
    let engine = engine(&config)?;
    let (app, tls_port) = assemble(&config, engine).await?;
    let router = http::router(app);
    let socket = config.socket_path();
    let listener = http::bind_unix(&socket, &config)?;
    tokio::spawn(http::serve_unix(listener, router.clone(), config.clone()));
    if let Some((listener, acceptor, info)) = tls_port {
        tracing::info!(address = %info.address, fingerprint = info.fingerprint, "TLS port");
        tokio::spawn(http::serve_tls(listener, acceptor, router));
    }
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    // Not under systemd: then there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    wait_for_end().await?;
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
    if let Some(switch) = start_switch(&config)? {
        let report = switch.remove_all().await?;
        if let Some(failure) = report.failure {
            return Err(failure).context("bridges, taps or rules are left; remove them by hand");
        }
    }
    Ok(())
}

/// Builds the parts and sets them going, all but the API's sockets.
pub(crate) async fn assemble(
    config: &Config,
    engine: Arc<dyn Engine>,
) -> anyhow::Result<(Arc<App>, Option<TlsPort>)> {
    let node = node_id(&config.data_dir)?;
    let name: Name = match &config.node_name {
        Some(name) => name.parse().with_context(|| format!("node_name '{name}'"))?,
        None => host::name().parse().context("the host's name cannot be a node's name")?,
    };
    let events = Events::new();
    let path = config.data_dir.join("state.redb");
    let transport = Arc::new(NoPeers);
    let truth = RaftTruth::open(&path, node, transport, Timing::default(), events.sender()).await?;
    let events = events.with_store(truth.store().clone());
    let truth: Arc<dyn Truth> = truth;
    introduce(&truth, node, &name, config).await?;

    let switch = start_switch(config)?;
    let ports = Arc::new(SwitchPorts::new(node, truth.clone(), switch));
    if let Err(error) = ports.reconcile().await {
        tracing::warn!(%error, "the host's network is not as it should be");
    }
    let volumes = Volumes::new(config.data_dir.clone(), truth.clone());
    let volumes = Arc::new(volumes.context("the image directory cannot be used")?);
    let progresses = Arc::new(Progresses::default());
    let ledger = Arc::new(NodeLedger {
        node,
        epoch: Arc::new(AtomicU64::new(truth.state().nodes.get(&node).map_or(0, |it| it.epoch))),
        actor: Actor::new(&format!("node {name}")),
        truth: truth.clone(),
        events: events.clone(),
        progresses: progresses.clone(),
    });
    let (vm_dirs, vm_volumes, image_files) = (volumes.clone(), volumes.clone(), volumes.clone());
    let vm_host = Arc::new(Host {
        engine: engine.clone(),
        ledger: ledger.clone(),
        ports: ports.clone(),
        disks: DiskTool::new("/usr/bin/qemu-img", Some(DISK_TOOL_USER)),
        vms_dir: Box::new(move |vm| vm_dirs.vms_dir(vm)),
        volume_ready: Box::new(move |vm| vm_volumes.ready(vm).map_err(|error| error.to_string())),
        image_path: Box::new(move |image| image_files.image_path(image)),
        host_name: name.to_string(),
    });
    let tls_port = bind_tls(config, name.as_str()).await?;
    let app = Arc::new(App {
        config: config.clone(),
        node,
        node_name: name,
        started: now(),
        truth,
        events,
        engine,
        hub: Hub::default(),
        progresses,
        ports,
        volumes,
        samples: Arc::new(Samples::default()),
        reconcilers: Reconcilers::default(),
        tls: tls_port.as_ref().map(|(_, _, info)| info.clone()),
    });
    set_going(&app, vm_host, ledger);
    Ok((app, tls_port))
}

/// Starts the background work.
fn set_going(app: &App, vm_host: Arc<Host>, ledger: Arc<NodeLedger>) {
    let App { truth, engine, hub, ports, samples, reconcilers, volumes, .. } = app;
    tokio::spawn(hub.clone().follow(app.node, vm_host, truth.watch()));
    tokio::spawn(images::follow(volumes.clone(), ledger.clone(), truth.watch()));
    tokio::spawn(samples.clone().follow(hub.clone(), ports.clone(), ledger.clone()));
    tokio::spawn(reconcilers.clone().engine(engine.clone()));
    tokio::spawn(reconcilers.clone().network(ports.clone(), truth.clone()));
    let keep = Duration::from_secs(app.config.recycle_days.saturating_mul(86_400));
    tokio::spawn(reconcilers.clone().recycle(ledger, keep));
    tokio::spawn(reconcilers.clone().strays(
        app.node,
        engine.clone(),
        truth.clone(),
        app.vms_dir(),
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
    let file = File::create(&path).with_context(|| format!("{}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another daemon uses {}; end it first, or give this one another --data-dir",
            config.data_dir.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("{}", path.display())),
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
    if truth.metrics().borrow().leads() {
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
    let new = !truth.state().nodes.contains_key(&node);
    let actor = Actor::new(&format!("node {name}"));
    let mut commands = vec![Command::NodeStarted {
        node,
        name: name.clone(),
        capacity: host::capacity(config.memory_reserve_mib),
    }];
    if new && truth.state().networks.is_empty() {
        commands.push(Command::NetworkCreate {
            network: NetworkId::new(new_uuid()),
            name: "nat".parse().context("a constant")?,
            kind: NetworkKind::Nat { subnet: config.nat_subnet },
        });
    }
    for command in commands {
        truth.propose(Proposal { at: now(), actor: actor.clone(), command }).await?;
    }
    Ok(())
}

/// Tells this daemon's kernel objects from those of others on the same host.
fn tag(config: &Config) -> InstanceTag {
    InstanceTag::derive(&config.data_dir.to_string_lossy())
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

type TlsPort = (TcpListener, TlsAcceptor, tls::TlsInfo);

async fn bind_tls(config: &Config, name: &str) -> anyhow::Result<Option<TlsPort>> {
    let Some(listen) = config.tls_listen else { return Ok(None) };
    let (server, fingerprint) = tls::server_config(&config.data_dir.join("tls"), name)?;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("the TLS port {listen} cannot be opened; set another tls_listen")
    })?;
    let address = listener.local_addr()?;
    let info = tls::TlsInfo { address, fingerprint };
    Ok(Some((listener, TlsAcceptor::from(server), info)))
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
            if let Some(program) = &config.qemu {
                qemu.program.clone_from(program);
            }
            Ok(Arc::new(QemuEngine::new(qemu)?))
        }
    }
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
