//! Disk files of machines.

use std::os::unix::fs::MetadataExt;

use model::Bytes;
use model::DiskFormat;

use super::*;
use crate::image::DiskTool;
use crate::image::ImageError;
use crate::image::SandboxUser;
use crate::image::allocated_bytes;

fn tool() -> DiskTool {
    DiskTool::new("/usr/bin/qemu-img", Some(SandboxUser { uid: 65534, gid: 65534 }))
}

#[tokio::test]
async fn a_thin_copy_names_its_image_and_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(8);
    let source = dir.path().join("disk.raw");
    std::fs::write(&source, &raw).unwrap();
    let request = request(1, ImportSource::File(source), SourceFormat::Raw);
    let base = store(dir.path()).import(request).wait().await.unwrap().path;
    let dst = dir.path().join("vm.qcow2");
    let tool = tool();
    tool.create_overlay(&base, &dst, Bytes::mib(20)).await.unwrap();
    let seen = content(&dst);
    assert_eq!(seen.len(), 20 * MIB);
    assert!(seen.starts_with(&raw) && seen[raw.len()..].iter().all(|byte| *byte == 0));
    assert!(allocated_bytes(&dst).unwrap() < MIB as u64);
    assert_eq!(std::fs::metadata(&dst).unwrap().mode() & 0o7777, 0o600);
    assert!(!dir.path().join("vm.qcow2.new").exists());

    let error = tool.create_overlay(&base, &dst, Bytes::mib(4)).await.unwrap_err();
    assert!(matches!(error, ImageError::Shrink { .. }), "{error}");

    // Growing keeps the link to the image and does not follow it.
    tool.resize(&dst, Bytes::mib(30), DiskFormat::Qcow2).await.unwrap();
    tool.resize(&dst, Bytes::mib(30), DiskFormat::Qcow2).await.unwrap();
    let size = tool.virtual_size(&dst, DiskFormat::Qcow2).await.unwrap();
    assert_eq!(size, Bytes::mib(30));
    assert!(content(&dst).starts_with(&raw));
    let error = tool.resize(&dst, Bytes::mib(20), DiskFormat::Qcow2).await.unwrap_err();
    assert!(matches!(error, ImageError::Shrink { .. }), "{error}");
    let metadata = std::fs::metadata(&dst).unwrap();
    let me = std::fs::metadata(dir.path()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (me.uid(), me.gid()));
}

#[tokio::test]
async fn a_thin_copy_becomes_one_disk_beside_it_and_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(8);
    let source = dir.path().join("disk.raw");
    std::fs::write(&source, &raw).unwrap();
    let request = request(1, ImportSource::File(source), SourceFormat::Raw);
    let base = store(dir.path()).import(request).wait().await.unwrap().path;
    let (copy, tool) = (dir.path().join("vm.qcow2"), tool());
    tool.create_overlay(&base, &copy, Bytes::mib(20)).await.unwrap();
    let (before, metadata) = (std::fs::read(&copy).unwrap(), std::fs::metadata(&copy).unwrap());

    let flat = tool.flatten(&copy, &base).await.unwrap();
    let alone = dir.path().join("alone.qcow2");
    std::fs::copy(flat.path(), &alone).unwrap();
    drop(flat);
    assert!(!dir.path().join("vm.qcow2.new").exists(), "it goes away");
    assert_eq!(std::fs::read(&copy).unwrap(), before);
    let after = std::fs::metadata(&copy).unwrap();
    assert_eq!((after.uid(), after.nlink()), (metadata.uid(), 1));
    // What was made needs no image.
    std::fs::remove_file(&base).unwrap();
    let seen = content(&alone);
    assert_eq!(seen.len(), 20 * MIB);
    assert!(seen.starts_with(&raw) && seen[raw.len()..].iter().all(|byte| *byte == 0));

    let missing = tool.flatten(&copy, &base).await.unwrap_err();
    assert!(matches!(missing, ImageError::Io { .. }), "{missing}");
    assert!(!dir.path().join("vm.qcow2.new").exists(), "nothing is left");
}

#[tokio::test]
async fn blank_disks_are_made_in_both_formats_and_grow() {
    let dir = tempfile::tempdir().unwrap();
    let tool = tool();
    for (format, name) in [(DiskFormat::Qcow2, "a.qcow2"), (DiskFormat::Raw, "a.raw")] {
        let path = dir.path().join(name);
        // What a crash left behind is in nobody's way.
        std::fs::create_dir(dir.path().join(format!("{name}.new"))).unwrap();
        tool.create_blank(&path, Bytes::gib(3), format).await.unwrap();
        assert_eq!(tool.virtual_size(&path, format).await.unwrap(), Bytes::gib(3));
        tool.resize(&path, Bytes::gib(5), format).await.unwrap();
        assert_eq!(tool.virtual_size(&path, format).await.unwrap(), Bytes::gib(5));
        assert!(allocated_bytes(&path).unwrap() < MIB as u64);
    }
    assert_eq!(entries(dir.path()), ["a.qcow2", "a.raw"]);
    for size in [0, 1, 1000, (1 << 20) + 1, u64::MAX] {
        let path = dir.path().join("b");
        let error = tool.create_blank(&path, Bytes::new(size), DiskFormat::Raw).await.unwrap_err();
        assert!(matches!(error, ImageError::BadSize { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_largest_disk_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge");
    tool().create_blank(&path, Bytes::gib(64 << 10), DiskFormat::Qcow2).await.unwrap();
    assert!(allocated_bytes(&path).unwrap() < 32 * MIB as u64);
}

#[tokio::test]
async fn a_disk_whose_header_names_a_host_file_is_grown_without_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = "/nonexistent/secret";
    qemu_img(
        &["create", "-u", "-f", "qcow2", "-F", "raw", "-b", missing, "evil", "2M"],
        dir.path(),
    );
    let path = dir.path().join("evil");
    tool().resize(&path, Bytes::mib(4), DiskFormat::Qcow2).await.unwrap();
    let size = tool().virtual_size(&path, DiskFormat::Qcow2).await.unwrap();
    assert_eq!(size, Bytes::mib(4));
}
