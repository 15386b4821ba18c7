//! What every [`Fence`] promises: the suite that each implementation passes.

use volume::lease::Epoch;
use volume::lease::ReservationKey;
use volume::lease::SessionId;
use volume::provider::Fence;
use volume::san::Lun;
use volume::san::Store;

fn key(epoch: u32, number: u32) -> ReservationKey {
    SessionId { epoch: Epoch(epoch), number }.key()
}

fn sorted(mut keys: Vec<ReservationKey>) -> Vec<ReservationKey> {
    keys.sort_unstable();
    keys
}

/// `one` and `two` are two paths to a LUN without keys; `can` says whether a path reads and writes.
fn conforms(one: &dyn Fence, two: &dyn Fence, can: &dyn Fn(usize) -> bool) {
    assert_eq!(one.keys().expect("keys"), []);
    assert_eq!(one.own().expect("no key"), None);
    assert!(one.preempt(key(1, 1)).is_err(), "a path without a key preempts");
    one.unregister().expect("that there is none is no error");

    one.register(key(1, 0)).expect("a key");
    assert!(can(0) && !can(1), "the LUN is not reserved for those with a key");
    two.register(key(1, 1)).expect("a key");
    assert!(can(0) && can(1));
    assert_eq!(sorted(two.keys().expect("keys")), [key(1, 0), key(1, 1)]);
    assert_eq!(two.own().expect("a key"), Some(key(1, 1)));

    two.register(key(1, 2)).expect("another one in its place");
    assert_eq!(sorted(one.keys().expect("keys")), [key(1, 0), key(1, 2)]);
    one.preempt(key(1, 1)).expect("that nobody has it is no error");
    assert!(can(1));

    one.preempt(key(1, 2)).expect("a fence");
    assert!(can(0) && !can(1), "a fenced path is served");
    assert_eq!(two.own().expect("no key"), None);
    assert!(two.preempt(key(1, 0)).is_err(), "a fenced path preempts");

    two.register(key(2, 0)).expect("a new key");
    two.preempt(key(1, 0)).expect("a fence");
    assert!(!can(0) && can(1));
    two.preempt(key(2, 0)).expect("its own key");
    assert!(!can(0) && !can(1), "nobody's is not everybody's");
    one.register(key(3, 0)).expect("a key");
    one.unregister().expect("no key");
    assert!(!can(0) && !can(1));
}

#[test]
fn the_labs_lun_conforms() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let folder = tempfile::tempdir().expect("a folder");
    let lun = Lun::new(1 << 20, 2, Store::filled(0));
    let server = volume::san::serve(lun, folder.path()).expect("a served LUN");
    let can = |path: usize| server.lun().read(path, 0, &mut [0; 512]).is_ok();
    conforms(&server.fence(0), &server.fence(1), &can);
}
