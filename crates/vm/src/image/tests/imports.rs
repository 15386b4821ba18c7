//! Imports that succeed, from files and over HTTP.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use super::server::Act;
use super::server::Server;
use super::*;
use crate::image::FetchError;
use crate::image::ImageError;

#[tokio::test]
async fn every_format_is_imported_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(6);
    std::fs::write(dir.path().join("disk.raw"), &raw).unwrap();
    let made: [(&str, &[&str], SourceFormat); 9] = [
        ("raw", &[], SourceFormat::Raw),
        ("qcow2", &[], SourceFormat::Qcow2),
        ("qcow2", &["-c"], SourceFormat::Qcow2),
        ("vpc", &["-o", "force_size=on"], SourceFormat::Vhd),
        ("vpc", &["-o", "subformat=fixed,force_size=on"], SourceFormat::Vhd),
        ("vhdx", &[], SourceFormat::Vhdx),
        ("vhdx", &["-o", "subformat=fixed"], SourceFormat::Vhdx),
        ("vmdk", &[], SourceFormat::Vmdk),
        ("vmdk", &["-o", "subformat=streamOptimized"], SourceFormat::Vmdk),
    ];
    let store = store(dir.path());
    for (n, (driver, options, format)) in (1..).zip(made) {
        let mut args = vec!["convert", "-f", "raw", "-O", driver];
        args.extend_from_slice(options);
        args.extend_from_slice(&["disk.raw", "source"]);
        qemu_img(&args, dir.path());
        let path = dir.path().join("source");
        let expected = sha256(&std::fs::read(&path).unwrap());
        let mut request = request(n, ImportSource::File(path), format);
        request.sha256 = Some(expected.to_uppercase());
        let imported = store.import(request.clone()).wait().await;
        let imported = imported.unwrap_or_else(|error| panic!("{driver} {options:?}: {error}"));
        assert_eq!(imported.virtual_size, raw.len() as u64, "{driver} {options:?}");
        assert_eq!(imported.sha256, expected);
        assert!(content(&imported.path) == raw, "{driver} {options:?}: the content differs");
        let metadata = std::fs::metadata(&imported.path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o440, 1));
        assert!(imported.file_bytes < raw.len() as u64, "the hole is stored");
        // Again: it is there.
        assert_eq!(store.import(request).wait().await.unwrap(), imported);
    }
    assert!(entries(&dir.path().join("images")).iter().all(|name| !name.ends_with(".part")));
}

#[tokio::test]
async fn a_vhd_whose_geometry_is_smaller_keeps_its_tail() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(5);
    let mut vhd = raw.clone();
    std::fs::write(dir.path().join("disk.raw"), &raw).unwrap();
    qemu_img(
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            "subformat=fixed,force_size=on",
            "disk.raw",
            "v",
        ],
        dir.path(),
    );
    let made = std::fs::read(dir.path().join("v")).unwrap();
    let mut footer = made[made.len() - 512..].to_vec();
    footer[28..32].copy_from_slice(b"vbox"); // a creator for which QEMU would trust the geometry
    footer[64..68].fill(0);
    let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    vhd.extend_from_slice(&footer);
    let path = dir.path().join("disk.vhd");
    std::fs::write(&path, vhd).unwrap();
    let request = request(1, ImportSource::File(path), SourceFormat::Vhd);
    let imported = store(dir.path()).import(request).wait().await.unwrap();
    assert!(content(&imported.path) == raw);
}

#[tokio::test]
async fn a_raw_image_that_begins_like_a_qcow2_stays_raw() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(
        &["create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "evil", "1M"],
        dir.path(),
    );
    let path = dir.path().join("evil");
    let bytes = std::fs::read(&path).unwrap();
    let request = request(1, ImportSource::File(path), SourceFormat::Raw);
    let imported = store(dir.path()).import(request).wait().await.unwrap();
    assert!(content(&imported.path).starts_with(&bytes));
}

#[tokio::test]
async fn a_transfer_that_is_cut_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(9);
    let cuts = vec![Act::CutAfter(3 * MIB), Act::CutAfter(2 * MIB), Act::CutAfter(MIB)];
    let server = Server::start(raw.clone(), cuts).await;
    let mut request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
    request.sha256 = Some(sha256(&raw));
    let imported = store(dir.path()).import(request).wait().await.unwrap();
    assert!(content(&imported.path) == raw);
    let ranges = server.ranges();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert_eq!(ranges[0], "-");
    assert!(ranges[1..].iter().all(|range| range.starts_with("bytes=")), "{ranges:?}");
}

#[tokio::test]
async fn a_server_without_ranges_or_lengths_is_good_enough() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(3);
    let acts = vec![Act::CutAfter(MIB), Act::Whole, Act::Chunked];
    let server = Server::start(raw.clone(), acts).await;
    let store = store(dir.path());
    for n in [1, 2] {
        let request = request(n, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
        let imported = store.import(request).wait().await.unwrap();
        assert!(content(&imported.path) == raw);
    }
}

#[tokio::test]
async fn a_source_that_changed_is_fetched_again_from_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let (old, mut new) = (disk(4), disk(4));
    new[..MIB].fill(7);
    let server = Server::start(old, vec![Act::HangAfter(3 * MIB)]).await;
    let store = store(dir.path());
    let request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
    let mut job = store.import(request.clone());
    until(&job, |progress| progress.done >= 3 * MIB as u64).await;
    job.cancel(crate::image::CancelMode::Keep);
    assert!(matches!(job.wait().await, Err(ImageError::Cancelled(_))));
    {
        let mut state = server.state.lock().unwrap();
        state.body.clone_from(&new);
        state.etag = Some("\"two\"".to_owned());
    }
    let imported = store.import(request).wait().await.unwrap();
    assert!(content(&imported.path) == new);
    assert_eq!(
        server.ranges()[1],
        format!("bytes={}-", 3 * MIB),
        "it was asked whether it changed"
    );
}

#[tokio::test]
async fn a_kept_import_goes_on_after_a_new_start() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(6);
    let server = Server::start(raw.clone(), vec![Act::HangAfter(4 * MIB)]).await;
    let request = request(1, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
    let mut config = config(dir.path());
    config.http.idle = Duration::from_millis(300);
    config.fetch_attempts_max = 0;
    let error = ImageStore::open(config).unwrap().import(request.clone()).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Fetch(FetchError::Timeout { .. })), "{error}");
    assert!(error.is_resumable());
    let imported = store(dir.path()).import(request).wait().await.unwrap();
    assert!(content(&imported.path) == raw);
    assert_eq!(server.ranges(), ["-".to_owned(), format!("bytes={}-", 4 * MIB)]);
}

#[tokio::test]
async fn what_a_failed_import_has_fetched_serves_the_next_of_the_same_source() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(6);
    let server = Server::start(raw.clone(), vec![Act::HangAfter(4 * MIB)]).await;
    let source = ImportSource::Url(server.url("disk.raw"));
    let first = request(1, source.clone(), SourceFormat::Raw);
    let mut config = config(dir.path());
    config.http.idle = Duration::from_millis(300);
    config.fetch_attempts_max = 0;
    let failing = ImageStore::open(config).unwrap();
    let error = failing.import(first.clone()).wait().await.unwrap_err();
    assert!(error.is_resumable(), "{error}");
    assert!(failing.keep(&first).unwrap());
    assert!(!failing.keep(&first).unwrap(), "kept once");
    failing.remove(id(1)).unwrap();
    // It survives the next start, and another source has nothing of it.
    let store = store(dir.path());
    store.sweep(&HashSet::new()).unwrap();
    let path = dir.path().join("other.raw");
    std::fs::write(&path, disk(1)).unwrap();
    let other = request(3, ImportSource::File(path), SourceFormat::Raw);
    assert!(content(&store.import(other).wait().await.unwrap().path) == disk(1));
    let imported = store.import(request(2, source.clone(), SourceFormat::Raw)).wait().await;
    assert!(content(&imported.unwrap().path) == raw);
    assert_eq!(server.ranges(), ["-".to_owned(), format!("bytes={}-", 4 * MIB)]);
    let images = entries(&dir.path().join("images"));
    assert!(!images.iter().any(|name| name.starts_with("kept-")), "{images:?}");
}

#[tokio::test]
async fn few_halves_are_kept_and_only_those_with_something_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(disk(2), Vec::new()).await;
    let mut config = config(dir.path());
    config.http.idle = Duration::from_millis(300);
    config.fetch_attempts_max = 0;
    let store = ImageStore::open(config).unwrap();
    for n in 1..=6 {
        let act = if n == 6 { Act::Silent } else { Act::HangAfter(MIB) };
        server.state.lock().unwrap().acts.push(act);
        let source = ImportSource::Url(server.url(&format!("{n}.raw")));
        let request = request(n, source, SourceFormat::Raw);
        store.import(request.clone()).wait().await.unwrap_err();
        assert_eq!(store.keep(&request).unwrap(), n != 6, "{n}");
    }
    let images = entries(&dir.path().join("images"));
    assert_eq!(images.iter().filter(|name| name.starts_with("kept-")).count(), 4, "{images:?}");
}

#[tokio::test]
async fn a_local_copy_goes_on_only_if_the_file_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(40)).unwrap();
    let store = store(dir.path());
    let request = request(1, ImportSource::File(path.clone()), SourceFormat::Raw);
    let mut job = store.import(request.clone());
    until(&job, |progress| progress.done >= MIB as u64).await;
    job.cancel(crate::image::CancelMode::Keep);
    if job.wait().await.is_ok() {
        return; // the copy was faster than the cancel
    }
    let mut changed = disk(40);
    changed[..4096].fill(1);
    std::fs::write(&path, &changed).unwrap();
    let imported = store.import(request).wait().await.unwrap();
    assert!(content(&imported.path) == changed);
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(1);
    let to = |where_to: &str| {
        Act::Raw(format!("HTTP/1.1 302 Found\r\nLocation: {where_to}\r\nContent-Length: 0\r\n\r\n"))
    };
    let server = Server::start(raw.clone(), vec![to("/other/place"), to("next")]).await;
    let store = store(dir.path());
    let ask = |n| request(n, ImportSource::Url(server.url("disk.raw")), SourceFormat::Raw);
    let imported = store.import(ask(1)).wait().await.unwrap();
    assert!(content(&imported.path) == raw);

    server.state.lock().unwrap().acts = vec![to("/a"); 10];
    let error = store.import(ask(2)).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Fetch(FetchError::TooManyRedirects { limit: 5 })));

    server.state.lock().unwrap().acts = vec![to("file:///etc/shadow")];
    let error = store.import(ask(3)).wait().await.unwrap_err();
    assert!(matches!(error, ImageError::Fetch(FetchError::BadUrl { .. })), "{error}");
    assert_eq!(entries(&dir.path().join("images")).len(), 2);
}

#[tokio::test]
async fn sweep_removes_half_imports_that_nobody_knows_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let images = dir.path().join("images");
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(1)).unwrap();
    for n in [1, 2] {
        let request = request(n, ImportSource::File(path.clone()), SourceFormat::Raw);
        store.import(request).wait().await.unwrap();
    }
    std::fs::create_dir_all(images.join(format!("{}.part/out", id(3)))).unwrap();
    std::fs::create_dir_all(images.join(format!("{}.part", id(4)))).unwrap();
    std::fs::write(images.join("README"), "mine").unwrap();
    let swept = store.sweep(&HashSet::from([id(1), id(4)])).unwrap();
    assert!(swept.failed.is_empty());
    assert_eq!(swept.removed, [images.join(format!("{}.part", id(3)))]);
    // The disk of a machine may need it.
    assert_eq!(swept.unknown, [images.join(format!("{}.qcow2", id(2)))]);
    let left = [
        format!("{}.qcow2", id(1)),
        format!("{}.sha256", id(1)),
        format!("{}.qcow2", id(2)),
        format!("{}.sha256", id(2)),
        format!("{}.part", id(4)),
        "README".to_owned(),
    ];
    assert_eq!(entries(&images).into_iter().collect::<HashSet<_>>(), HashSet::from(left));
}
