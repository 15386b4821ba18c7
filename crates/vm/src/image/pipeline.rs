//! The steps of an import, in order. Each is short; `store` says what becomes of a failure.

use std::ffi::OsString;
use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use model::ImageId;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::sync::watch;

use super::cancel::Cancel;
use super::error::ImageError;
use super::fetch::FetchError;
use super::fetch::Opened;
use super::fetch::Source;
use super::format::SourceFormat;
use super::inspect;
use super::inspect::ImageHeader;
use super::inspect::VIRTUAL_SIZE_BYTES_MAX;
use super::kept;
use super::qemu_img::Run;
use super::space;
use super::stage::Stage;
use super::stage::wrap;
use super::store;
use super::store::ImportPhase;
use super::store::ImportProgress;
use super::store::ImportRequest;
use super::store::Imported;
use super::store::Shared;

/// Pieces between the network and the disk: a few MiB at most.
const PIECES_QUEUED_MAX: usize = 8;
/// Longest pause between two attempts at a broken transfer.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Slack above the measured size before the child's file limit strikes: qcow2 rounding.
const OUTPUT_SLACK_BYTES: u64 = 64 << 20;
/// Name of the result within the staging directory.
const OUT_DIR: &str = "out";
const OUT_FILE: &str = "out/image.qcow2";

pub(super) async fn run(
    shared: &Shared,
    request: &ImportRequest,
    source: Box<dyn Source>,
    cancel: &mut Cancel,
    progress: &watch::Sender<ImportProgress>,
) -> Result<Imported, ImageError> {
    let expected = request.sha256.as_deref().map(parse_sha256).transpose()?;
    let ready = shared.image_path(request.id);
    if ready.exists() {
        return finished(shared, request.id, request.format).await;
    }
    let dir = shared.stage_dir(request.id);
    let stage = fetch(shared, request, source, cancel, progress).await?;

    progress.send_replace(at(ImportPhase::Inspecting, 0, None));
    let sha256 = stage.sha256().unwrap_or_default().to_owned();
    if let Some(expected) = expected
        && expected != sha256
    {
        return Err(ImageError::Checksum { expected, actual: sha256 });
    }
    let format = request.format;
    let header = blocking(&dir, move || Ok(inspect::inspect(stage.source(), format)?)).await?;

    convert(shared, &dir, &header, cancel, progress).await?;
    progress.send_replace(at(ImportPhase::Checking, 0, None));
    check(shared, &dir, &header, cancel).await?;
    publish(shared, request, &dir, sha256).await?;
    finished(shared, request.id, request.format).await
}

fn at(phase: ImportPhase, done: u64, total: Option<u64>) -> ImportProgress {
    ImportProgress { phase, done, total }
}

fn parse_sha256(text: &str) -> Result<String, ImageError> {
    let text = text.trim().to_ascii_lowercase();
    let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash {
        return Ok(text);
    }
    Err(ImageError::BadChecksum { given: text.chars().take(80).collect() })
}

/// Brings the whole source into the staging directory, in as many attempts as bring it forward.
async fn fetch(
    shared: &Shared,
    request: &ImportRequest,
    source: Box<dyn Source>,
    cancel: &mut Cancel,
    progress: &watch::Sender<ImportProgress>,
) -> Result<Stage, ImageError> {
    let dir = shared.stage_dir(request.id);
    shared.take_kept(request)?;
    let asked = kept::asked(request);
    progress.send_replace(at(ImportPhase::Fetching, 0, None));
    let (make, every, stop) = (dir.clone(), shared.config.checkpoint_bytes, cancel.clone());
    let mut stage = blocking(&dir, move || Stage::open(&make, &asked, every, &stop)).await?;
    let mut fruitless = 0;
    while stage.sha256().is_none() {
        let before = stage.offset();
        let opened = cancel.guard(source.open(&stage.position())).await?;
        let outcome = match opened {
            Ok(opened) => {
                let taken = take(&dir, stage, opened, cancel, progress).await;
                stage = taken.0;
                taken.1
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = outcome else { continue };
        if matches!(error, ImageError::Cancelled(_)) || error.is_resumable() {
            stage = blocking(&dir, move || stage.checkpoint().map(|()| stage)).await?;
        }
        let ImageError::Fetch(broken) = &error else { return Err(error) };
        fruitless = if stage.offset() > before { 0 } else { fruitless + 1 };
        if !broken.may_pass() || fruitless >= shared.config.fetch_attempts_max {
            return Err(error);
        }
        tracing::info!(id = %request.id, error = %broken, offset = stage.offset(), "fetching again");
        let pause = shared.config.fetch_pause.saturating_mul(1 << fruitless.min(10));
        cancel.guard(tokio::time::sleep(pause.min(PAUSE_MAX))).await?;
    }
    Ok(stage)
}

/// Takes one opened source to its end. Gives the stage back in any case.
async fn take(
    dir: &Path,
    mut stage: Stage,
    mut opened: Opened,
    cancel: &mut Cancel,
    progress: &watch::Sender<ImportProgress>,
) -> (Stage, Result<(), ImageError>) {
    if opened.offset != stage.offset()
        && let Err(error) = stage.restart()
    {
        return (stage, Err(error));
    }
    let total = opened.total;
    if let Some(total) = total
        && let Err(error) = space::require(dir, total.saturating_sub(stage.offset()))
    {
        return (stage, Err(error));
    }
    stage.set_identity(opened.identity.take());
    progress.send_replace(at(ImportPhase::Fetching, stage.offset(), total));

    let (pieces, queue) = mpsc::channel(PIECES_QUEUED_MAX);
    let report = progress.clone();
    let writer = tokio::task::spawn_blocking(move || write(stage, queue, &report, total));
    let read = read(&mut opened, pieces, cancel).await;
    let (stage, written) = match writer.await {
        Ok(done) => done,
        // The writer does not panic; if it did, its stage is gone and so is the import.
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    match (written, read) {
        (Err(error), _) | (Ok(()), Err(error)) => (stage, Err(error)),
        (Ok(()), Ok(())) => (stage, Ok(())),
    }
}

/// Moves pieces from the source to the writer until either ends.
async fn read(
    opened: &mut Opened,
    pieces: mpsc::Sender<Option<Bytes>>,
    cancel: &mut Cancel,
) -> Result<(), ImageError> {
    loop {
        let piece = cancel.guard(opened.body.next()).await??;
        let last = piece.is_none();
        // A writer that has gone tells why itself.
        if cancel.guard(pieces.send(piece)).await?.is_err() || last {
            return Ok(());
        }
    }
}

/// Writes pieces until the queue closes (the source broke) or says that all have come (`None`).
fn write(
    mut stage: Stage,
    mut queue: mpsc::Receiver<Option<Bytes>>,
    progress: &watch::Sender<ImportProgress>,
    total: Option<u64>,
) -> (Stage, Result<(), ImageError>) {
    while let Some(piece) = queue.blocking_recv() {
        let done = match piece {
            Some(piece) => stage.append(&piece),
            None => end(&mut stage, total),
        };
        if let Err(error) = done {
            let left = total.map_or(0, |total| total.saturating_sub(stage.offset()));
            return (stage, Err(with_need(error, left)));
        }
        progress.send_replace(at(ImportPhase::Fetching, stage.offset(), total));
    }
    (stage, Ok(()))
}

/// The source ended by itself: is that all it promised?
fn end(stage: &mut Stage, total: Option<u64>) -> Result<(), ImageError> {
    let got = stage.offset();
    match total {
        Some(total) if total != got => {
            let detail = format!("{got} of {total} bytes came");
            Err(FetchError::Cut { host: "the source".to_owned(), got, detail }.into())
        }
        _ => stage.complete().map(drop),
    }
}

/// Says in a "disk full" how much was still to come.
fn with_need(error: ImageError, left: u64) -> ImageError {
    match error {
        ImageError::DiskFull { path, available, needed } => {
            ImageError::DiskFull { path, available, needed: needed.max(left) }
        }
        other => other,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Measured {
    required: u64,
    fully_allocated: u64,
}

async fn convert(
    shared: &Shared,
    dir: &Path,
    header: &ImageHeader,
    cancel: &mut Cancel,
    progress: &watch::Sender<ImportProgress>,
) -> Result<(), ImageError> {
    progress.send_replace(at(ImportPhase::Converting, 0, Some(header.virtual_size)));
    prepare_out(shared, dir)?;
    let measured = measure(shared, dir, header.format, cancel).await?;
    space::require(dir, measured.required)?;
    let mut args: Vec<OsString> = vec!["convert".into(), "-p".into()];
    args.extend(
        ["-O", "qcow2", "-o", "compat=1.1,lazy_refcounts=off,cluster_size=65536"].map(Into::into),
    );
    args.extend([source_node(header.format).into(), OUT_FILE.into()]);
    let run = Run {
        action: "convert the image",
        args,
        dir,
        writable: Some(OUT_DIR),
        file_bytes_max: measured.fully_allocated.saturating_add(OUTPUT_SLACK_BYTES),
        also_accepted: &[],
    };
    let size = header.virtual_size;
    let report = |percent: f64| {
        let done = (size as f64 * percent / 100.0) as u64;
        progress.send_replace(at(ImportPhase::Converting, done.min(size), Some(size)));
    };
    let done = shared.qemu_img.run(run, cancel, report).await;
    done.map(drop).map_err(|error| with_need(error, measured.required))
}

/// The source as QEMU shall open it: format and protocol stated, nothing left to guess.
fn source_node(format: SourceFormat) -> String {
    let file = json!({ "driver": "file", "filename": "source" });
    let mut node = json!({ "driver": super::format::qemu_driver(format), "file": file });
    if format == SourceFormat::Vhd {
        // A VHD's own size, not the one its geometry rounds down to: the tail may hold data.
        node["force_size_calc"] = "current_size".into();
    }
    format!("json:{node}")
}

fn prepare_out(shared: &Shared, dir: &Path) -> Result<(), ImageError> {
    let out = dir.join(OUT_DIR);
    super::stage::remove(&out)?;
    fs::create_dir(&out).map_err(wrap("making the directory", &out))?;
    fs::set_permissions(&out, Permissions::from_mode(0o700))
        .map_err(wrap("setting the mode of", &out))?;
    if let (true, Some(user)) = (nix::unistd::Uid::effective().is_root(), shared.qemu_img.user) {
        std::os::unix::fs::chown(&out, Some(user.uid), Some(user.gid))
            .map_err(wrap("handing over", &out))?;
    }
    Ok(())
}

async fn measure(
    shared: &Shared,
    dir: &Path,
    format: SourceFormat,
    cancel: &mut Cancel,
) -> Result<Measured, ImageError> {
    let mut args: Vec<OsString> =
        ["measure", "--output=json", "-O", "qcow2"].map(Into::into).into();
    args.push(source_node(format).into());
    let run = Run {
        action: "measure the image",
        args,
        dir,
        writable: None,
        file_bytes_max: 0,
        also_accepted: &[],
    };
    let output = shared.qemu_img.run(run, cancel, |_| ()).await?;
    serde_json::from_slice(&output.stdout).map_err(|error| ImageError::Tool {
        action: "measure the image",
        stderr: format!("its answer cannot be read: {error}"),
    })
}

/// Our own look at the result, then qemu-img's.
async fn check(
    shared: &Shared,
    dir: &Path,
    header: &ImageHeader,
    cancel: &mut Cancel,
) -> Result<(), ImageError> {
    let bad = |what: String| ImageError::BadResult { format: header.format, what };
    let path = dir.join(OUT_FILE);
    let made =
        blocking(dir, move || Ok(inspect::inspect(&store::open_made(&path)?, SourceFormat::Qcow2)));
    let made = made.await?.map_err(|error| bad(error.to_string()))?;
    // A raw or VHD length need not be whole sectors; the disk is, rounded up.
    let wanted = header.virtual_size.next_multiple_of(512).min(VIRTUAL_SIZE_BYTES_MAX);
    if made.virtual_size != wanted {
        return Err(bad(format!("it has {} bytes instead of {wanted}", made.virtual_size)));
    }
    let file = json!({ "driver": "file", "filename": OUT_FILE });
    let node = format!("json:{}", json!({ "driver": "qcow2", "file": file }));
    let args = ["check", "-q", &node].map(Into::into).into();
    let run = Run {
        action: "check the converted image",
        args,
        dir,
        writable: None,
        file_bytes_max: 0,
        also_accepted: &[2, 3],
    };
    let output = shared.qemu_img.run(run, cancel, |_| ()).await?;
    match output.code {
        0 => Ok(()),
        code => Err(bad(format!("qemu-img check ended with {code}: {}", output.stderr.trim()))),
    }
}

/// The hash first, then the image: an image that is there has its hash.
async fn publish(
    shared: &Shared,
    request: &ImportRequest,
    dir: &Path,
    sha256: String,
) -> Result<(), ImageError> {
    let (made, ready) = (dir.join(OUT_FILE), shared.image_path(request.id));
    let (fresh, note) = (dir.join("sha256"), shared.hash_path(request.id));
    let images = shared.config.dir.clone();
    blocking(dir, move || {
        fs::write(&fresh, sha256).map_err(wrap("writing", &fresh))?;
        store::seal(&store::open_made(&fresh)?, &fresh, 0o440)?;
        fs::rename(&fresh, &note).map_err(wrap("publishing", &note))?;
        store::seal(&store::open_made(&made)?, &made, 0o440)?;
        fs::rename(&made, &ready).map_err(wrap("publishing", &ready))?;
        store::sync_dir(&images)
    })
    .await
}

/// What is there now; removes what is left of the staging directory.
pub(super) async fn finished(
    shared: &Shared,
    id: ImageId,
    format: SourceFormat,
) -> Result<Imported, ImageError> {
    let (path, stage, note) = (shared.image_path(id), shared.stage_dir(id), shared.hash_path(id));
    blocking(&shared.config.dir, move || {
        super::stage::remove(&stage)?;
        let file = store::open_made(&path)?;
        let header = inspect::inspect(&file, SourceFormat::Qcow2)
            .map_err(|error| ImageError::BadResult { format, what: error.to_string() })?;
        let file_bytes = space::allocated_bytes(&path).map_err(wrap("looking at", &path))?;
        let sha256 = fs::read_to_string(&note).map_err(wrap("reading", &note))?;
        Ok(Imported { path, virtual_size: header.virtual_size, file_bytes, sha256 })
    })
    .await
}

/// Runs file work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(wrap("working on", path)(std::io::Error::other(error))),
    }
}
