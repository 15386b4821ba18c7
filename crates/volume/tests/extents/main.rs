//! Leases of real file systems: ext4 with blocks of 1 and 4 KiB, and XFS, each on a loop device that
//! held another tenant's bytes before. Needs root; mounts in a name space of the test's own.
//!
//! With blocks of 1 KiB ext4 begins its groups one block late, so hardly any extent lies on whole blocks
//! of 4 KiB: what can be leased there must be right, but may be nothing.

mod real;

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::FallocateFlags;
use nix::fcntl::fallocate;
use real::Kind;
use real::Volume;
use volume::extent::PrepareError;
use volume::extent::leasable;
use volume::extent::prepare;
use volume::lease::BLOCK_BYTES;
use volume::lease::Extent;
use volume::lease::Span;

const ALL: Span = Span::new(0, 1 << 30);

/// What no guest may ever see.
const SECRET: u8 = 0x5E;

fn blocks_of(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.span.count).sum()
}

/// The bytes at leased extents are the file's, and none of them a secret.
fn check(volume: &Volume, file: &File, extents: &[Extent]) {
    for extent in extents {
        for block in 0..extent.span.count {
            let direct = volume.read(extent.device + block);
            let mut through = real::block();
            let at = (extent.span.start + block) * BLOCK_BYTES;
            file.read_exact_at(&mut through, at).expect("a block of the file");
            assert_eq!(direct[..], through[..], "block {block} of {extent:?}");
            assert!(!direct.contains(&SECRET), "another tenant's bytes in {extent:?}");
        }
    }
}

fn on_each(test: fn(&Volume)) {
    for kind in Kind::ALL {
        println!("{kind:?}");
        let volume = Volume::new(kind, SECRET);
        test(&volume);
        volume.unmount_and_check();
    }
}

#[test]
fn written_bytes_are_leased_where_they_lie_and_nothing_else_is() {
    on_each(|volume| {
        let file = volume.file("disk");
        for block in 0..64 {
            file.write_all_at(&real::pattern(block), block * BLOCK_BYTES).expect("a write");
        }
        let extents = leasable(&file, ALL).expect("extents");
        if volume.kind != Kind::SmallExt4 {
            assert_eq!(blocks_of(&extents), 64, "{extents:?}");
        }
        check(volume, &file, &extents);

        // Allocated only, at the end, in the middle of a hole, and behind the end.
        let none = FallocateFlags::empty();
        fallocate(&file, none, 100 * 4096, 20 * 4096).expect("preallocated");
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, keep, 200 * 4096, 20 * 4096).expect("preallocated");
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
        fallocate(&file, punch, 10 * 4096, 5 * 4096).expect("punched");
        let zeroed = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        fallocate(&file, zeroed, 30 * 4096, 4096).expect("zeroed");
        let extents = leasable(&file, ALL).expect("extents");
        for extent in &extents {
            for odd in [Span::new(10, 5), Span::new(30, 1), Span::new(64, 1000)] {
                assert!(!extent.span.overlaps(odd), "{extent:?} has {odd:?}");
            }
        }
        check(volume, &file, &extents);

        // A few bytes, which ext4 keeps in the inode; and an end within a block.
        let small = volume.buffered("small");
        small.write_all_at(b"a few bytes", 0).expect("bytes");
        small.sync_all().expect("synced");
        assert_eq!(leasable(&small, ALL).expect("extents"), []);
        let odd = volume.buffered("odd");
        odd.write_all_at(&[7; 4096 + 100], 0).expect("bytes");
        odd.sync_all().expect("synced");
        let extents = leasable(&odd, ALL).expect("extents");
        assert!(blocks_of(&extents) <= 1, "{extents:?}");
        // Not written yet, only in memory.
        let late = volume.buffered("late");
        late.write_all_at(&[9; 8192], 0).expect("bytes");
        let extents = leasable(&late, ALL).expect("extents");
        check(volume, &volume.file("late"), &extents);
    });
}

#[test]
fn growth_is_zeroes_and_direct_writes_are_the_files() {
    on_each(|volume| {
        let file = volume.file("disk");
        file.write_all_at(&real::pattern(1), 0).expect("a write");
        let grown = Span::new(0, 1024);
        let extents = prepare(&file, grown).expect("prepared");
        if volume.kind != Kind::SmallExt4 {
            assert_eq!(blocks_of(&extents), 1024, "{extents:?}");
        }
        check(volume, &file, &extents);
        assert_eq!(file.metadata().expect("its length").len(), 1024 * 4096);
        // What was there is kept.
        let mut first = real::block();
        file.read_exact_at(&mut first, 0).expect("a block");
        assert_eq!(first[..], real::pattern(1)[..]);

        for extent in &extents {
            for block in (0..extent.span.count).step_by(7) {
                let at = extent.span.start + block;
                volume.write(extent.device + block, &real::pattern(at + 1000));
            }
        }
        check(volume, &file, &extents);
        // Nothing has moved; a second time changes nothing.
        assert_eq!(prepare(&file, grown).expect("prepared"), extents);
        drop(file);
        volume.remount();
        let file = volume.file("disk");
        assert_eq!(leasable(&file, grown).expect("extents"), extents);
        check(volume, &file, &extents);
        for extent in &extents {
            let mut block = real::block();
            file.read_exact_at(&mut block, extent.span.start * 4096).expect("a block");
            assert_eq!(block[..], real::pattern(extent.span.start + 1000)[..]);
        }
    });
}

#[test]
fn freed_blocks_come_back_as_zeroes() {
    on_each(|volume| {
        // Most of the volume is one tenant's, and then is not.
        let old = volume.file("old");
        for chunk in 0..40 {
            old.write_all_at(&real::filled(SECRET, 1 << 20), chunk << 20).expect("a write");
        }
        old.sync_all().expect("synced");
        let keep = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&old, keep, 0, 20 << 20).expect("punched");
        old.set_len(25 << 20).expect("cut");
        drop(old);
        let new = volume.file("new");
        let extents = prepare(&new, Span::new(0, 4096)).expect("prepared");
        assert!(blocks_of(&extents) == 4096 || volume.kind == Kind::SmallExt4, "{extents:?}");
        check(volume, &new, &extents);
        volume.remove("old");
        let more = volume.file("more");
        let extents = prepare(&more, Span::new(0, 4096)).expect("prepared");
        check(volume, &more, &extents);
    });
}

#[test]
fn shared_blocks_are_leased_only_after_they_are_the_files_own() {
    let volume = Volume::new(Kind::Xfs, SECRET);
    let one = volume.file("one");
    for block in 0..32 {
        one.write_all_at(&real::pattern(block), block * BLOCK_BYTES).expect("a write");
    }
    one.sync_all().expect("synced");
    volume.clone_file("one", "two");
    let two = volume.file("two");
    assert_eq!(leasable(&one, ALL).expect("extents"), []);
    assert_eq!(leasable(&two, ALL).expect("extents"), []);
    let span = Span::new(8, 16);
    let extents = prepare(&two, span).expect("prepared");
    assert_eq!(blocks_of(&extents), 16);
    check(&volume, &two, &extents);
    for extent in &extents {
        for block in 0..extent.span.count {
            volume.write(extent.device + block, &real::pattern(7_000 + extent.span.start + block));
        }
    }
    for block in 0..32 {
        let mut bytes = real::block();
        one.read_exact_at(&mut bytes, block * BLOCK_BYTES).expect("a block");
        assert_eq!(bytes[..], real::pattern(block)[..], "the other file's block {block} changed");
    }
    // What nobody shares any more is the first one's alone.
    assert_eq!(blocks_of(&leasable(&one, ALL).expect("extents")), 16);
    drop((one, two));
    volume.unmount_and_check();
}

#[test]
fn a_full_volume_is_an_error_and_loses_nothing() {
    on_each(|volume| {
        let file = volume.file("disk");
        file.write_all_at(&real::pattern(3), 0).expect("a write");
        let full = prepare(&file, Span::new(0, 1 << 20));
        assert!(matches!(full, Err(PrepareError::Full)), "{full:?}");
        let mut bytes = real::block();
        file.read_exact_at(&mut bytes, 0).expect("a block");
        assert_eq!(bytes[..], real::pattern(3)[..]);
        for span in [Span::new(0, 0), Span::new(1 << 62, 1), Span::from(5)] {
            assert!(matches!(prepare(&file, span), Err(PrepareError::Range)), "{span:?}");
        }
    });
}
