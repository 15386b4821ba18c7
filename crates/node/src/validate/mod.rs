//! Validation: do the hosts of a cluster fit together, and can they be relied on.
//!
//! ```text
//!   asked node                       each node (also the asked one)
//!     ask: part by part ------------> collect: clock, host, disks, links, fence, witness
//!     picture  <--------------------- facts (versioned, held to limits)
//!        |
//!        +--> rules (pure) --> findings --> report, kept in the data directory
//! ```
//!
//! A validation changes nothing but files of a moment, switches nothing off, and ends within
//! [`LIMIT`]. Nodes are asked for parts that load a disk, a line or a device one part after the other,
//! so that one measurement does not disturb another. One validation runs at a time on a node, and a
//! node answers few questions at once, whoever asks.

mod ask;
mod collect;
mod disk;
mod facts;
mod measure;
mod newcomer;
mod rules;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use api::ApiError;
use api::ErrorKind;
use api::validate::Check;
use api::validate::FindingView;
use api::validate::ValidateBody;
use api::validate::ValidationProgressView;
use api::validate::ValidationReport;
use api::validate::ValidationView;
use api::validate::Verdict;
use bytes::Bytes;
use model::NodeId;
use model::UnixMillis;
use peer::JoinToken;
use peer::Refusal;
use peer::RefusalCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::app::App;
use crate::app::now;
use crate::cluster::join;
use facts::Part;
use facts::Question;
use rules::Picture;

/// How long a validation takes at most: as long as a person watches.
const LIMIT: Duration = Duration::from_secs(180);

/// Questions that a node answers at once: one validation asks for one part at a time, and two nodes
/// may be asked to validate at once.
const AT_ONCE: usize = 4;

/// The longest limit that is granted to another node's question.
const QUESTION_LIMIT_MAX: Duration = Duration::from_secs(90);

/// File of the last report.
const FILE: &str = "validation.json";

/// The largest report that is read back: 64 nodes with all their links.
const FILE_BYTES_MAX: u64 = 32 << 20;

pub(crate) use newcomer::serve as serve_newcomer;

/// What a node knows of its validations.
pub(crate) struct Validations {
    file: PathBuf,
    running: Mutex<Option<ValidationProgressView>>,
    questions: Semaphore,
}

/// What a person asked for, understood.
struct Wish {
    started: UnixMillis,
    checks: BTreeSet<Check>,
    nodes: BTreeSet<NodeId>,
    /// The token of a cluster that this host is not in.
    token: Option<JoinToken>,
}

/// Ends the state of being under way, however the task ends.
struct Running(Arc<App>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.validations.running() = None;
    }
}

impl Validations {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            file: data_dir.join(FILE),
            running: Mutex::default(),
            questions: Semaphore::new(AT_ONCE),
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<ValidationProgressView>> {
        // Plain data, changed in single steps.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how far it is.
    fn step(&self, step: &str, done: usize, total: usize) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        if let Some(running) = self.running().as_mut() {
            step.clone_into(&mut running.step);
            (running.done, running.total) = (count(done), count(total));
        }
    }

    /// The validation under way, and the last report.
    ///
    /// # Errors
    /// The report is there and cannot be read.
    pub(crate) fn view(&self) -> Result<ValidationView, ApiError> {
        // First: a report is written before its validation is no longer under way.
        let running = self.running().clone();
        Ok(ValidationView { running, report: read(&self.file)? })
    }
}

fn read(file: &Path) -> Result<Option<ValidationReport>, ApiError> {
    let broken = |why: &dyn std::fmt::Display| {
        let text = format!("the last report, {}, cannot be read: {why}", file.display());
        let hint = "validate again: muster cluster validate";
        ApiError::new(ErrorKind::Failed, "report", text, hint)
    };
    match fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(broken(&error)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(broken(&"it is too large")),
        Ok(_) => {}
    }
    let bytes = fs::read(file).map_err(|error| broken(&error))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| broken(&error))
}

/// Whoever reads the file sees the old report or the new one.
fn write(file: &Path, report: &ValidationReport) -> std::io::Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, serde_json::to_vec(report)?)?;
    fs::rename(&part, file)
}

/// Begins to validate. Who asks again meanwhile is told so.
///
/// # Errors
/// One is under way; a node that is not known.
pub(crate) fn begin(app: &Arc<App>, body: &ValidateBody) -> Result<ValidationView, ApiError> {
    let state = app.truth.state();
    let nodes = body.nodes.iter().map(|name| state.find_node(name).map(|node| node.id));
    let nodes: BTreeSet<NodeId> = nodes.collect::<Result<_, _>>()?;
    let checks = if body.checks.is_empty() { Check::ALL.to_vec() } else { body.checks.clone() };
    let token = body.join_token.as_deref().map(join::parse_token).transpose()?;
    let mut wish = Wish { started: now(), checks: checks.into_iter().collect(), nodes, token };
    if wish.token.is_some() {
        newcomer::check(&state)?;
        wish.checks.retain(|check| newcomer::CHECKS.contains(check));
    }
    {
        let mut running = app.validations.running();
        if running.is_some() {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                "validating",
                "this node is validating already",
                "wait for it and read its report: muster cluster validate --last",
            ));
        }
        *running = Some(ValidationProgressView {
            started: wish.started,
            step: "beginning".to_owned(),
            done: 0,
            total: 1,
        });
    }
    let ending = Running(app.clone());
    let running = app.validations.running().clone();
    let app = app.clone();
    tokio::spawn(async move {
        let report = validate(&app, &wish).await;
        if let Err(error) = write(&app.validations.file, &report) {
            tracing::error!(%error, "the report of a validation cannot be kept");
        }
        drop(ending);
    });
    // The report of another one is no answer to this question.
    Ok(ValidationView { running, report: None })
}

async fn validate(app: &Arc<App>, wish: &Wish) -> ValidationReport {
    let begun = Instant::now();
    let checks: Vec<Check> = wish.checks.iter().copied().collect();
    let (picture, mut findings) = match &wish.token {
        None => (ask::all(app, wish, begun + LIMIT).await, Vec::new()),
        Some(token) => newcomer::look(app, token, wish).await,
    };
    findings.extend(rules::findings(&picture, &checks));
    let names: BTreeSet<String> = wish.nodes.iter().map(|id| picture.name(*id)).collect();
    if !names.is_empty() {
        findings.retain(|found| concerns(found, &names));
    }
    let count = |verdict: Verdict| {
        let count = findings.iter().filter(|found| found.verdict == verdict).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let state = app.truth.state();
    ValidationReport {
        started: wish.started,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        cluster: state.cluster.as_ref().map(|cluster| cluster.name.clone()),
        asked_by: app.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        passed: count(Verdict::Pass),
        warned: count(Verdict::Warn),
        failed: count(Verdict::Fail),
        nodes: ask::node_views(&picture),
        links: ask::link_views(&picture),
        checks,
        findings,
    }
}

/// Whether a finding is about one of these nodes, or about all.
fn concerns(found: &FindingView, names: &BTreeSet<String>) -> bool {
    let nodes = found.subject.nodes();
    nodes.is_empty() || nodes.iter().any(|node| names.contains(*node))
}

/// Answers a question of another node.
///
/// # Errors
/// In words for that node.
pub(crate) async fn serve(app: &Arc<App>, body: &[u8]) -> Result<Bytes, Refusal> {
    let malformed = |error: serde_json::Error| {
        Refusal::new(RefusalCode::Malformed, error.to_string(), "upgrade the older of both nodes")
    };
    let question: Question = serde_json::from_slice(body).map_err(malformed)?;
    if question.version != facts::VERSION {
        return Err(Refusal::new(
            RefusalCode::Refused,
            format!("this node validates by version {} of the words", facts::VERSION),
            "upgrade the older of both nodes",
        ));
    }
    let limit = Duration::from_millis(question.limit_ms).min(QUESTION_LIMIT_MAX);
    // The time is told at once: a wait would be measured.
    let permit = match question.part {
        Part::Clock => None,
        _ => Some(app.validations.questions.try_acquire().map_err(|_| {
            let message = "this node answers other validations";
            Refusal::new(RefusalCode::Busy, message, "validate again in a minute")
        })?),
    };
    let answer = collect::gather(app, question.part, limit).await;
    drop(permit);
    serde_json::to_vec(&answer).map(Bytes::from).map_err(malformed)
}
