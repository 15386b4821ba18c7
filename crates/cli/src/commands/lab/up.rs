//! `muster lab up`.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use api::model::Bytes;
use lab::Cancel;
use lab::Lab;
use lab::LabNet;
use lab::UpOptions;
use lab::UpReport;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::commands::lab::json;
use crate::error::CliError;
use crate::output::Output;

/// Make a lab: so many nodes, their networks and a shared directory, started and made one cluster.
///
/// Each node has its own network, mount and UTS namespace, its own /var/lib/muster and /run, and a
/// control group in which all of it runs. All nodes see one directory as /muster/share. Traffic
/// stays in the lab unless --host-link is given. A lab that is half made or broken is repaired; its
/// data stays. Ctrl-C takes away what was made.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab up
  muster lab up --nodes 5
  muster lab up --san 8G
  muster lab --dir /var/tmp/other up --nodes 2 --net 10.91.0.0/16 --host-link")]
pub(crate) struct Args {
    /// How many nodes, 1 to 64.
    #[arg(short, long, value_name = "COUNT", default_value_t = 3)]
    nodes: u8,
    /// Addresses of the lab, a private network of 16 bits.
    #[arg(long, value_name = "ADDRESS/16")]
    net: Option<LabNet>,
    /// Lay a cable between the lab and this machine, so that a browser here reaches the nodes.
    #[arg(long)]
    host_link: bool,
    /// Machines that only pretend: the control plane alone, with next to no load.
    #[arg(long)]
    fake: bool,
    /// Give all nodes a path to a LUN of that size, as a SAN does; again for a further LUN.
    #[arg(long, value_name = "SIZE")]
    san: Vec<Bytes>,
    /// Leave the nodes as hosts by themselves, instead of making one cluster of them.
    #[arg(long)]
    no_cluster: bool,
    /// File with further lines for the configuration of each daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    let exe = std::env::current_exe().map_err(|error| {
        CliError::failed(format!("this program's own path is unknown: {error}"), "mount /proc")
    })?;
    let config = match &args.config {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            CliError::usage(
                format!("cannot read {}: {error}", path.display()),
                "name a file with lines such as: recycle_days = 1",
            )
        })?,
        None => String::new(),
    };
    let options = UpOptions {
        exe,
        nodes: args.nodes,
        net: args.net,
        host_link: args.host_link,
        fake: args.fake,
        cluster: !args.no_cluster,
        san: args.san.iter().map(|size| size.get()).collect(),
        config,
    };
    let report = interruptible(lab, &options, out)?;
    show(out, lab, &report)
}

/// The work is done on a thread of its own; this one listens for Ctrl-C.
fn interruptible(lab: &Lab, options: &UpOptions, out: Output) -> Result<UpReport, CliError> {
    let cancel = Cancel::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::failed(format!("cannot start: {error}"), ""))?;
    let (sender, done) = sync_channel(1);
    std::thread::scope(|scope| {
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let worker = cancel.clone();
        scope.spawn(move || {
            let made = lab.up(options, &worker, &|step| out.note(step));
            // Whoever asked has gone: nobody is to be told.
            let _ = sender.send(made);
            let _ = ended.send(());
        });
        runtime.block_on(async {
            let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
                let _ = end.await;
                return;
            };
            tokio::select! {
                _ = end => return,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            out.note("interrupted; what was made is taken away");
            cancel.set();
        });
    });
    let made = done.recv();
    let made = made.map_err(|_| CliError::failed("it broke down", "clear up: muster lab down"))?;
    Ok(made?)
}

fn show(out: Output, lab: &Lab, report: &UpReport) -> Result<(), CliError> {
    if out.json {
        return json(out, report);
    }
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let word = if report.repaired { "made whole again" } else { "up" };
    let count = report.nodes.len();
    let formed = match report.formed_ms {
        Some(ms) => format!(" and are one cluster {} later", seconds(ms)),
        None => String::new(),
    };
    out.done(&format!(
        "the lab is {word}: {count} nodes answer after {}{formed}",
        seconds(report.ready_ms)
    ))?;
    let dir = lab.dir().display();
    out.note(&format!(
        "look:  muster lab --dir {dir} status\n\
         enter: muster lab --dir {dir} shell n1\n\
         end:   muster lab --dir {dir} down"
    ));
    Ok(())
}
