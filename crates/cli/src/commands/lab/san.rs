//! `muster lab san`: the pretend SAN and its faults.

use lab::Lab;
use lab::NodeName;
use lab::san::CacheFate;
use lab::san::LunStatus;
use lab::san::SanStatus;

use crate::commands::lab::json;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

/// Show the LUN that all nodes share, and make its faults.
///
/// A lab has one when it was made with --san. Each node finds its own paths to its LUNs as
/// /muster/san/lun0 and so on. A node that loses power loses its path first: nothing of it is written any more.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab san show
  muster lab san cut n2
  muster lab san power-loss --cache drawn --seed 7")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the LUN, its paths, keys and faults.
    #[command(after_help = "Examples:\n  muster lab san show")]
    Show,
    /// Cut a node's path: its commands fail at once.
    #[command(after_help = "Examples:\n  muster lab san cut n2")]
    Cut {
        /// The node.
        node: NodeName,
    },
    /// Mend a node's path.
    #[command(after_help = "Examples:\n  muster lab san mend n2")]
    Mend {
        /// The node.
        node: NodeName,
    },
    /// Make each command take longer; 0 ends it.
    #[command(after_help = "Examples:\n  muster lab san slow 20")]
    Slow {
        /// Milliseconds, at most 60000.
        #[arg(value_name = "MILLISECONDS")]
        delay: u64,
    },
    /// Take the LUN's power for a moment: what no flush covered has the fate that is given.
    #[command(
        after_help = "Examples:\n  muster lab san power-loss\n  muster lab san power-loss --cache drawn --seed 7"
    )]
    PowerLoss {
        /// What becomes of the cache: lost; kept; or drawn, each block by lot kept, lost or torn.
        #[arg(long, value_enum, default_value_t = Cache::Lost)]
        cache: Cache,
        /// Of the lot: the same seed and cache give the same blocks.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        seed: u64,
    },
    /// Start it again after its process was killed.
    #[command(after_help = "Examples:\n  muster lab san restart")]
    Restart,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Cache {
    Lost,
    Kept,
    Drawn,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    match args.verb {
        Verb::Show => {
            let status = lab.show_san()?;
            if out.json {
                return json(out, &status);
            }
            out.text(&render(out, &status))
        }
        Verb::Cut { node } => {
            lab.set_san_path(node, false)?;
            out.done(&format!("the paths of {node} to the SAN are cut"))
        }
        Verb::Mend { node } => {
            lab.set_san_path(node, true)?;
            out.done(&format!("the paths of {node} to the SAN carry commands"))
        }
        Verb::Slow { delay } => {
            lab.set_san_delay(delay)?;
            out.done(&format!("each command of the SAN takes {delay} ms longer"))
        }
        Verb::PowerLoss { cache, seed } => {
            let cached: u64 = lab.show_san()?.luns.iter().map(|lun| lun.cached).sum();
            lab.san_power_loss(match cache {
                Cache::Lost => CacheFate::Lost,
                Cache::Kept => CacheFate::Kept,
                Cache::Drawn => CacheFate::Drawn { seed },
            })?;
            out.done(&format!("the SAN lost power with some {cached} bytes in its cache"))
        }
        Verb::Restart => {
            lab.restart_san()?;
            out.done("the SAN answers; nodes that ran meanwhile need a power-off and power-on")
        }
    }
}

fn render(out: Output, status: &SanStatus) -> String {
    let luns = status.luns.iter().map(|lun| render_lun(out, lun));
    luns.collect::<Vec<_>>().join("\n\n")
}

fn render_lun(out: Output, lun: &LunStatus) -> String {
    let reserved = if lun.reserved { "reserved" } else { "not reserved" };
    let mut lines = vec![
        format!("{:8} {} bytes, {reserved}", lun.name, lun.size),
        format!("cache    {} bytes not flushed; {} flushes", lun.cached, lun.flushes),
    ];
    if lun.delay_ms > 0 {
        lines.push(format!("fault: each command takes {} ms longer", lun.delay_ms));
    }
    let mut list = List::new(&out, &["NODE", "PATH", "DEVICE", "LIVES", "KEY"]);
    for path in &lun.paths {
        list.row(vec![
            Field::from(path.node),
            match path.up {
                true => Field::toned("up", Tone::Good),
                false => Field::toned("cut", Tone::Bad),
            },
            Field::from(path.device.clone().unwrap_or_else(|| "-".to_owned())),
            Field::from(path.life),
            Field::from(path.key.map_or_else(|| "-".to_owned(), |key| format!("{key:#x}"))),
        ]);
    }
    lines.push(list.render("no paths"));
    lines.join("\n")
}
