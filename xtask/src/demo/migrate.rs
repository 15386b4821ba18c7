//! The scene of live migration, in a lab: a guest that changes its memory and serves a page moves
//! between two nodes, back and forth and by a drain, while a client in its network pings it and asks
//! for the page. No request may be lost, and the guest finds all its memory as it left it.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::Step;
use crate::guest;
use crate::lab::Lab;
use crate::lab::Reach;
use crate::outside;
use crate::outside::GUEST;
use crate::outside::ping::Pings;
use crate::outside::space::Space;
use crate::outside::ticks::Load;
use crate::outside::ticks::Watch;
use crate::outside::ticks::longest_gap_ms;
use crate::outside::ticks::stood_ms;
use crate::outside::web::Web;
use crate::stop;

/// The machine of this scene, and its memory.
const VM: &str = "demo3";
const MEMORY_MIB: u64 = 256;

/// What its guest does all the time.
const LOAD: Load = Load { rate_mib: 40, set_mib: 64 };

/// How often it is migrated by itself, before the drain.
const ROUNDS: usize = 4;

/// How long the guest is heard on both sides of a migration. It also is what a migration has to come
/// to rest: the announcements of the new place take a second.
const ASIDE: Duration = Duration::from_millis(1500);

/// A client in the guest's network.
struct Client {
    pings: Pings,
    web: Web,
}

/// What a migration took, and what was expected, as Muster tells it. In milliseconds.
struct Told {
    total: [f64; 2],
    pause: [f64; 2],
}

/// What the guest and the client felt in a span. In milliseconds.
struct Felt {
    /// How long the guest's own clock stood.
    stood: f64,
    /// The longest time without the guest's ticks, and without an answer to a ping.
    no_tick: f64,
    no_ping: f64,
    slowest_page: f64,
}

/// A line of the table at the end.
struct Line {
    what: String,
    told: Option<Told>,
    felt: Felt,
}

struct Scene<'lab> {
    lab: &'lab Lab,
    watch: Watch,
    client: Client,
    on: String,
    lines: Vec<Line>,
}

/// Plays the scene; gives its lab, with its machine.
pub(super) fn play(binary: &Path, reach: Reach, steps: &mut Vec<Step>) -> Result<Lab> {
    let began = Instant::now();
    println!("\nA lab of two nodes ...");
    let image = guest::ensure(guest::Which::Bench, false)?;
    let lab = Lab::up_for(binary, super::LAB, 2, reach)?;
    outside::prepare(&lab, &image)?;
    super::done(steps, "two nodes", "a cluster with a shared volume and a network", began);

    let began = Instant::now();
    let (on, watch) = outside::boot(&lab, VM, MEMORY_MIB)?;
    watch.run(LOAD)?;
    let said = format!(
        "{VM} runs on {on}: {MEMORY_MIB} MiB, of which its guest changes {} MiB every second",
        LOAD.rate_mib
    );
    super::done(steps, "machine on a volume", &said, began);

    let began = Instant::now();
    let space = Space::open(&lab.world())?;
    let web = Web::start(&space, GUEST)?;
    let client = Client { pings: Pings::start(&space, GUEST)?, web };
    let said = format!("pings {GUEST} every 10 ms, and asks for its page every 50 ms");
    super::done(steps, "client", &said, began);
    Scene { lab: &lab, watch, client, on, lines: Vec::new() }.play(steps)?;
    Ok(lab)
}

impl Scene<'_> {
    fn play(mut self, steps: &mut Vec<Step>) -> Result<()> {
        self.rests()?;
        let (to, began) = (self.other()?, Instant::now());
        self.lab.typed(&self.on, &["vm", "migrate", VM, "--to", &to, "--dry-run"])?;
        super::done(steps, "dry run", "nothing stands against it", began);

        for round in 1..=ROUNDS {
            let (to, began) = (self.other()?, Instant::now());
            let asked_of = self.on.clone();
            self.passes(&asked_of, &["vm", "migrate", VM, "--to", &to])?;
            super::done(steps, &format!("migration {round}"), &self.last()?, began);
        }

        let (node, began) = (self.on.clone(), Instant::now());
        self.passes(&node, &["node", "drain", &node])?;
        super::done(steps, "drain by migration", &self.last()?, began);
        self.lab.typed(&node, &["node", "resume", &node])?;
        self.verdict(steps)
    }

    /// Where the machine is not.
    fn other(&self) -> Result<String> {
        let other = self.lab.nodes().iter().find(|node| **node != self.on);
        other.cloned().context("a lab of one node")
    }

    /// What is felt while nothing happens: what figures of this size are worth on this machine.
    fn rests(&mut self) -> Result<()> {
        stop::pass(ASIDE)?;
        let began = Instant::now();
        stop::pass(ASIDE)?;
        let ended = Instant::now();
        stop::pass(ASIDE)?;
        let felt = self.felt(began, ended)?;
        self.lines.push(Line { what: "no migration".to_owned(), told: None, felt });
        Ok(())
    }

    /// Types a command that migrates the machine to the other node, and sees how the guest takes it.
    fn passes(&mut self, node: &str, command: &[&str]) -> Result<()> {
        stop::pass(ASIDE)?;
        let to = self.other()?;
        let began = Instant::now();
        self.lab.typed(node, command)?;
        let ended = Instant::now();
        stop::pass(ASIDE)?;
        let view = self.lab.muster(&to, &["vm", "show", VM])?;
        ensure!(view["node"] == to.as_str(), "{VM} is on {}, not on {to}", view["node"]);
        let (told, felt) = (Some(self.told(&to)?), self.felt(began, ended)?);
        self.lines.push(Line { what: format!("{} to {to}", self.on), told, felt });
        self.on = to;
        // All of its memory is gone through once more: a page that is wrong shows only then.
        self.watch.check(LOAD).context("the guest's memory")
    }

    fn felt(&self, began: Instant, ended: Instant) -> Result<Felt> {
        let ticks = self.watch.ticks();
        let stood = stood_ms(&ticks, began, ended, ASIDE);
        Ok(Felt {
            stood: stood.context("the guest does not tick")?,
            no_tick: longest_gap_ms(&ticks, began, ended),
            no_ping: self.client.pings.silence_ms(began, ended),
            slowest_page: self.client.web.slowest_ms(began, ended),
        })
    }

    /// What Muster tells of the machine's last migration.
    fn told(&self, node: &str) -> Result<Told> {
        let ops = self.lab.muster(node, &["op", "list", "--all"])?;
        let ours = ops.as_array().into_iter().flatten().filter(|op| {
            op["target"] == VM && op["state"] == "done" && op["migration"]["measured"].is_object()
        });
        let last = ours.max_by_key(|op| op["begun"].as_u64());
        let report = &last.context("no operation tells of the migration")?["migration"];
        let figures = |what| -> Result<[f64; 2]> {
            let told = |part| outside::told(report, part, what);
            Ok([told("measured")?, told("predicted")?])
        };
        Ok(Told { total: figures("total_ms")?, pause: figures("pause_ms")? })
    }

    fn last(&self) -> Result<String> {
        let Line { what, felt, .. } = self.lines.last().context("nothing was migrated")?;
        Ok(format!(
            "{what}: its clock stood for {:.0} ms, no ping was answered for {:.0} ms; memory whole",
            felt.stood, felt.no_ping
        ))
    }

    /// What all of it came to; an error if a request was lost.
    fn verdict(self, steps: &mut Vec<Step>) -> Result<()> {
        let began = Instant::now();
        println!("\n{}\n", table(&self.lines));
        let (served, pings) = (self.client.web.end(), self.client.pings.end());
        let said = format!(
            "{} sent, {} answered, longest silence {:.0} ms",
            pings.sent, pings.answered, pings.longest_ms
        );
        super::done(steps, "pings", &said, began);
        let (lost, slowest) = (served.lost.len(), served.slowest_ms);
        let said = format!("{} made, {lost} lost, slowest {slowest:.0} ms", served.made);
        super::done(steps, "requests", &said, began);
        let first = served.lost.first().map_or("", String::as_str);
        ensure!(lost == 0, "{lost} requests were lost, the first one so: {first}");
        ensure!(served.made > 0 && pings.answered > 0, "nobody has looked");
        let moves = self.lines.iter().filter(|line| line.told.is_some()).count();
        let said = format!("whole after each of {moves} moves, as the guest found itself");
        super::done(steps, "memory of the guest", &said, began);
        Ok(())
    }
}

/// All migrations, a line each.
fn table(lines: &[Line]) -> String {
    let row = |cells: [&str; 7]| {
        let [what, total, pause, stood, no_tick, no_ping, page] = cells;
        format!("  {what:<14}{total:>13}{pause:>11}{stood:>13}{no_tick:>9}{no_ping:>7}{page:>10}")
    };
    let mut rows = vec![
        "  milliseconds   Muster (expected)         the guest's    longest without".to_owned(),
        row(["", "in all", "pause", "clock stood", "a tick", "ping", "the page"]),
    ];
    rows.extend(lines.iter().map(|Line { what, told, felt }| {
        let both = |[came, expected]: [f64; 2]| format!("{came:.0} ({expected:.0})");
        let (total, pause) = match told {
            Some(told) => (both(told.total), both(told.pause)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let felt = [felt.stood, felt.no_tick, felt.no_ping, felt.slowest_page];
        let [stood, no_tick, no_ping, page] = felt.map(|it| format!("{it:.0}"));
        row([what, &total, &pause, &stood, &no_tick, &no_ping, &page])
    }));
    rows.join("\n")
}
