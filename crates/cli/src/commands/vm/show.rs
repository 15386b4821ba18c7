//! `muster vm show`.

use api::endpoint::VmShow;
use api::model::Bytes;
use api::model::Services;
use api::types::DiskView;
use api::types::GuestView;
use api::types::Heartbeat;
use api::types::NicView;
use api::types::RunView;
use api::types::VmView;

use crate::commands::vm::heartbeat_tone;
use crate::commands::vm::phase_tone;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::sheet::Sheet;
use crate::output::table::Field;
use crate::output::table::List;
use crate::output::time;
use crate::output::word;
use crate::progress;

/// Show a machine with everything that is known of it, guest facts among it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm show web-1
  muster vm show web-1 --json | jq .guest.os")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let vm = context.get::<VmShow>(&[&args.vm]).await?;
    context.out.reply(&vm, |vm| render(&context.out, vm))
}

fn render(out: &Output, vm: &VmView) -> String {
    let mut sheet = Sheet::new(out);
    state(&mut sheet, vm);
    machine(&mut sheet, vm);
    if let Some(run) = &vm.run {
        present_run(&mut sheet, run);
    }
    guest(&mut sheet, &vm.guest, out);
    if !vm.disks.is_empty() {
        sheet.group("Disks");
        sheet.list(&disks(out, &vm.disks));
    }
    if !vm.nics.is_empty() {
        sheet.group("Adapters");
        sheet.list(&nics(out, &vm.nics));
    }
    services(&mut sheet, vm.services);
    if !vm.keys.is_empty() {
        sheet.group("Keys for the guest");
        for (key, value) in &vm.keys {
            sheet.row(key, value);
        }
    }
    sheet.render()
}

fn state(sheet: &mut Sheet<'_>, vm: &VmView) {
    let now = time::now();
    sheet.group(vm.name.as_str());
    sheet.toned("phase", word(&vm.phase), phase_tone(vm.phase));
    if let Some(note) = &vm.note {
        sheet.toned("note", note, Tone::Bad);
    }
    if let Some(op) = &vm.op {
        let step = op.progress.as_ref().map(|p| format!(": {}", progress::line(p)));
        let text = format!("{}{} ({})", op.title, step.unwrap_or_default(), op.id);
        sheet.toned("under way", text, Tone::Busy);
    }
    sheet.toned("heartbeat", word(&vm.guest.heartbeat), heartbeat_tone(vm.guest.heartbeat));
    sheet.row("node", &vm.node);
    let lies = vm.volume.as_ref().map(|volume| format!("volume {volume}"));
    sheet.row("lies on", lies.unwrap_or_else(|| "the disks of its node".to_owned()));
    if let Some(saved) = &vm.saved {
        let text = format!("{} on disk, {}", saved.size, time::both(saved.at, now));
        sheet.row("saved memory", text);
    }
    if let Some(exit) = &vm.last_exit {
        let text =
            format!("{}, {}: {}", word(&exit.kind), time::relative(exit.at, now), exit.detail);
        sheet.row("last run ended", text);
    }
    sheet.row("description", &vm.description);
    let tags: Vec<_> = vm.tags.iter().map(ToString::to_string).collect();
    sheet.row("tags", tags.join(", "));
    sheet.row("created", time::both(vm.created, now));
    sheet.opt("deleted", vm.deleted.map(|at| time::both(at, now)));
    sheet.row("id", vm.id);
}

fn machine(sheet: &mut Sheet<'_>, vm: &VmView) {
    sheet.group("Machine");
    let mut cpus = format!("{} of at most {}", vm.cpus.count, vm.cpus.max);
    if let Some(cap) = vm.cpus.cap_percent {
        cpus.push_str(&format!(", capped at {cap} %"));
    }
    if vm.cpus.weight != 100 {
        cpus.push_str(&format!(", weight {}", vm.cpus.weight));
    }
    sheet.row("processors", cpus);
    let mut memory = format!("{} of at most {}", vm.memory.size, vm.memory.max);
    if let Some(balloon) = vm.memory.balloon {
        memory.push_str(&format!(", the balloon leaves {balloon}"));
    }
    sheet.row("memory", memory);
    sheet.row("firmware", word(&vm.firmware));
    sheet.row("devices", word(&vm.profile));
    sheet.row("machine type", &vm.pinned.machine_type);
    let model = match &vm.cpu {
        Some(cpu) if cpu.features.is_empty() => cpu.base.clone(),
        Some(cpu) => format!("{} and {} features", cpu.base, cpu.features.len()),
        None => vm.pinned.cpu_model.clone(),
    };
    sheet.row("CPU model", model);
    if !vm.cpus.compat.is_default() {
        sheet.row("CPU compatibility", word(&vm.cpus.compat));
    }
    sheet.row("config version", vm.pinned.config_version);
    sheet.row("after a crash", word(&vm.on_crash));
    sheet.row("revision", vm.revision);
}

fn present_run(sheet: &mut Sheet<'_>, run: &RunView) {
    sheet.group("Present run");
    sheet.row("began", time::both(run.started, time::now()));
    let accelerator = format!("{} ({})", word(&run.accelerator), run.accelerator_reason);
    sheet.row("accelerator", accelerator);
    sheet.row("QEMU", format!("{}, process {}", run.qemu, run.pid));
    sheet.row("processors", format!("{}, {} % of one in use", run.cpus, run.cpu_percent));
    sheet.row("memory", format!("{}, {} resident on the host", run.memory, run.resident));
    sheet.toned("not enforced", run.missing_limits.join("; "), Tone::Busy);
}

/// What the guest's kernel uses of its hardware, and what it leaves idle.
fn uses<T: std::fmt::Display>(sheet: &mut Sheet<'_>, name: &str, used: Option<T>, idle: Option<T>) {
    let Some(used) = used else { return };
    match idle {
        Some(idle) => sheet.toned(name, format!("{used} online, {idle} offline"), Tone::Busy),
        None => sheet.row(name, format!("{used} online")),
    };
}

fn guest(sheet: &mut Sheet<'_>, guest: &GuestView, out: &Output) {
    if matches!(guest.heartbeat, Heartbeat::Off) && guest.os.is_none() {
        return;
    }
    sheet.group("Guest");
    if guest.heartbeat == Heartbeat::NotInstalled && guest.agent.is_none() {
        sheet.toned("agent", "no answer; install qemu-guest-agent in the guest", Tone::Faint);
        return;
    }
    sheet.opt("host name", guest.hostname.as_ref());
    sheet.opt("system", guest.os.as_ref());
    sheet.opt("kernel", guest.kernel.as_ref());
    sheet.opt("agent", guest.agent.as_ref());
    sheet.opt("time zone", guest.timezone.as_ref());
    sheet.row("users", guest.users.join(", "));
    uses(sheet, "processors", guest.cpus_online, guest.cpus_offline.filter(|it| *it > 0));
    let idle = guest.memory_offline.filter(|it| *it > Bytes::ZERO);
    uses(sheet, "memory blocks", guest.memory_online, idle);
    if guest.frozen {
        sheet.toned("file systems", "frozen", Tone::Busy);
    }
    if !guest.filesystems.is_empty() {
        let mut list = List::new(out, &["MOUNTED ON", "TYPE", "SIZE", "USED"]);
        for filesystem in &guest.filesystems {
            list.row(vec![
                Field::from(&filesystem.mountpoint),
                Field::from(&filesystem.kind),
                Field::from(filesystem.total.map(|b| b.to_string()).unwrap_or_default()),
                Field::from(filesystem.used.map(|b| b.to_string()).unwrap_or_default()),
            ]);
        }
        sheet.list(&list.render(""));
    }
}

/// The disks of a machine as a list.
pub(crate) fn disks(out: &Output, disks: &[DiskView]) -> String {
    let mut list = List::new(out, &["NAME", "SIZE", "ON DISK", "IMAGE", "FORMAT", "ACCESS"]);
    for disk in disks {
        list.row(vec![
            Field::from(&disk.name),
            Field::from(disk.size),
            Field::from(disk.allocated.map(|bytes| bytes.to_string()).unwrap_or_default()),
            Field::from(disk.image.as_deref().unwrap_or_default()),
            Field::from(word(&disk.format)),
            Field::from(if disk.read_only { "read only" } else { "read and write" }),
        ]);
    }
    list.render("no disks; add one with: muster vm disk add NAME --size 20G")
}

/// The adapters of a machine as a list.
pub(crate) fn nics(out: &Output, nics: &[NicView]) -> String {
    let mut list = List::new(out, &["NAME", "NETWORK", "MAC", "CABLE", "ADDRESSES", "RESERVED"]);
    for nic in nics {
        list.row(vec![
            Field::from(&nic.name),
            Field::from(&nic.network),
            Field::from(nic.mac),
            match nic.link_up {
                true => Field::toned("in", Tone::Good),
                false => Field::toned("out", Tone::Busy),
            },
            Field::from(nic.addresses.join(", ")),
            Field::from(nic.reserved_address.as_deref().unwrap_or_default()),
        ]);
    }
    list.render("no adapters; add one with: muster vm nic add NAME")
}

fn services(sheet: &mut Sheet<'_>, services: Services) {
    sheet.group("Integration services");
    let all = [
        ("shutdown", services.shutdown),
        ("heartbeat", services.heartbeat),
        ("exchange", services.exchange),
        ("time-sync", services.time_sync),
        ("backup", services.backup),
    ];
    for (name, on) in all {
        sheet.toned(
            name,
            if on { "on" } else { "off" },
            if on { Tone::Plain } else { Tone::Faint },
        );
    }
}
