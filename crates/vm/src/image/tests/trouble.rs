//! Imports that must fail well.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use super::server::Act;
use super::server::Server;
use super::*;
use crate::image::CancelMode;
use crate::image::FetchError;
use crate::image::HeaderError;
use crate::image::ImageError;

const CRASH_DIR: &str = "MUSTER_TEST_CRASH_DIR";
const CRASH_URL: &str = "MUSTER_TEST_CRASH_URL";

fn nothing_left(dir: &Path) {
    assert_eq!(entries(&dir.join("images")), Vec::<String>::new());
}

async fn fails(dir: &Path, source: ImportSource, format: SourceFormat) -> ImageError {
    let error = store(dir).import(request(1, source, format)).wait().await.unwrap_err();
    assert!(!error.is_resumable(), "{error}");
    nothing_left(dir);
    error
}

#[tokio::test]
async fn images_that_point_elsewhere_or_are_cut_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.qcow2");
    let args =
        ["create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", "evil.qcow2", "1M"];
    qemu_img(&args, dir.path());
    let file = || ImportSource::File(path.clone());
    let error = fails(dir.path(), file(), SourceFormat::Qcow2).await;
    assert!(error.to_string().contains("/etc/shadow"), "{error}");

    std::fs::write(dir.path().join("disk.raw"), disk(4)).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "evil.qcow2"], dir.path());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = fails(dir.path(), file(), SourceFormat::Qcow2).await;
    assert!(matches!(error, ImageError::Header(HeaderError::Truncated { .. })), "{error}");

    let error = fails(dir.path(), file(), SourceFormat::Vmdk).await;
    assert!(matches!(error, ImageError::Header(HeaderError::Contradicts { .. })), "{error}");
}

#[tokio::test]
async fn sources_that_are_no_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo, dir.path().to_owned(), "/dev/zero".into()] {
        let error = fails(dir.path(), ImportSource::File(path), SourceFormat::Raw).await;
        assert!(matches!(error, ImageError::Fetch(FetchError::NotAFile { .. })), "{error}");
    }
    let missing = ImportSource::File(dir.path().join("missing"));
    let error = fails(dir.path(), missing, SourceFormat::Raw).await;
    assert!(matches!(error, ImageError::Fetch(FetchError::Read { .. })), "{error}");
    for url in ["file:///etc/shadow", "ftp://host/x", "http://user:secret@host/x", "nonsense", ""] {
        let error = fails(dir.path(), ImportSource::Url(url.into()), SourceFormat::Raw).await;
        assert!(matches!(error, ImageError::Fetch(FetchError::BadUrl { .. })), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_checksum_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(1)).unwrap();
    let mut request = request(1, ImportSource::File(path), SourceFormat::Raw);
    request.sha256 = Some("0".repeat(64));
    let store = store(dir.path());
    let error = store.import(request.clone()).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Checksum { .. }), "{error}");
    request.sha256 = Some("not a hash".into());
    let error = store.import(request).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::BadChecksum { .. }), "{error}");
    nothing_left(dir.path());
}

#[tokio::test]
async fn bad_answers_are_errors_that_tell() {
    let dir = tempfile::tempdir().unwrap();
    let answer = |head: &str| Act::Raw(format!("HTTP/1.1 {head}\r\n\r\n"));
    let huge = u64::MAX.to_string();
    let cases = [
        (answer("404 Not Found"), "404"),
        (answer("200 OK\r\nContent-Length: 9\r\nContent-Encoding: gzip"), "encoding"),
        (answer(&format!("200 OK\r\nContent-Length: {}", huge)), "bytes"),
        (answer(&format!("200 OK\r\nContent-Length: {}", 1_u64 << 45)), "full"),
        (answer("206 Partial Content\r\nContent-Length: 9"), "broke"),
        (Act::Raw("SSH-2.0-OpenSSH_9.2\r\n".into()), "broke"),
        (Act::Raw(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20))), "broke"),
    ];
    let server = Server::start(disk(1), Vec::new()).await;
    let store = store(dir.path());
    for (act, word) in cases {
        server.state.lock().unwrap().acts = vec![act.clone(); 8];
        let request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
        let error = store.import(request).wait().await.unwrap_err();
        assert!(error.to_string().contains(word), "{act:?}: {error}");
        store.remove(id(1)).unwrap();
    }
    nothing_left(dir.path());
}

#[tokio::test]
async fn a_server_that_promises_too_much_is_given_up_and_may_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(disk(1), vec![Act::Lie(9 * MIB as u64)]).await;
    server.state.lock().unwrap().acts.extend(vec![Act::Raw(String::new()); 8]);
    let request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
    let error = store(dir.path()).import(request).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Fetch(FetchError::Cut { .. })), "{error}");
    assert!(error.is_resumable());
    assert_eq!(entries(&dir.path().join("images")), [format!("{}.part", id(1))]);
}

#[tokio::test]
async fn a_server_that_promises_too_little_gives_a_cut_image_which_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk.raw"), disk(4)).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "q"], dir.path());
    let whole = std::fs::read(dir.path().join("q")).unwrap();
    let server = Server::start(whole, vec![Act::Lie(MIB as u64)]).await;
    let url = ImportSource::Url(server.url("disk.qcow2"));
    let error = fails(dir.path(), url, SourceFormat::Qcow2).await;
    assert!(matches!(error, ImageError::Header(HeaderError::Truncated { .. })), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_waited_for_only_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(disk(1), vec![Act::Silent; 8]).await;
    let mut config = config(dir.path());
    config.http.header = Duration::from_millis(100);
    config.fetch_attempts_max = 2;
    let store = ImageStore::open(config).unwrap();
    let request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
    let error = store.import(request).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Fetch(FetchError::Timeout { .. })), "{error}");
    assert_eq!(server.ranges().len(), 2);
}

#[tokio::test]
async fn cancel_while_fetching_leaves_nothing_or_what_was_fetched() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [CancelMode::Keep, CancelMode::Discard] {
        let server = Server::start(disk(4), vec![Act::Slow]).await;
        server.permits.add_permits(20);
        let request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
        let store = store(dir.path());
        let mut job = store.import(request.clone());
        until(&job, |progress| progress.done > 0).await;
        let busy = store.import(request).wait().await.unwrap_err();
        assert!(matches!(busy, ImageError::Busy));
        assert!(matches!(store.remove(id(1)), Err(ImageError::Busy)));
        job.cancel(mode);
        let error = job.wait().await.unwrap_err();
        assert!(matches!(error, ImageError::Cancelled(said) if said == mode), "{error}");
        let kept = dir.path().join(format!("images/{}.part", id(1))).exists();
        assert_eq!(kept, mode == CancelMode::Keep);
    }
    nothing_left(dir.path());
}

fn alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

async fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Stands in for qemu-img: measures, and when it shall convert writes its pid and hangs.
const HANGING: &str = r#"case "$1" in
measure) echo '{"required": 1000, "fully-allocated": 2000}' ;;
convert) echo $$ > out/pid; mv out/pid out/pid.done 2>/dev/null; exec sleep 1000 ;;
esac"#;

#[tokio::test]
async fn cancel_while_converting_kills_the_tool_before_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(1)).unwrap();
    let mut config = config(dir.path());
    config.qemu_img = script(&dir, HANGING);
    let store = ImageStore::open(config).unwrap();
    let mut job = store.import(request(1, ImportSource::File(path), SourceFormat::Raw));
    until(&job, |progress| progress.phase == ImportPhase::Converting).await;
    let out = dir.path().join(format!("images/{}.part/out/pid", id(1)));
    let pid = wait_for(|| std::fs::read_to_string(&out).ok()?.trim().parse().ok()).await;
    assert!(alive(pid));
    job.cancel(CancelMode::Discard);
    assert!(matches!(job.wait().await, Err(ImageError::Cancelled(CancelMode::Discard))));
    assert!(!alive(pid));
    nothing_left(dir.path());
}

#[tokio::test]
async fn a_tool_that_stands_still_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(1)).unwrap();
    let mut config = config(dir.path());
    config.qemu_img = script(&dir, HANGING);
    config.stall = Duration::from_millis(500);
    let store = ImageStore::open(config).unwrap();
    let request = request(1, ImportSource::File(path), SourceFormat::Raw);
    let error = store.import(request).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_or_failing_tool_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(1)).unwrap();
    let import = |tool: PathBuf| {
        let mut config = config(dir.path());
        config.qemu_img = tool;
        let store = ImageStore::open(config).unwrap();
        let request = request(1, ImportSource::File(path.clone()), SourceFormat::Raw);
        async move { store.import(request).wait().await.unwrap_err() }
    };
    let error = import("/nonexistent/qemu-img".into()).await;
    assert!(matches!(error, ImageError::ToolMissing { .. }), "{error}");
    assert!(error.to_string().contains("qemu-utils"));
    let error = import(script(&dir, "echo 'qemu-img: it is Monday' >&2; exit 1")).await;
    assert!(error.to_string().contains("it is Monday"), "{error}");
    let error = import(script(&dir, "echo 'No space left on device' >&2; exit 1")).await;
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    let error = import(script(&dir, "yes | head -c 10000000; exit 0")).await;
    assert!(matches!(error, ImageError::Tool { .. }), "{error}");
    nothing_left(dir.path());
}

#[tokio::test]
async fn the_tool_cannot_read_or_write_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(1)).unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Each line that succeeds is a hole in the wall; the report goes to the one writable place.
    let body = format!(
        r#"test "$1" = measure && {{ echo '{{"required": 1000, "fully-allocated": 2000}}'; exit; }}
try() {{ if "$@" 2>/dev/null; then echo "$*" >> out/holes; fi; }}
try cat ../../secret
try cat {dir}/secret
try cat /etc/passwd
try cat /proc/1/environ
try cp /dev/null ../stolen
try cp /dev/null ./beside
try rm -f source
try cp /dev/null /tmp/muster-hole
try touch source
try kill -0 1
try bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'
try id -u | grep -qx 0
cat source > out/copy && echo read > out/read
id -u > out/uid
exec sleep 1000"#,
        dir = dir.path().display(),
    );
    let mut config = config(dir.path());
    config.qemu_img = script(&dir, &body);
    let store = ImageStore::open(config).unwrap();
    let mut job = store.import(request(1, ImportSource::File(path), SourceFormat::Raw));
    let out = dir.path().join(format!("images/{}.part/out", id(1)));
    let uid = wait_for(|| {
        std::fs::read_to_string(out.join("uid")).ok().filter(|text| text.ends_with('\n'))
    });
    let uid = uid.await;
    let holes = std::fs::read_to_string(out.join("holes")).unwrap_or_default();
    assert_eq!(holes, "");
    if nix::unistd::Uid::effective().is_root() {
        assert_eq!(uid.trim(), "65534");
    }
    assert!(!dir.path().join("stolen").exists());
    job.cancel(CancelMode::Discard);
    assert!(job.wait().await.is_err());
}

/// A small file system of its own; needs root. Unmounted on drop.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: usize) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={mib}m");
        nix::mount::mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("tests of a full disk need root");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_named_before_a_byte_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let _small = Small::mount(&dir.path().join("images"), 70);
    let server = Server::start(disk(20), Vec::new()).await;
    let url = ImportSource::Url(server.url("disk.raw"));
    match fails(dir.path(), url, SourceFormat::Raw).await {
        ImageError::DiskFull { needed, available, .. } => {
            assert!(needed >= 20 * MIB as u64 && available <= 70 * MIB as u64);
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_on_the_way_is_named_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let _small = Small::mount(&dir.path().join("images"), 8);
    let server = Server::start(disk(40), vec![Act::Chunked]).await;
    let url = ImportSource::Url(server.url("disk.raw"));
    let error = fails(dir.path(), url, SourceFormat::Raw).await;
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("free some space"));
}

/// Not a test by itself: the process that `kill_9` kills.
#[tokio::test]
async fn crash_child() {
    let (Ok(dir), Ok(url)) = (std::env::var(CRASH_DIR), std::env::var(CRASH_URL)) else { return };
    let request = request(1, ImportSource::Url(url), SourceFormat::Raw);
    let _ = store(Path::new(&dir)).import(request).wait().await;
}

#[tokio::test]
async fn an_import_that_was_killed_goes_on_from_its_last_durable_byte() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(6);
    let server = Server::start(raw.clone(), vec![Act::HangAfter(7 * MIB / 2)]).await;
    let url = server.url("disk.raw");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::tests::trouble::crash_child"])
        .env(CRASH_DIR, dir.path())
        .env(CRASH_URL, &url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let part = dir.path().join(format!("images/{}.part", id(1)));
    let durable = || -> Option<u64> {
        let state = std::fs::read(part.join("state.json")).ok()?;
        serde_json::from_slice::<serde_json::Value>(&state).ok()?["durable"].as_u64()
    };
    wait_for(|| durable().filter(|bytes| *bytes >= 2 * MIB as u64)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = durable().unwrap();
    let request = request(1, ImportSource::Url(url), SourceFormat::Raw);
    let imported = store(dir.path()).import(request).wait().await.unwrap();
    assert!(content(&imported.path) == raw);
    assert_eq!(server.ranges()[1], format!("bytes={kept}-"));
}
