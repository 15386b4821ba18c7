//! `muster vm create`.

use api::endpoint::Nothing;
use api::endpoint::VmCreate;
use api::endpoint::VmFirstBoot;
use api::endpoint::VmStart;
use api::model::Bytes;
use api::model::CrashPolicy;
use api::model::DeviceProfile;
use api::model::Firmware;
use api::model::HaSpec;
use api::model::Name;
use api::model::Services;
use api::types::DiskAddBody;
use api::types::FirstBootView;
use api::types::NicAddBody;
use api::types::VmCreateBody;

use crate::commands::vm::compat::CompatWord;
use crate::commands::vm::guest::GuestArgs;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;
use crate::output::clean;
use crate::parse;

/// Create a machine.
///
/// Its first disk is a thin copy of an image (--image), made in seconds; the machine boots from its
/// first disk. It has an adapter on the network `nat` unless something else is said.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm create web-1 --image debian --start
  muster vm create web-1 --image debian --cpus 2 --memory 1G --memory-max 4G \\
      --user anna --ssh-key ~/.ssh/id_ed25519.pub --disk size=20G,name=data --start
  muster vm create web-2 --image debian --user anna --show-first-boot
  muster vm create old --image xp --legacy --no-network")]
pub(crate) struct Args {
    /// Its name: letters, digits, '-', '_' and '.', at most 63.
    name: Name,
    /// Image that the first disk is a thin copy of.
    #[arg(long, add = complete::images())]
    image: Option<String>,
    /// Size of that first disk; the image's size if left out.
    #[arg(long, value_name = "SIZE", requires = "image")]
    disk_size: Option<Bytes>,
    /// A further disk: 20G, or size=20G,name=data,image=NAME,format=qcow2|raw,ro. May be given more
    /// than once.
    #[arg(long, value_name = "DISK", value_parser = parse::disk)]
    disk: Vec<DiskAddBody>,
    /// Processors.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    cpus: u32,
    /// Most processors that it may get while it runs; as many as it has if left out.
    #[arg(long, value_name = "COUNT")]
    cpus_max: Option<u32>,
    /// What its processors have: all that every node has, all that its node has, or the least of their
    /// maker.
    #[arg(long, value_name = "CHOICE", default_value = "cluster")]
    cpu_compat: CompatWord,
    /// Memory.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: Bytes,
    /// Most memory that it may get while it runs; as much as it has if left out.
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<Bytes>,
    /// Network to plug an adapter into; may be given more than once.
    #[arg(long, value_name = "NETWORK", add = complete::networks())]
    network: Vec<Name>,
    /// A further adapter: network=NAME,name=net1,mac=ADDRESS,address=IP. May be given more than
    /// once.
    #[arg(long, value_name = "NIC", value_parser = parse::nic)]
    nic: Vec<NicAddBody>,
    /// No adapter.
    #[arg(long, conflicts_with_all = ["network", "nic"])]
    no_network: bool,
    /// UEFI firmware instead of a PC BIOS.
    #[arg(long)]
    uefi: bool,
    /// Emulated devices for guests without virtio drivers: slow, no hot-plug.
    #[arg(long)]
    legacy: bool,
    /// Volume that its files shall lie on, so that other nodes can start it; the node's own disks if
    /// left out.
    #[arg(long, value_name = "NAME", add = complete::volumes())]
    volume: Option<String>,
    /// Leave it off when its process dies, instead of starting it again.
    #[arg(long)]
    stop_on_crash: bool,
    /// Word to find and group it by; may be given more than once.
    #[arg(long)]
    tag: Vec<Name>,
    /// Key for the guest, readable inside; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    key: Vec<(String, String)>,
    /// Free text.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Start it, too.
    #[arg(long)]
    start: bool,
    /// Create nothing: print what its guest would be told at its first boot (cloud-init).
    #[arg(long, conflicts_with = "start")]
    show_first_boot: bool,
    /// First-boot configuration.
    #[command(flatten)]
    guest: GuestArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let (start, show_first_boot) = (args.start, args.show_first_boot);
    let body = body(args)?;
    if show_first_boot {
        let told = context.send::<VmFirstBoot>(&[], &body).await?;
        return context.out.reply(&told, first_boot);
    }
    let name = body.name.to_string();
    let created = context.send::<VmCreate>(&[], &body).await?;
    if !start {
        operation::finish(context, created).await?;
        if context.wait {
            context.out.note(&format!("start it with: muster vm start {name}"));
        }
        return Ok(());
    }
    // The id, not the name: the machine that was created is the one to start.
    let id = created.value.vm.map_or(name, |id| id.to_string());
    operation::step(context, created).await?;
    let started = context.send::<VmStart>(&[&id], &Nothing {}).await?;
    operation::finish(context, started).await
}

fn first_boot(told: &FirstBootView) -> String {
    if told.files.is_empty() {
        return "nothing: none of the options of the first boot was given\n".to_owned();
    }
    told.files.iter().map(|file| format!("# {}\n{}\n", file.name, clean(&file.text))).collect()
}

fn body(args: Args) -> Result<VmCreateBody, CliError> {
    let mut disks = Vec::new();
    if args.image.is_some() {
        disks.push(DiskAddBody { image: args.image, size: args.disk_size, ..Default::default() });
    }
    disks.extend(args.disk);
    let mut networks = args.network;
    if networks.is_empty() && args.nic.is_empty() && !args.no_network {
        networks.push("nat".parse().expect("a valid name"));
    }
    let mut nics: Vec<_> = networks
        .into_iter()
        .map(|network| NicAddBody { network: Some(network), ..Default::default() })
        .collect();
    nics.extend(args.nic);
    Ok(VmCreateBody {
        name: args.name,
        cpus: Some(args.cpus),
        cpus_max: args.cpus_max,
        cpu_compat: args.cpu_compat.into(),
        memory: Some(args.memory),
        memory_max: args.memory_max,
        firmware: if args.uefi { Firmware::Uefi } else { Firmware::Bios },
        profile: if args.legacy { DeviceProfile::Legacy } else { DeviceProfile::Virtio },
        disks,
        nics,
        services: Services::default(),
        cloud_init: args.guest.cloud_init()?,
        on_crash: if args.stop_on_crash { CrashPolicy::Stop } else { CrashPolicy::Restart },
        description: args.description,
        tags: args.tag,
        keys: args.key.into_iter().collect(),
        volume: args.volume,
        ha: HaSpec::default(),
    })
}
