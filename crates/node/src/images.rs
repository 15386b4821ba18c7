//! Operations on images: found in the state, carried out by the image store, one task each.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::Bytes;
use model::ClusterState;
use model::ImageId;
use model::ImagePlace;
use model::ImageRecord;
use model::ImageSource;
use model::NodeId;
use model::OpFailure;
use model::OpId;
use model::OpOutcome;
use model::OpRecord;
use model::OpRequest;
use tokio::sync::watch;
use tokio::task::JoinSet;
use vm::image::CancelMode;
use vm::image::ImageError;
use vm::image::ImageStore;
use vm::image::ImportPhase;
use vm::image::ImportRequest;
use vm::image::ImportSource;
use vm::image::Imported;
use vm::lifecycle::Ledger;
use vm::lifecycle::LedgerError;
use vm::lifecycle::Progress;

use crate::app::now;
use crate::ledger::NodeLedger;
use crate::ports::chain;
use crate::volumes::Volumes;

/// How long until an outcome that the state did not take is reported again.
const REPORT_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What to do about an import that failed on the way.
const GO_ON: &str = "import it again: it goes on where it stopped, if the source is still the same";

/// Follows the state and carries image operations out, until the daemon ends.
pub(crate) async fn follow(
    volumes: Arc<Volumes>,
    ledger: Arc<NodeLedger>,
    mut states: watch::Receiver<Arc<ClusterState>>,
) {
    let mut tasks: JoinSet<OpId> = JoinSet::new();
    let mut under_way: HashMap<OpId, watch::Sender<bool>> = HashMap::new();
    sweep(volumes.local_images(), ledger.node, &states.borrow());
    loop {
        let state = states.borrow_and_update().clone();
        for op in state.ops.values().filter(|op| op.is_running()) {
            let image = op.request.image().and_then(|image| state.images.get(&image));
            let Some(place) = image.map(|image| image.place) else { continue };
            if place.executor() != ledger.node {
                continue;
            }
            match under_way.get(&op.id) {
                Some(cancel) => drop(cancel.send_if_modified(|was| {
                    let changed = !*was && op.cancel_requested();
                    *was |= changed;
                    changed
                })),
                None => {
                    let (cancel, cancelled) = watch::channel(op.cancel_requested());
                    under_way.insert(op.id, cancel);
                    let (ledger, op) = (ledger.clone(), op.clone());
                    tasks.spawn(perform(volumes.clone(), place, ledger, op, cancelled));
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Ok(op) = ended {
                    under_way.remove(&op);
                }
            }
        }
    }
}

/// Removes files of images that the state does not know, from this node's own directory. On a
/// volume, only the node that imports an image removes what is left of it.
fn sweep(store: &ImageStore, node: NodeId, state: &ClusterState) {
    let here = |image: &&Arc<ImageRecord>| image.place == ImagePlace::Node { node };
    let known: HashSet<ImageId> = state.images.values().filter(here).map(|it| it.id).collect();
    match store.sweep(&known) {
        Ok(swept) => {
            for path in swept.unknown {
                tracing::warn!(
                    path = %path.display(),
                    "an image that the state does not know stays: machines may need it"
                );
            }
            for path in swept.removed {
                tracing::info!(path = %path.display(), "a file of no image was removed");
            }
        }
        Err(error) => tracing::warn!(%error, "the image directory cannot be swept"),
    }
}

async fn perform(
    volumes: Arc<Volumes>,
    place: ImagePlace,
    ledger: Arc<NodeLedger>,
    op: Arc<OpRecord>,
    cancelled: watch::Receiver<bool>,
) -> OpId {
    tracing::info!(op = %op.id, title = op.title(), "op begins");
    let outcome = match (&op.request, volumes.images(place)) {
        (_, Err(error)) => OpOutcome::Failed {
            failure: OpFailure {
                code: "volume".to_owned(),
                message: chain(&error),
                hint: "see the volume on its node: muster volume list".to_owned(),
            },
            power: None,
        },
        (OpRequest::ImageImport { image, source, format, sha256, .. }, Ok(store)) => {
            let request = ImportRequest {
                id: *image,
                source: match source {
                    ImageSource::File { path } => ImportSource::File(PathBuf::from(path)),
                    ImageSource::Url { url } => ImportSource::Url(url.clone()),
                },
                format: *format,
                sha256: sha256.clone(),
            };
            import(&store, &ledger, &op, request, cancelled).await
        }
        (OpRequest::ImageDelete { image }, Ok(store)) => match store.remove(*image) {
            Ok(()) => OpOutcome::Done,
            Err(error) => failed(&error),
        },
        _ => return op.id,
    };
    tracing::info!(op = %op.id, ?outcome, "op ended");
    loop {
        match ledger.finish(op.id, outcome.clone()).await {
            Ok(()) => return op.id,
            Err(LedgerError::Refused(refused)) => {
                tracing::error!(op = %op.id, %refused, "the state refuses an outcome");
                return op.id;
            }
            Err(LedgerError::Unavailable(_)) => tokio::time::sleep(REPORT_AGAIN_AFTER).await,
        }
    }
}

async fn import(
    store: &ImageStore,
    ledger: &NodeLedger,
    op: &OpRecord,
    request: ImportRequest,
    mut cancelled: watch::Receiver<bool>,
) -> OpOutcome {
    let image = request.id;
    let mut job = store.import(request.clone());
    let mut progress = job.progress();
    let deadline = Duration::from_millis(op.deadline.since(now()).get());
    let deadline = tokio::time::Instant::now() + deadline;
    let mut out_of_time = false;
    let result = loop {
        tokio::select! {
            result = job.wait() => break result,
            Ok(()) = progress.changed() => {
                let seen = *progress.borrow_and_update();
                ledger.progress(op.id, Progress {
                    step: step(seen.phase).to_owned(),
                    done: seen.done,
                    total: seen.total.unwrap_or(0),
                });
            }
            () = asked(&mut cancelled) => {
                job.cancel(CancelMode::Discard);
                break job.wait().await;
            }
            () = tokio::time::sleep_until(deadline) => {
                out_of_time = true;
                job.cancel(CancelMode::Keep);
                break job.wait().await;
            }
        }
    };
    // The state forgets an image whose import failed. What was fetched may serve the next one.
    let kept = match &result {
        Err(error) if error.is_resumable() => store.keep(&request).unwrap_or_else(|error| {
            tracing::warn!(%image, %error, "what was fetched cannot be kept");
            false
        }),
        _ => false,
    };
    let outcome = imported(result, out_of_time, kept);
    if !matches!(outcome, OpOutcome::Imported { .. })
        && let Err(error) = store.remove(image)
    {
        tracing::warn!(%image, %error, "files of a failed import are left");
    }
    outcome
}

fn imported(result: Result<Imported, ImageError>, out_of_time: bool, kept: bool) -> OpOutcome {
    match result {
        Ok(done) => OpOutcome::Imported {
            virtual_size: Bytes::new(done.virtual_size),
            file_size: Bytes::new(done.file_bytes),
            sha256: done.sha256,
        },
        Err(ImageError::Cancelled(_)) if out_of_time => {
            let hint = if kept { GO_ON } else { "import it from a nearer place" };
            let failure = OpFailure {
                code: "deadline".to_owned(),
                message: "the import took too long".to_owned(),
                hint: hint.to_owned(),
            };
            OpOutcome::Failed { failure, power: None }
        }
        Err(ImageError::Cancelled(_)) => OpOutcome::Cancelled { power: None },
        Err(error) => match failed(&error) {
            OpOutcome::Failed { failure, power } if kept => OpOutcome::Failed {
                failure: OpFailure { hint: GO_ON.to_owned(), ..failure },
                power,
            },
            outcome => outcome,
        },
    }
}

/// Ends when the import is cancelled; never otherwise.
async fn asked(cancelled: &mut watch::Receiver<bool>) {
    // The guard of the watched value must not live across the wait below.
    if cancelled.wait_for(|asked| *asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn step(phase: ImportPhase) -> &'static str {
    match phase {
        ImportPhase::Waiting => "waiting for other imports",
        ImportPhase::Fetching => "fetching",
        ImportPhase::Inspecting => "inspecting",
        ImportPhase::Converting => "converting",
        ImportPhase::Checking => "checking",
    }
}

fn failed(error: &ImageError) -> OpOutcome {
    let (code, hint) = match error {
        ImageError::Header(_) => ("bad_image", "give the format it really has with --format"),
        ImageError::DiskFull { .. } => ("no_space", "free space on the node: muster node show"),
        _ => ("image", "check the source and import it again"),
    };
    let failure = OpFailure { code: code.to_owned(), message: chain(error), hint: hint.to_owned() };
    OpOutcome::Failed { failure, power: None }
}
