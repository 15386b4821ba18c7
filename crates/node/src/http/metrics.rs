//! What machines and nodes used: from this node's history and, where it has not all of it, the others'.
//!
//! Each node keeps what it saw itself. Of a machine that moved, its owner has the last part and those
//! before it the earlier ones. The owner is asked first; only where it does not reach back far enough, all
//! others are. Needs no majority: what is lost with one is when somebody wants to see it.

use std::ops::Range;
use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::history::Figure;
use api::history::MetricsQuery;
use api::history::MetricsView;
use api::history::SeriesView;
use futures::future::join_all;
use model::NodeId;
use model::UnixMillis;
use model::VmId;
use peer::CallError;
use peer::Method;
use peer::Refusal;
use peer::RefusalCode;
use serde::Deserialize;
use serde::Serialize;

use crate::app::App;
use crate::app::now;
use crate::history::LEVELS;
use crate::history::Level;
use crate::history::Object;
use crate::history::Slot;
use crate::http::Call;
use crate::http::Mounts;

/// Most points of an answer whose resolution was left to us: more than a screen has columns.
const POINTS_MAX: u64 = 1_500;

/// How much is shown if nothing is said.
const SPAN_DEFAULT_MS: u64 = 600_000;

/// How long another node is waited for: one that is away must not hold up a chart.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);

pub(super) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::VmMetrics, _, _>(of_vm);
    mounts.json::<ep::NodeMetrics, _, _>(of_node);
}

/// Some windows of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Windows {
    level: usize,
    from: u64,
    to: u64,
}

impl Windows {
    /// What a query asks for, at a moment.
    fn of(query: &MetricsQuery, now: UnixMillis) -> Result<Self, ApiError> {
        let to = query.to.map_or(now.get(), |to| to.get().min(now.get()));
        let from = query.from.map_or(to.saturating_sub(SPAN_DEFAULT_MS), UnixMillis::get);
        if from >= to {
            return Err(refused("`from` is not before `to`, or not before now"));
        }
        let (from, to, now) = (from / 1_000, to / 1_000, now.get() / 1_000);
        let fits = |level: &Level| {
            now.saturating_sub(from) <= level.step * level.count
                && (to - from) / level.step <= POINTS_MAX
        };
        let level = match query.resolution_s {
            Some(step) => LEVELS.iter().position(|level| level.step == step).ok_or_else(|| {
                refused("the resolution is none of 1, 10, 60, 600 and 3600 seconds")
            })?,
            None => LEVELS.iter().position(fits).unwrap_or(LEVELS.len() - 1),
        };
        let Level { step, count } = LEVELS[level];
        // What is older was written over.
        let oldest = (now / step + 1).saturating_sub(count);
        let (from, to) = ((from / step).max(oldest), to / step + 1);
        Ok(Self { level, from: from.min(to), to })
    }

    fn range(self) -> Range<u64> {
        self.from..self.to
    }

    fn len(self) -> u64 {
        self.to - self.from
    }

    /// What another node asks for: a stranger's numbers.
    fn check(self) -> Result<Self, &'static str> {
        let level = LEVELS.get(self.level).ok_or("there is no such resolution")?;
        if self.to < self.from || self.len() > level.count + 1 {
            return Err("that is no stretch of time");
        }
        Ok(self)
    }
}

fn refused(message: &str) -> ApiError {
    let hint = "give times in milliseconds since 1970, or leave them out for the last ten minutes";
    ApiError::new(ErrorKind::BadRequest, "bad_time", message, hint)
}

async fn of_vm(call: Call<ep::VmMetrics>) -> Result<MetricsView, ApiError> {
    let windows = Windows::of(&call.query, now())?;
    let state = call.app.truth.state();
    let (vm, owner) = {
        let record = state.find_vm(call.param(0))?;
        (record.id, record.owner)
    };
    let mut parts = vec![part_of(&call.app, owner, Some(vm), windows).await];
    let reaches =
        |part: &Part| matches!(part, Ok(slots) if slots.first().is_some_and(Option::is_some));
    let mut asked = vec![owner];
    if !reaches(&parts[0]) {
        let others: Vec<NodeId> = state.nodes.keys().copied().filter(|it| *it != owner).collect();
        let asks = others.iter().map(|node| part_of(&call.app, *node, Some(vm), windows));
        parts.extend(join_all(asks).await);
        asked.extend(others);
    }
    view(&call.app, windows, asked.into_iter().zip(parts).collect())
}

async fn of_node(call: Call<ep::NodeMetrics>) -> Result<MetricsView, ApiError> {
    let windows = Windows::of(&call.query, now())?;
    let node = call.app.truth.state().find_node(call.param(0))?.id;
    let part = part_of(&call.app, node, None, windows).await;
    view(&call.app, windows, vec![(node, part)])
}

/// A point as it goes from node to node: JSON has no word for what is not a number.
type Point = Option<(Vec<Option<f32>>, Vec<Option<f32>>)>;

/// What one node has.
type Part = Result<Vec<Option<Slot>>, String>;

/// A question to another node.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    vm: Option<VmId>,
    windows: Windows,
}

async fn part_of(app: &App, node: NodeId, vm: Option<VmId>, windows: Windows) -> Part {
    if node == app.node {
        return read(app, vm, windows).await;
    }
    let question = Question { vm, windows };
    let asked = app.peers.ask(node, Method::HISTORY, &question, ASK_TIMEOUT).await;
    let points: Vec<Point> = asked.map_err(|error: CallError| error.problem().to_string())?;
    if u64::try_from(points.len()) != Ok(windows.len()) {
        return Err("it gave another time than was asked for".to_owned());
    }
    Ok(points.into_iter().map(slot).collect())
}

async fn read(app: &App, vm: Option<VmId>, windows: Windows) -> Part {
    let object = vm.map_or(Object::Node, Object::Vm);
    let history = app.history.clone();
    let reading =
        tokio::task::spawn_blocking(move || history.read(object, windows.level, windows.range()));
    // A disk that hangs is a part that is missing.
    match tokio::time::timeout(ASK_TIMEOUT, reading).await {
        Ok(Ok(read)) => read.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its disk does not answer".to_owned()),
    }
}

/// Answers another node.
pub(crate) async fn own(app: &App, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let refused = |why: String| Refusal::new(RefusalCode::Refused, why, "upgrade the older node");
    let question: Question =
        serde_json::from_slice(body).map_err(|error| refused(error.to_string()))?;
    let windows = question.windows.check().map_err(|why| refused(why.to_owned()))?;
    let failed = |why: String| Refusal::new(RefusalCode::Failed, why, "look at that node's log");
    let slots = read(app, question.vm, windows).await.map_err(failed)?;
    let points: Vec<Point> = slots.into_iter().map(|slot| slot.map(point)).collect();
    serde_json::to_vec(&points).map_err(|error| failed(error.to_string()))
}

fn point(slot: Slot) -> (Vec<Option<f32>>, Vec<Option<f32>>) {
    let list = |values: &[f32]| values.iter().map(|it| it.is_finite().then_some(*it)).collect();
    (list(&slot.mean), list(&slot.peak))
}

fn slot(point: Point) -> Option<Slot> {
    let (mean, peak) = point?;
    let values = |list: &[Option<f32>]| {
        // An older or newer node may have fewer or more figures.
        std::array::from_fn(|place| list.get(place).copied().flatten().unwrap_or(f32::NAN))
    };
    Some(Slot { mean: values(&mean), peak: values(&peak) })
}

fn view(app: &App, windows: Windows, parts: Vec<(NodeId, Part)>) -> Result<MetricsView, ApiError> {
    let state = app.truth.state();
    let name = |node: &NodeId| state.nodes.get(node).map(|it| it.name.clone());
    let silent = parts.iter().filter(|(_, part)| part.is_err()).filter_map(|(it, _)| name(it));
    let silent: Vec<_> = silent.collect();
    let known: Vec<Vec<Option<Slot>>> =
        parts.iter().filter_map(|(_, part)| part.clone().ok()).collect();
    if known.is_empty() {
        let why = parts.iter().find_map(|(_, part)| part.as_ref().err().cloned());
        let why = why.unwrap_or_default();
        let who = silent.first().map_or("the node", |name| name.as_str());
        let message = format!("{who} keeps these figures and did not give them: {why}");
        let hint = "see: muster cluster status";
        return Err(ApiError::new(ErrorKind::Unavailable, "node_silent", message, hint));
    }
    let level = LEVELS[windows.level];
    Ok(MetricsView {
        from: UnixMillis::new(windows.from * level.step * 1_000),
        resolution_s: level.step,
        points: windows.len(),
        series: series(&merged(&known)),
        silent,
    })
}

/// One point for each window: of a machine that moved within a window, each node has a part of it.
fn merged(parts: &[Vec<Option<Slot>>]) -> Vec<Option<Slot>> {
    let count = parts.iter().map(Vec::len).max().unwrap_or_default();
    let of = |place: usize| -> Option<Slot> {
        let slots: Vec<Slot> = parts.iter().filter_map(|part| *part.get(place)?).collect();
        (!slots.is_empty()).then(|| Slot::together(&slots))
    };
    (0..count).map(of).collect()
}

fn series(slots: &[Option<Slot>]) -> Vec<SeriesView> {
    let all = Figure::ALL.into_iter().enumerate().map(|(place, figure)| SeriesView {
        figure,
        mean: slots.iter().map(|slot| told(slot.as_ref()?.mean[place])).collect(),
        peak: slots.iter().map(|slot| told(slot.as_ref()?.peak[place])).collect(),
    });
    all.filter(|series| series.mean.iter().any(Option::is_some)).collect()
}

/// With two places: a chart shows no more, and JSON would write a short float with seventeen.
fn told(value: f32) -> Option<f64> {
    value.is_finite().then(|| (f64::from(value) * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);

    fn asked(
        from_s: u64,
        to_s: Option<u64>,
        resolution_s: Option<u64>,
    ) -> Result<Windows, ApiError> {
        let before = |seconds: u64| UnixMillis::new(NOW.get() - seconds * 1_000);
        let query = MetricsQuery { from: Some(before(from_s)), to: to_s.map(before), resolution_s };
        Windows::of(&query, NOW)
    }

    #[test]
    fn the_finest_resolution_that_reaches_back_is_taken() {
        let level = |from, to| asked(from, to, None).unwrap().level;
        assert_eq!(Windows::of(&MetricsQuery::default(), NOW).unwrap().len(), 600);
        assert_eq!(level(600, None), 0);
        assert_eq!(level(601, None), 1);
        assert_eq!(level(601, Some(600)), 1, "short, but long ago");
        assert_eq!(level(7_200, None), 1);
        assert_eq!(level(86_400, None), 2);
        assert_eq!(level(2 * 86_400, None), 3, "2,880 minutes are too many points");
        assert_eq!(level(30 * 86_400, None), 4);
        assert_eq!(level(90_000 * 3_600, None), 4, "older than anything");
    }

    #[test]
    fn what_was_written_over_is_not_asked_for_and_nonsense_is_refused() {
        let year = asked(90_000 * 3_600, None, Some(3_600)).unwrap();
        assert!(year.len() <= LEVELS[4].count && year.check().is_ok());
        let gone = asked(5_000, Some(4_000), Some(1)).unwrap();
        assert_eq!(gone.len(), 0, "{gone:?}");
        for bad in [asked(10, Some(20), None), asked(10, None, Some(7)), asked(0, None, None)] {
            let error = bad.unwrap_err();
            assert_eq!((error.kind, error.code.as_str()), (ErrorKind::BadRequest, "bad_time"));
            assert!(!error.hint.is_empty());
        }
        for (level, from, to) in [(9, 0, 1), (0, 5, 4), (0, 0, u64::MAX)] {
            assert!(Windows { level, from, to }.check().is_err());
        }
    }

    #[test]
    fn parts_of_several_nodes_are_one_line() {
        let slot = |value: f32| {
            let mut values = [f32::NAN; Figure::ALL.len()];
            values[0] = value;
            Some(Slot { mean: values, peak: values })
        };
        let parts = [vec![None, slot(4.0), slot(6.0)], vec![slot(1.0), slot(2.0), None]];
        let lines = series(&merged(&parts));
        assert_eq!(lines.len(), 1, "of nine figures nothing is known");
        assert_eq!(lines[0].mean, [Some(1.0), Some(3.0), Some(6.0)]);
        assert_eq!(lines[0].peak, [Some(1.0), Some(4.0), Some(6.0)]);
        assert!(series(&[None, None]).is_empty());
    }

    #[test]
    fn a_point_goes_from_node_to_node_as_it_is() {
        let mut values = [f32::NAN; Figure::ALL.len()];
        values[3] = 0.1;
        let sent = serde_json::to_vec(&Some(point(Slot { mean: values, peak: values }))).unwrap();
        let came = slot(serde_json::from_slice(&sent).unwrap()).unwrap();
        assert_eq!(came.mean[3], 0.1);
        assert!(came.mean[0].is_nan());
        let fewer: Point = Some((vec![Some(1.0)], vec![]));
        assert!(slot(fewer).unwrap().peak[0].is_nan());
    }
}
