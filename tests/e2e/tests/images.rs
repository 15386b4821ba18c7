//! Images that are not what they say, and imports that cannot end well.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use api::endpoint as ep;
use api::endpoint::Nothing;
use api::model::Bytes;
use api::model::ImageFormat;
use api::model::ImageSource;
use api::model::ImageState;
use api::model::OpState;
use api::types::ImageImportBody;
use api::types::OpView;
use e2e::Host;
use e2e::OWN;
use e2e::Options;
use e2e::eventually;
use e2e::failure;

fn body(name: &str, path: &Path, format: Option<ImageFormat>) -> ImageImportBody {
    let path = path.to_string_lossy().into_owned();
    let source = ImageSource::File { path };
    ImageImportBody { name: name.parse().unwrap(), source, format, sha256: None, volume: None }
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img is installed");
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
}

/// A sound qcow2 image with a megabyte of data.
fn qcow2(host: &Host, name: &str) -> std::path::PathBuf {
    let raw = host.file(&format!("{name}.bytes"));
    fs::write(&raw, vec![0x5a; 1 << 20]).unwrap();
    let path = host.file(name);
    let (from, to) = (raw.to_string_lossy(), path.to_string_lossy());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &from, &to]);
    path
}

/// Imports what must not be imported; afterwards nothing of it is left.
async fn refused(host: &Host, body: &ImageImportBody) -> OpView {
    let before = host.traces();
    let op = host.try_op::<ep::ImageImport>(&[], body).await.expect("the import begins");
    assert!(failure(&op).message.len() > 10, "{op:?}");
    let images = host.client().get::<ep::ImageList>(&[]).await.unwrap();
    assert!(images.is_empty(), "{images:?}");
    assert_eq!(host.traces(), before);
    op
}

#[tokio::test]
async fn a_sound_image_is_imported_listed_and_deleted() {
    let host = Host::start_fake().await;
    let path = qcow2(&host, "sound.qcow2");
    host.op::<ep::ImageImport>(&[], &body("sound", &path, None)).await;
    let image = host.client().get::<ep::ImageShow>(&["sound"]).await.unwrap();
    let ImageState::Ready { virtual_size, .. } = image.state else { panic!("{image:?}") };
    assert_eq!(virtual_size, Bytes::mib(1));
    host.op::<ep::ImageDelete>(&["sound"], &Nothing {}).await;
    assert!(host.client().get::<ep::ImageList>(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_truncated_qcow2_is_refused() {
    let host = Host::start_fake().await;
    let path = qcow2(&host, "short.qcow2");
    let whole = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(whole / 2).unwrap();
    refused(&host, &body("short", &path, None)).await;
}

#[tokio::test]
async fn a_header_that_lies_about_the_size_is_refused() {
    let host = Host::start_fake().await;
    let path = qcow2(&host, "liar.qcow2");
    // Byte 24: the virtual size, here almost 16 EiB.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&0xffff_ffff_ffff_f000_u64.to_be_bytes(), 24).unwrap();
    refused(&host, &body("liar", &path, None)).await;
}

#[tokio::test]
async fn a_qcow2_that_points_at_a_host_file_is_refused() {
    let host = Host::start_fake().await;
    let path = host.file("backed.qcow2");
    let to = path.to_string_lossy().into_owned();
    let secret = host.file("secret");
    fs::write(&secret, vec![b's'; 1 << 20]).unwrap();
    let secret = secret.to_string_lossy().into_owned();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", &to]);
    let op = refused(&host, &body("backed", &path, None)).await;
    assert!(failure(&op).message.contains("backing file"), "{op:?}");
}

#[tokio::test]
async fn a_qcow2_with_a_data_file_is_refused() {
    let host = Host::start_fake().await;
    let path = host.file("split.qcow2");
    let data = format!("data_file={}", host.file("split.data").display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, &path.to_string_lossy(), "1M"]);
    let op = refused(&host, &body("split", &path, None)).await;
    assert!(failure(&op).message.contains("data file"), "{op:?}");
}

#[tokio::test]
async fn an_image_of_another_format_than_stated_is_refused() {
    let host = Host::start_fake().await;
    let path = qcow2(&host, "disk.qcow2");
    for wrong in [ImageFormat::Vhd, ImageFormat::Vhdx, ImageFormat::Vmdk] {
        refused(&host, &body("wrong", &path, Some(wrong))).await;
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let host = Host::start_fake().await;
    let path = host.file("nothing.qcow2");
    let op = refused(&host, &body("nothing", &path, None)).await;
    assert!(failure(&op).message.contains("nothing.qcow2"), "{op:?}");
}

#[tokio::test]
async fn a_wrong_checksum_is_refused_and_told() {
    let host = Host::start_fake().await;
    let path = qcow2(&host, "sum.qcow2");
    let mut body = body("sum", &path, None);
    body.sha256 = Some("0".repeat(64));
    let op = refused(&host, &body).await;
    assert!(failure(&op).message.contains("SHA-256"), "{op:?}");
}

/// Serves so many MiB of a file and then no more, until `stop`.
fn server(
    host: &Host,
    header: &str,
    mib: usize,
    stop: Arc<AtomicBool>,
) -> (String, std::thread::JoinHandle<()>) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let head = format!("HTTP/1.1 200 OK\r\n{header}connection: close\r\n\r\n");
    let thread = host.netns().inside(move || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sender.send(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut held = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                // The client may go at any moment: that is what these tests are about.
                let mut going = stream.write_all(head.as_bytes()).is_ok();
                let block = vec![0x55; 1 << 20];
                for _ in 0..mib {
                    going = going && stream.write_all(&block).is_ok();
                    if !going {
                        break;
                    }
                }
                held.push(stream);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    let address = receiver.recv().unwrap();
    (format!("http://{address}/big.img"), thread)
}

fn stalling_server(host: &Host, stop: Arc<AtomicBool>) -> (String, std::thread::JoinHandle<()>) {
    server(host, "content-length: 104857600\r\n", 1, stop)
}

fn download(name: &str, url: String) -> ImageImportBody {
    let source = ImageSource::Url { url };
    let format = Some(ImageFormat::Raw);
    ImageImportBody { name: name.parse().unwrap(), source, format, sha256: None, volume: None }
}

#[tokio::test]
async fn an_import_can_be_cancelled_and_leaves_nothing() {
    let host = Host::start_fake().await;
    let before = host.traces();
    let stop = Arc::new(AtomicBool::new(false));
    let (url, server) = stalling_server(&host, stop.clone());
    let body = download("slow", url);
    let op = host.client().send::<ep::ImageImport>(&[], &body).await.unwrap();
    let id = op.id.to_string();
    eventually("a part is there", OWN, async || {
        let op = host.client().get::<ep::OpShow>(&[&id]).await.unwrap();
        op.progress.filter(|it| it.done > 0)
    })
    .await;
    host.client().get::<ep::OpCancel>(&[&id]).await.unwrap();
    let op = host.ended(&op).await;
    assert!(matches!(op.state, OpState::Cancelled { .. }), "{op:?}");
    assert!(host.client().get::<ep::ImageList>(&[]).await.unwrap().is_empty());
    assert_eq!(host.traces(), before);
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

#[tokio::test]
async fn a_full_disk_in_the_middle_of_an_import_fails_cleanly() {
    let options =
        Options { engine: "fake", networking: false, data_mib: Some(96), ..Options::default() };
    let host = Host::start_with(options).await;
    let stop = Arc::new(AtomicBool::new(false));
    // It does not say how much will come.
    let (url, server) = server(&host, "", usize::MAX, stop.clone());
    let op = refused(&host, &download("endless", url)).await;
    assert_eq!(failure(&op).code, "no_space", "{op:?}");
    // The daemon goes on: what fits is imported.
    let small = qcow2(&host, "small.qcow2");
    host.op::<ep::ImageImport>(&[], &body("small", &small, None)).await;
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

#[tokio::test]
async fn a_killed_daemon_leaves_no_half_image() {
    let mut host = Host::start_fake().await;
    let before = host.traces();
    let stop = Arc::new(AtomicBool::new(false));
    let (url, server) = stalling_server(&host, stop.clone());
    let body = download("slow", url);
    let op = host.client().send::<ep::ImageImport>(&[], &body).await.unwrap();
    let id = op.id.to_string();
    eventually("a part is there", OWN, async || {
        let op = host.client().get::<ep::OpShow>(&[&id]).await.unwrap();
        op.progress.filter(|it| it.done > 0)
    })
    .await;
    host.kill9();
    host.restart().await;
    // It goes on after the restart, so it can still be stopped.
    host.client().get::<ep::OpCancel>(&[&id]).await.unwrap();
    let op = host.ended(&op).await;
    assert!(matches!(op.state, OpState::Cancelled { .. }), "{op:?}");
    assert_eq!(host.traces(), before);
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

/// A server that breaks off after `first` bytes, four times more before the first one, and then
/// serves what is asked for. Tells the `Range` of each request.
fn breaking_server(
    host: &Host,
    body: Vec<u8>,
    first: usize,
) -> (String, std::sync::mpsc::Receiver<String>) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let (seen, ranges) = std::sync::mpsc::sync_channel(64);
    // It ends with the test's process.
    let _server = host.netns().inside(move || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sender.send(listener.local_addr().unwrap()).unwrap();
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..count]).to_ascii_lowercase();
            let range = request.lines().find_map(|line| line.strip_prefix("range: bytes="));
            let from = range.and_then(|it| it.trim_end_matches('-').parse::<usize>().ok());
            let _ = seen.try_send(range.unwrap_or("-").to_owned());
            let (at, total) = (from.unwrap_or(0), body.len());
            let status = match from {
                None => "200 OK".to_owned(),
                Some(at) => format!(
                    "206 Partial Content\r\ncontent-range: bytes {at}-{}/{total}",
                    total - 1
                ),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"one\"\r\n\
                 accept-ranges: bytes\r\nconnection: close\r\n\r\n",
                total - at
            );
            let served = match number {
                0 => &body[..first],
                1..=4 => &[],
                _ => &body[at..],
            };
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(served));
        }
    });
    let address = receiver.recv().unwrap();
    (format!("http://{address}/disk.raw"), ranges)
}

#[tokio::test]
async fn a_failed_import_goes_on_at_its_offset_when_it_is_asked_for_again() {
    let host = Host::start_fake().await;
    let body: Vec<u8> = (0..4_u32 << 20).map(|n| (n >> 9) as u8 | 1).collect();
    let (url, ranges) = breaking_server(&host, body, 3 << 20);
    let op = host.try_op::<ep::ImageImport>(&[], &download("d", url.clone())).await.unwrap();
    assert!(failure(&op).hint.contains("goes on where it stopped"), "{op:?}");
    assert!(host.client().get::<ep::ImageList>(&[]).await.unwrap().is_empty());
    let before: Vec<_> = ranges.try_iter().collect();
    assert_eq!(before[0], "-");
    host.op::<ep::ImageImport>(&[], &download("d", url)).await;
    let after: Vec<_> = ranges.try_iter().collect();
    assert_eq!(after, [format!("{}-", 3 << 20)], "{before:?}");
    let image = host.client().get::<ep::ImageShow>(&["d"]).await.unwrap();
    let ImageState::Ready { virtual_size, .. } = image.state else { panic!("{image:?}") };
    assert_eq!(virtual_size, Bytes::mib(4));
    let kept = host.traces().files.into_iter().filter(|it| it.contains("kept")).count();
    assert_eq!(kept, 0);
}
