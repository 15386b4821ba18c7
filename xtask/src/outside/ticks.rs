//! The ticks of a bench guest (`xtask/guests/bench/benchload.c`), stamped by the host as they come:
//! how long the guest was not to be heard, and whether it is still the same guest.
//!
//! A guest's own clock stops with it and sees no pause; that it is behind afterwards, by the time the
//! host's clock went on alone, is how long the guest stood. One receiver hears the guest before and
//! after a migration, so the order in which ticks come is part of the proof: a number that comes
//! twice or goes back was sent by two machines that ran at once, or by an old copy.

use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use super::GUEST;
use super::space::Space;
use super::stamp;
use crate::stop;

/// Where the guest takes orders; stands in `xtask/guests/bench/benchload.c`.
const PORT: u16 = 7780;

/// Time between two ticks: well below the shortest pause that is to be seen.
const EVERY: Duration = Duration::from_millis(5);

/// How often an order is given again until its effect is seen.
const ORDER_EVERY: Duration = Duration::from_millis(200);

/// How often the receiver looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a guest may take to boot under emulation, and to make its working set.
const READY_LIMIT: Duration = Duration::from_secs(240);

/// How long a guest that migrated may take to go through all of its memory twice.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// How often the checks of a guest that has migrated are looked at.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Longest silence of a guest that is taken for alive.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What a guest does while it is migrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// MiB that are dirtied in a second.
    pub(crate) rate_mib: u64,
    /// MiB over which that goes round.
    pub(crate) set_mib: u64,
}

/// One tick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tick {
    came: Instant,
    number: u64,
    /// By the guest's own clock, in microseconds.
    guest_us: u64,
    ready: bool,
    /// Pages.
    dirtied: u64,
    rounds: u64,
    still: u64,
    wrong: u64,
}

/// Listens to one guest.
pub(crate) struct Watch {
    socket: UdpSocket,
    seen: Arc<Mutex<Vec<Tick>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to listen in a namespace that has the address [`super::HOST`].
    pub(crate) fn new(space: &Space) -> Result<Self> {
        let socket = space.within(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        stamp::ask(&socket)?;
        let (seen, ended) = (Arc::default(), Arc::default());
        let (ticks, end, ear) = (Arc::clone(&seen), Arc::clone(&ended), socket.try_clone()?);
        let thread = std::thread::spawn(move || listen(&ear, &ticks, &end));
        Ok(Self { socket, seen, ended, thread: Some(thread) })
    }

    /// Makes the guest tick under a load; returns when it does. Forgets all earlier ticks.
    pub(crate) fn run(&self, load: Load) -> Result<()> {
        self.ticks().clear();
        let order = format!("RUN {} {} {}", EVERY.as_micros(), load.rate_mib, load.set_mib);
        self.order_until(&order, |last| last.is_some_and(|it| it.ready))
            .context("the guest does not take up its load")
    }

    /// Makes the guest silent and idle, so that it takes nothing from another one.
    pub(crate) fn rest(&self) -> Result<()> {
        self.order_until("REST", |last| last.is_none_or(|it| it.came.elapsed() > ORDER_EVERY))
            .context("the guest does not become silent")
    }

    fn order_until(&self, order: &str, done: impl Fn(Option<&Tick>) -> bool) -> Result<()> {
        let end = Instant::now() + READY_LIMIT;
        loop {
            // Nobody may be there yet; then there is no way to it either.
            let _ = self.socket.send_to(order.as_bytes(), (GUEST, PORT));
            stop::pass(ORDER_EVERY)?;
            if done(self.ticks().last()) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "nothing within {} s", READY_LIMIT.as_secs());
        }
    }

    /// Waits until the guest has gone through all of its memory once more after now, whole rounds.
    pub(crate) fn check(&self, load: Load) -> Result<()> {
        let first = self.last()?;
        let end = Instant::now() + CHECK_LIMIT;
        loop {
            stop::pass(CHECK_EVERY)?;
            let last = self.last()?;
            in_order(&self.ticks())?;
            ensure!(last.wrong == 0, "{} pages of the guest are wrong", last.wrong);
            ensure!(last.came.elapsed() < SILENCE_MAX, "the guest is silent");
            // The first of two was under way.
            let dirty = load.rate_mib == 0 || last.rounds >= first.rounds + 2;
            if dirty && last.still >= first.still + 2 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the guest is too slow to check its memory: {last:?}");
        }
    }

    fn last(&self) -> Result<Tick> {
        self.ticks().last().copied().context("the guest has not ticked")
    }

    /// What came so far.
    pub(crate) fn ticks(&self) -> MutexGuard<'_, Vec<Tick>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(socket: &UdpSocket, seen: &Mutex<Vec<Tick>>, ended: &AtomicBool) {
    let mut text = [0; 256];
    while !ended.load(Ordering::Relaxed) {
        // Silence, or a way that is not there yet.
        let Ok((length, came)) = stamp::receive(socket, &mut text) else { continue };
        if let Some(tick) = parse(&String::from_utf8_lossy(&text[..length]), came) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(tick);
        }
    }
}

fn parse(text: &str, came: Instant) -> Option<Tick> {
    let mut words = text.strip_prefix("T ")?.split(' ').map(str::parse);
    let mut next = || words.next()?.ok();
    Some(Tick {
        came,
        number: next()?,
        guest_us: next()?,
        ready: next()? == 1,
        dirtied: next()?,
        rounds: next()?,
        still: next()?,
        wrong: next()?,
    })
}

/// Whether numbers only grow.
fn in_order(ticks: &[Tick]) -> Result<()> {
    for pair in ticks.windows(2) {
        if pair[1].number <= pair[0].number {
            bail!("after tick {} came tick {}", pair[0].number, pair[1].number);
        }
    }
    Ok(())
}

/// The longest time between two ticks of which one lies in a span, in milliseconds.
pub(crate) fn longest_gap_ms(ticks: &[Tick], from: Instant, to: Instant) -> f64 {
    ticks
        .windows(2)
        .filter(|pair| pair[1].came >= from && pair[0].came <= to)
        .map(|pair| pair[1].came.duration_since(pair[0].came).as_secs_f64() * 1e3)
        .fold(0.0, f64::max)
}

/// How long the guest's clock stood within a span, in milliseconds: by how much more the host's clock
/// went on than the guest's. None if the guest was not heard on both sides of it.
///
/// A tick may come late, but never early: of those on a side, the earliest by the guest's clock has
/// least of the network and of a busy host in it.
pub(crate) fn stood_ms(ticks: &[Tick], from: Instant, to: Instant, aside: Duration) -> Option<f64> {
    let origin = ticks.first()?;
    let late_ms = |tick: &Tick| {
        let guest_us = tick.guest_us.saturating_sub(origin.guest_us);
        tick.came.duration_since(origin.came).as_secs_f64() * 1e3 - guest_us as f64 / 1e3
    };
    let least = |from: Instant, to: Instant| {
        let side = ticks.iter().filter(|tick| tick.came >= from && tick.came <= to);
        side.map(late_ms).reduce(f64::min)
    };
    Some(least(to, to + aside)? - least(from.checked_sub(aside)?, from)?)
}

/// What the guest dirtied in a span, in MiB per second of its own time.
pub(crate) fn dirtied_mib_s(ticks: &[Tick], from: Instant, to: Instant) -> f64 {
    let mut span = ticks.iter().filter(|tick| tick.came >= from && tick.came <= to);
    let Some(first) = span.next() else { return 0.0 };
    let last = span.next_back().unwrap_or(first);
    let pages = last.dirtied.saturating_sub(first.dirtied) as f64;
    pages / 256.0 / (last.guest_us.saturating_sub(first.guest_us).max(1) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::Instant;

    use super::Tick;
    use super::dirtied_mib_s;
    use super::in_order;
    use super::longest_gap_ms;
    use super::parse;
    use super::stood_ms;

    fn ticks(began: Instant, at_ms: &[(u64, u64)]) -> Vec<Tick> {
        let tick = |(number, ms): &(u64, u64)| {
            let text = format!("T {number} {} 1 {} 0 0 0", ms * 1000, ms * 256);
            parse(&text, began + Duration::from_millis(*ms)).unwrap()
        };
        at_ms.iter().map(tick).collect()
    }

    #[test]
    fn the_longest_gap_of_a_span_counts_also_where_it_leaves_the_span() {
        let began = Instant::now();
        let all = ticks(began, &[(1, 0), (2, 50), (3, 55), (4, 95), (5, 100), (6, 400)]);
        let at = |ms| began + Duration::from_millis(ms);
        assert_eq!(longest_gap_ms(&all, at(60), at(99)).round(), 40.0);
        assert_eq!(longest_gap_ms(&all, at(60), at(101)).round(), 300.0);
        assert_eq!(dirtied_mib_s(&all, at(0), at(100)).round(), 1000.0);
    }

    #[test]
    fn a_clock_that_stood_is_behind_however_late_ticks_come() {
        let began = Instant::now();
        // By the host's clock, by the guest's: 12 late, 300 stood, up to 40 late.
        let ms = [(0, 0), (17, 5), (110, 110), (440, 100), (500, 200), (601, 300), (702, 400)];
        let tick = |(number, (host, guest)): (usize, &(u64, u64))| {
            let text = format!("T {number} {} 1 0 0 0 0", guest * 1000);
            parse(&text, began + Duration::from_millis(*host)).unwrap()
        };
        let all: Vec<Tick> = ms.iter().enumerate().map(tick).collect();
        let at = |ms| began + Duration::from_millis(ms);
        let aside = Duration::from_millis(300);
        assert_eq!(stood_ms(&all, at(200), at(410), aside).map(f64::round), Some(300.0));
        assert_eq!(stood_ms(&all, at(200), at(900), aside), None);
    }

    #[test]
    fn a_number_that_comes_twice_or_goes_back_is_found() {
        let began = Instant::now();
        assert!(in_order(&ticks(began, &[(1, 0), (2, 5), (9, 10)])).is_ok());
        assert!(in_order(&ticks(began, &[(1, 0), (1, 5)])).is_err());
        assert!(in_order(&ticks(began, &[(7, 0), (3, 5)])).is_err());
        assert!(parse("T 1 2 1 3", began).is_none());
    }
}
