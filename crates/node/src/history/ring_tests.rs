use super::*;

fn values(value: f32) -> Values {
    let mut values = [f32::NAN; FIGURES];
    values[0] = value;
    values
}

fn means(slots: &[Option<Slot>]) -> Vec<Option<f32>> {
    slots.iter().map(|slot| slot.map(|it| it.mean[0])).collect()
}

/// A moment at which windows of all levels begin.
const START: u64 = 1_800_000_000 / 3_600 * 3_600;

fn ring() -> (tempfile::TempDir, std::path::PathBuf, Ring) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.ring");
    let ring = Ring::open(&path, 7, None).unwrap();
    (dir, path, ring)
}

#[test]
fn levels_fit_into_each_other_and_reach_a_year() {
    for pair in LEVELS.windows(2) {
        let [fine, coarse] = pair else { panic!("two") };
        assert_eq!(coarse.step % fine.step, 0);
        assert!(fine.count > coarse.step / fine.step, "a window is there when it is closed");
        assert!(fine.count * fine.step < coarse.count * coarse.step);
    }
    let last = LEVELS[LEVELS.len() - 1];
    assert!(last.count * last.step >= 366 * 86_400);
    assert_eq!(FILE_BYTES, 1_522_816, "1.5 MB for each object; decision 0030 says so");
}

#[test]
fn each_level_has_the_mean_and_the_peak_of_what_was() {
    let (_dir, _path, mut ring) = ring();
    // Two hours and a bit: seconds count up within each hour.
    for second in 0..7_300 {
        ring.append(START + second, &values((second % 3_600) as f32)).unwrap();
    }
    let seconds = ring.read(0, START + 7_290..START + 7_301).unwrap();
    assert_eq!(means(&seconds)[0], Some(90.0));
    assert_eq!(means(&seconds)[10], None, "not yet");
    let tens = ring.read(1, START / 10..START / 10 + 2).unwrap();
    assert_eq!(means(&tens), [None, None], "two hours ago: written over");
    let ten = ring.read(1, START / 10 + 360..START / 10 + 361).unwrap()[0].unwrap();
    assert_eq!((ten.mean[0], ten.peak[0]), (4.5, 9.0));
    assert!(ten.mean[1].is_nan() && ten.peak[1].is_nan(), "never measured");
    let minute = ring.read(2, START / 60 + 1..START / 60 + 2).unwrap()[0].unwrap();
    assert_eq!((minute.mean[0], minute.peak[0]), (89.5, 119.0));
    let hours = ring.read(4, START / 3_600..START / 3_600 + 3).unwrap();
    assert_eq!(means(&hours)[..2], [Some(1_799.5); 2]);
    assert_eq!(hours[0].unwrap().peak[0], 3_599.0);
    // The present hour, as far as it is: 0 to 99, by windows of ten minutes and less.
    let open = means(&hours)[2].unwrap();
    assert!((30.0..80.0).contains(&open), "{open}");
}

#[test]
fn a_gap_is_a_gap_and_what_was_before_it_stays() {
    let (_dir, path, mut ring) = ring();
    for second in 0..35 {
        ring.append(START + second, &values(10.0)).unwrap();
    }
    drop(ring);
    // Another daemon, three hours later.
    let mut ring = Ring::open(&path, 7, None).unwrap();
    assert_eq!(ring.last(), Some(START + 34));
    ring.append(START + 3 * 3_600, &values(20.0)).unwrap();
    let minutes = ring.read(2, START / 60..START / 60 + 2).unwrap();
    assert_eq!(means(&minutes), [Some(10.0), None]);
    let hours = ring.read(4, START / 3_600..START / 3_600 + 4).unwrap();
    assert_eq!(means(&hours), [Some(10.0), None, None, Some(20.0)]);
    // One ring further on, an old window is not taken for a new one.
    let far = LEVELS[2].count;
    assert_eq!(means(&ring.read(2, START / 60 + far..START / 60 + far + 1).unwrap()), [None]);
}

#[test]
fn a_clock_that_is_set_back_loses_a_minute_at_most() {
    let (_dir, _path, mut ring) = ring();
    ring.append(START + 1_000, &values(1.0)).unwrap();
    ring.append(START + 990, &values(2.0)).unwrap();
    ring.append(START + 1_000, &values(3.0)).unwrap();
    assert_eq!(ring.last(), Some(START + 1_000));
    assert_eq!(means(&ring.read(0, START + 990..START + 991).unwrap()), [None]);
    ring.append(START + 100, &values(4.0)).unwrap();
    assert_eq!(ring.last(), Some(START + 100));
    assert_eq!(means(&ring.read(0, START + 100..START + 101).unwrap()), [Some(4.0)]);
}

#[test]
fn damage_is_a_gap_or_the_end_of_the_file_and_never_a_wrong_value() {
    let (_dir, path, mut ring) = ring();
    for second in 0..50 {
        ring.append(START + second, &values(5.0)).unwrap();
    }
    let whole = std::fs::read(&path).unwrap();
    let used = usize::try_from(offset(0, START)).unwrap();
    // Each byte of the head and of one slot.
    for place in (0..HEAD).chain(used..used + SLOT) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let look = Ring::look(&path, 7, None).unwrap();
        if place < HEAD {
            assert!(look.is_none(), "byte {place}");
            let anew = Ring::open(&path, 7, None).unwrap();
            assert_eq!(anew.last(), None);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), FILE_BYTES);
            continue;
        }
        let read = look.unwrap().read(0, START..START + 50).unwrap();
        assert_eq!(means(&read)[0], None, "byte {place}");
        assert_eq!(means(&read)[1..], [Some(5.0); 49]);
    }
    for length in [0, 10, HEAD, HEAD + 1, whole.len() - 1, whole.len() + 1] {
        let mut bytes = whole.clone();
        bytes.resize(length, 0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(Ring::look(&path, 7, None).unwrap().is_none(), "{length} bytes");
        assert_eq!(Ring::open(&path, 7, None).unwrap().last(), None);
    }
    // The file of another object, and none at all.
    std::fs::write(&path, &whole).unwrap();
    assert!(Ring::look(&path, 8, None).unwrap().is_none());
    std::fs::remove_file(&path).unwrap();
    assert!(Ring::look(&path, 7, None).unwrap().is_none());
}
