//! The lab's LUN as real block devices, and real file systems on it through crashes. Needs root.

mod crash;
mod rig;
mod shared;
mod work;

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rig::Rig;
use volume::block::BlockError;
use volume::block::BlockIo;
use volume::block::Buffer;
use volume::block::Deed;
use volume::block::Outcome;
use volume::block::PlainIo;
use volume::block::Request;
use volume::block::RingIo;

const SIZE: u64 = 16 << 20;

fn wait(device: &dyn BlockIo, deed: Deed) -> Outcome {
    let (tell, told) = sync_channel(1);
    let done = Box::new(move |outcome| tell.send(outcome).expect("told once"));
    assert!(device.submit(Request { deed, done }).is_ok(), "an empty queue is full");
    told.recv_timeout(Duration::from_secs(60)).expect("every request ends")
}

fn filled(byte: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(8192);
    buffer.fill(byte);
    buffer
}

fn each(test: fn(&Rig, &dyn BlockIo, &dyn BlockIo)) {
    let rig = Rig::new(SIZE, 2, 7);
    let plain = |path| PlainIo::open(rig.device(path)).expect("a device");
    test(&rig, &plain(0), &plain(1));
    drop(rig);
    let rig = Rig::new(SIZE, 2, 7);
    let ring = |path| RingIo::open(rig.device(path)).expect("a device");
    test(&rig, &ring(0), &ring(1));
}

#[test]
fn all_paths_are_one_lun_and_each_flush_reaches_it() {
    each(|rig, one, two| {
        assert_eq!((one.size(), two.size()), (SIZE, SIZE));
        for number in 0..20 {
            let offset = u64::from(number) * 8192;
            wait(one, Deed::Write { offset, data: filled(number) }).expect("a write");
            let read = wait(two, Deed::Read { offset, length: 8192 }).expect("a read");
            assert!(read.iter().all(|byte| *byte == number), "the other path shows something else");
            let before = rig.server().lun().flushes();
            wait(two, Deed::Flush).expect("a flush");
            assert!(rig.server().lun().flushes() > before, "a flush has not come to the LUN");
        }
        wait(one, Deed::Write { offset: 0, data: filled(99) }).expect("a write");
        rig.server().lun().power_loss(|_| volume::san::Fate::Lost).expect("memory does not fail");
        let read = wait(two, Deed::Read { offset: 0, length: 16384 }).expect("a read");
        assert!(read[..8192].iter().all(|byte| *byte == 0), "what was not flushed is there");
        assert!(read[8192..].iter().all(|byte| *byte == 1), "what was flushed is not there");
    });
}

#[test]
fn a_lost_path_and_a_fenced_node_are_errors_and_only_theirs() {
    each(|rig, one, two| {
        let good = |device| wait(device, Deed::Read { offset: 0, length: 4096 }).is_ok();
        let write = |device| wait(device, Deed::Write { offset: 0, data: filled(3) });
        rig.server().lun().set_path(0, false).expect("a path");
        assert!(matches!(write(one), Err(BlockError::Device { .. })));
        assert!(!good(one) && good(two));
        rig.server().lun().set_path(0, true).expect("a path");
        assert!(good(one) && good(two));

        rig.server().lun().register(0, 10).expect("a key");
        assert!(good(one) && !good(two), "a path without a key is served");
        rig.server().lun().register(1, 11).expect("a key");
        assert!(good(two));
        rig.server().lun().preempt_and_abort(0, 11).expect("a fence");
        assert!(matches!(write(two), Err(BlockError::Device { .. })));
        assert!(!good(two) && good(one));
        let read = wait(one, Deed::Read { offset: 0, length: 4096 }).expect("a read");
        assert!(read.iter().all(|byte| *byte == 7), "a fenced write has come");

        // A flush that failed is final for who asked, also when the path is well again.
        assert!(wait(two, Deed::Flush).is_err());
        rig.server().lun().register(1, 12).expect("a key");
        assert!(good(two));
        assert_eq!(wait(two, Deed::Flush).map(|_| ()), Err(BlockError::FlushLost));
        rig.server().lun().set_delay(Duration::from_millis(50));
        let begun = std::time::Instant::now();
        assert!(good(one));
        assert!(begun.elapsed() >= Duration::from_millis(50), "a slow LUN is not slow");
    });
}
