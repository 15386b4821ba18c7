//! `muster vm set`.

use api::endpoint::VmSet;
use api::model::Bytes;
use api::model::CrashPolicy;
use api::model::DeviceProfile;
use api::model::Firmware;
use api::model::Name;
use api::model::Revision;
use api::model::ServiceChange;
use api::model::VmChange;
use api::types::RevisionQuery;
use clap::ValueEnum;

use crate::commands::vm::compat::CompatWord;
use crate::commands::vm::guest::GuestArgs;
use crate::commands::vm::ha::HaArgs;
use crate::commands::vm::migrate::PolicyOfVm;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;
use crate::parse;

/// Change a machine; what is not named stays as it is.
///
/// Processors and memory change while the machine runs, up to their maximum; changes that need it
/// to be off say so. `muster vm show` tells what the guest has now.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm set web-1 --memory 2G
  muster vm set web-1 --cpus 4 --cpu-cap 200
  muster vm set web-1 --service time-sync=off --key role=web
  muster vm set web-1 --priority high --prefer host-1 --prefer host-2 --failback on
  muster vm set web-1 --after db-1 --restart-hung on
  muster vm set web-1 --name web-2")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// New name.
    #[arg(long)]
    name: Option<Name>,
    /// Processors.
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,
    /// Most processors that it may get while it runs; only while it is off.
    #[arg(long, value_name = "COUNT")]
    cpus_max: Option<u32>,
    /// Share of the host's processors when they are short, 1 to 10000; 100 is usual.
    #[arg(long, value_name = "WEIGHT")]
    cpu_weight: Option<u32>,
    /// Most processor time, in percent of one host processor; 0 takes the cap off.
    #[arg(long, value_name = "PERCENT")]
    cpu_cap: Option<u32>,
    /// What its processors have from the next start on: all that every node has (cluster), all that
    /// its node has (node), or the least of their maker (minimal).
    #[arg(long, value_name = "CHOICE")]
    cpu_compat: Option<CompatWord>,
    /// Memory.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Most memory that it may get while it runs; only while it is off.
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<Bytes>,
    /// What the balloon leaves the guest; the size of the memory empties the balloon.
    #[arg(long, value_name = "SIZE")]
    balloon: Option<Bytes>,
    /// Firmware; only while it is off.
    #[arg(long, value_name = "KIND")]
    firmware: Option<FirmwareWord>,
    /// Device family; only while it is off.
    #[arg(long, value_name = "KIND")]
    profile: Option<ProfileWord>,
    /// Switch an integration service: shutdown, heartbeat, exchange, time-sync or backup. May be
    /// given more than once.
    #[arg(long, value_name = "SERVICE=on|off", value_parser = service)]
    service: Vec<(Service, bool)>,
    /// What to do when its process dies.
    #[arg(long, value_name = "WHAT")]
    on_crash: Option<CrashWord>,
    #[command(flatten)]
    ha: HaArgs,
    #[command(flatten)]
    migration: PolicyOfVm,
    /// Free text.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Tag, replacing those there are; may be given more than once.
    #[arg(long)]
    tag: Vec<Name>,
    /// Take all tags away.
    #[arg(long, conflicts_with = "tag")]
    no_tags: bool,
    /// Key for the guest; an empty value removes it. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    key: Vec<(String, String)>,
    /// Refuse the change if the configuration is no longer of this revision.
    #[arg(long, value_name = "NUMBER")]
    if_revision: Option<u64>,
    /// First-boot configuration, replacing the one there is.
    #[command(flatten)]
    guest: GuestArgs,
}

/// Firmware, as a word of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FirmwareWord {
    Bios,
    Uefi,
}

/// Device family, as a word of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProfileWord {
    Virtio,
    Legacy,
}

/// What to do after a crash, as a word of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CrashWord {
    Restart,
    Stop,
}

/// Integration services, as words of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Service {
    Shutdown,
    Heartbeat,
    Exchange,
    TimeSync,
    Backup,
}

fn service(text: &str) -> Result<(Service, bool), String> {
    let (name, value) = text.split_once('=').ok_or("write SERVICE=on or SERVICE=off")?;
    let service = Service::from_str(name, false).map_err(|_| {
        format!(
            "'{name}' is no service; there are shutdown, heartbeat, exchange, time-sync, backup"
        )
    })?;
    Ok((service, parse::switch(value)?))
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let query = RevisionQuery { if_revision: args.if_revision.map(Revision::new) };
    let vm = args.vm.clone();
    let change = change(args)?;
    if change == VmChange::default() {
        return Err(CliError::usage("nothing to change was named", "see: muster vm set --help"));
    }
    let op = context.call::<VmSet>(&[&vm], &query, &change).await?;
    operation::finish(context, op).await
}

fn change(args: Args) -> Result<VmChange, CliError> {
    let mut services = ServiceChange::default();
    for (service, on) in args.service {
        let switch = match service {
            Service::Shutdown => &mut services.shutdown,
            Service::Heartbeat => &mut services.heartbeat,
            Service::Exchange => &mut services.exchange,
            Service::TimeSync => &mut services.time_sync,
            Service::Backup => &mut services.backup,
        };
        *switch = Some(on);
    }
    Ok(VmChange {
        name: args.name,
        cpus: args.cpus,
        cpus_max: args.cpus_max,
        cpu_weight: args.cpu_weight,
        cpu_compat: args.cpu_compat.map(Into::into),
        cpu_cap_percent: args.cpu_cap,
        memory: args.memory,
        memory_max: args.memory_max,
        balloon: args.balloon,
        firmware: args.firmware.map(|word| match word {
            FirmwareWord::Bios => Firmware::Bios,
            FirmwareWord::Uefi => Firmware::Uefi,
        }),
        profile: args.profile.map(|word| match word {
            ProfileWord::Virtio => DeviceProfile::Virtio,
            ProfileWord::Legacy => DeviceProfile::Legacy,
        }),
        services,
        ha: args.ha.change(),
        migration: args.migration.change(),
        on_crash: args.on_crash.map(|word| match word {
            CrashWord::Restart => CrashPolicy::Restart,
            CrashWord::Stop => CrashPolicy::Stop,
        }),
        description: args.description,
        tags: (args.no_tags || !args.tag.is_empty()).then_some(args.tag),
        keys: args.key.into_iter().collect(),
        cloud_init: args.guest.cloud_init()?,
    })
}
