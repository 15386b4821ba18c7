//! What a machine wants when nodes are lost, drained and come back.

use api::model::HaChange;
use api::model::Millis;
use api::model::Name;
use api::model::Priority;
use clap::ValueEnum;

use crate::complete;
use crate::parse;

/// High availability; only machines on a volume can be started on another node.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "High availability")]
pub(crate) struct HaArgs {
    /// Start it on another node when its own is lost.
    #[arg(long, value_name = "on|off", value_parser = parse::switch)]
    failover: Option<bool>,
    /// Its place in the order of starting.
    #[arg(long, value_name = "WHICH")]
    priority: Option<PriorityWord>,
    /// Node that it should run on, the best first; may be given more than once.
    #[arg(long, value_name = "NODE", add = complete::nodes())]
    prefer: Vec<Name>,
    /// Prefer no node.
    #[arg(long, conflicts_with = "prefer")]
    prefer_none: bool,
    /// Node that it may run on, and no other; may be given more than once.
    #[arg(long, value_name = "NODE", add = complete::nodes())]
    only_on: Vec<Name>,
    /// Let it run on every node.
    #[arg(long, conflicts_with = "only_on")]
    anywhere: bool,
    /// Go back to a preferred node when that is there again.
    #[arg(long, value_name = "on|off", value_parser = parse::switch)]
    failback: Option<bool>,
    /// Machine that must be there before this one is started after a loss; may be given more than
    /// once.
    #[arg(long, value_name = "NAME", add = complete::vms())]
    after: Vec<Name>,
    /// Wait for no machine.
    #[arg(long, conflicts_with = "after")]
    after_none: bool,
    /// Most takeovers in the period; one more leaves it off.
    #[arg(long, value_name = "COUNT")]
    takeovers_max: Option<u32>,
    /// The period over which takeovers are counted: 60s, 1h, 1d.
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    takeover_period: Option<u64>,
    /// Start it again when its guest's heartbeat was there and is silent, and its disks are idle.
    #[arg(long, value_name = "on|off", value_parser = parse::switch)]
    restart_hung: Option<bool>,
    /// How long a silent heartbeat is suffered: 60s, 5m.
    #[arg(long, value_name = "TIME", value_parser = parse::seconds)]
    hung_after: Option<u64>,
}

/// Priority, as a word of the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PriorityWord {
    High,
    Medium,
    Low,
    /// Never by itself.
    NoAutoStart,
}

impl HaArgs {
    /// What is to change.
    pub(crate) fn change(self) -> HaChange {
        let list = |names: Vec<Name>, none: bool| (none || !names.is_empty()).then_some(names);
        HaChange {
            enabled: self.failover,
            priority: self.priority.map(|word| match word {
                PriorityWord::High => Priority::High,
                PriorityWord::Medium => Priority::Medium,
                PriorityWord::Low => Priority::Low,
                PriorityWord::NoAutoStart => Priority::NoAutoStart,
            }),
            preferred: list(self.prefer, self.prefer_none),
            possible: list(self.only_on, self.anywhere),
            failback: self.failback,
            after: list(self.after, self.after_none),
            failures_max: self.takeovers_max,
            failure_period: self.takeover_period.map(Millis::from_secs),
            restart_hung: self.restart_hung,
            hung_after: self.hung_after.map(Millis::from_secs),
        }
    }
}
