//! Volumes on LUNs: one coordinator in each epoch, epochs that only grow, and hands that change only
//! when nothing of the old ones can write any more (ARCHITECTURE.md, 28).

use proptest::prelude::Strategy;
use proptest::prelude::prop_assert;
use proptest::prelude::prop_assert_eq;
use proptest::prelude::proptest;
use uuid::Uuid;

use super::NODE;
use super::World;
use super::create_request;
use super::ha;
use super::ha::OTHER;
use super::ha::THIRD;
use super::vm_id;
use crate::Bytes;
use crate::Command;
use crate::Coordination;
use crate::DeviceSaid;
use crate::FenceProof;
use crate::FsKind;
use crate::LunContents;
use crate::LunId;
use crate::LunPhase;
use crate::LunSeen;
use crate::MigratePolicy;
use crate::Millis;
use crate::NodeId;
use crate::OpRequest;
use crate::Refused;
use crate::Speaker;
use crate::StorageTarget;
use crate::UnixMillis;
use crate::VmPlace;
use crate::VmSpec;
use crate::VolumeId;
use crate::ends_mounts;

const ON_LUN: VolumeId = VolumeId::new(Uuid::from_u128(95));
const NODES: [NodeId; 3] = [NODE, OTHER, THIRD];

fn lun(n: u8) -> LunId {
    format!("wwid-{n}").parse().unwrap()
}

fn seen(fences: bool) -> LunSeen {
    LunSeen {
        paths: vec!["/dev/sdx".to_owned()],
        size: Bytes::gib(1),
        read_only: false,
        fences,
        attached: false,
        contents: LunContents::Empty,
    }
}

/// Three nodes that see two LUNs.
fn cluster(fences: bool) -> World {
    let mut world = ha::cluster();
    for node in NODES {
        let luns = [(lun(0), seen(fences)), (lun(1), seen(fences))].into();
        world.propose(Command::NodeLunsSet { node, luns }).unwrap();
    }
    world
}

fn speaker(world: &World, node: NodeId) -> Speaker {
    Speaker { node, epoch: world.state.node(node).unwrap().epoch }
}

fn create(world: &mut World, by: NodeId) -> Result<crate::Applied, Refused> {
    let by = speaker(world, by);
    let (volume, name) = (ON_LUN, "san".parse().unwrap());
    let (lun, fs, uuid) = (lun(0), FsKind::Ext4, ON_LUN.to_string());
    world.propose(Command::VolumeCreateOnLun { volume, name, lun, fs, uuid, adopt: false, by })
}

fn now(world: &World) -> Coordination {
    world.state.volumes.get(&ON_LUN).unwrap().coordination.clone().unwrap()
}

fn ready(fences: bool) -> World {
    let mut world = cluster(fences);
    create(&mut world, NODE).unwrap();
    let by = speaker(&world, NODE);
    world.propose(Command::VolumePrepared { volume: ON_LUN, epoch: 1, by }).unwrap();
    world
}

fn claim(world: &mut World, node: NodeId) -> Result<crate::Applied, Refused> {
    let (by, epoch) = (speaker(world, node), now(world).epoch);
    world.propose(Command::VolumeClaim { volume: ON_LUN, epoch, by })
}

fn give_back(world: &mut World, node: NodeId) -> Result<crate::Applied, Refused> {
    let (by, epoch) = (speaker(world, node), now(world).epoch);
    world.propose(Command::VolumeGiveBack { volume: ON_LUN, epoch, by })
}

fn device() -> FenceProof {
    let said = DeviceSaid {
        device: "bmc".parse().unwrap(),
        level: 1,
        output: String::new(),
        at: UnixMillis::new(1),
    };
    FenceProof::Devices { said: vec![said] }
}

fn fence(world: &mut World, node: NodeId, proof: FenceProof) -> Result<crate::Applied, Refused> {
    let epoch = world.state.node(node).unwrap().epoch;
    world.propose(Command::NodeFenced { node, epoch, reign: 0, proof })
}

#[test]
fn a_lun_is_one_volumes_and_only_where_it_is_seen() {
    let mut world = cluster(false);
    let by = speaker(&world, NODE);
    let at = |world: &mut World, id: u128, name: &str, lun: LunId| {
        let volume = VolumeId::new(Uuid::from_u128(id));
        let name = name.parse().unwrap();
        let (fs, uuid) = (FsKind::Xfs, volume.to_string());
        world.propose(Command::VolumeCreateOnLun { volume, name, lun, fs, uuid, adopt: false, by })
    };
    let unseen = at(&mut world, 200, "a", "other".parse().unwrap()).unwrap_err();
    assert_eq!(unseen.to_string(), "there is no LUN other on this node");
    assert!(unseen.hint().contains("muster disk list"));
    at(&mut world, 201, "a", lun(0)).unwrap();
    let taken = at(&mut world, 202, "b", lun(0)).unwrap_err();
    assert_eq!(taken.to_string(), "LUN wwid-0 is in use by volume a");
    assert!(matches!(at(&mut world, 203, "shared", lun(1)), Err(Refused::NameTaken { .. })));
    at(&mut world, 204, "b", lun(1)).unwrap();
}

#[test]
fn what_stands_on_a_lun_is_never_formatted_and_only_a_volume_is_adopted() {
    let uuid = ON_LUN.to_string();
    let ours = LunContents::Volume { fs: FsKind::Ext4, uuid: uuid.clone() };
    let other = LunContents::Volume { fs: FsKind::Xfs, uuid: NODE.to_string() };
    let foreign = LunContents::Foreign { what: "LVM2_member".to_owned() };
    let dead = LunContents::Unreadable { why: "EIO".to_owned() };
    for (contents, adopt, fine) in [
        (LunContents::Empty, false, true),
        (LunContents::Empty, true, false),
        (ours.clone(), true, true),
        (ours, false, false),
        (other, true, false),
        (foreign, false, false),
        (LunContents::Unknown, false, false),
        (LunContents::Unknown, true, false),
        (LunContents::Reserved, false, false),
        (LunContents::Reserved, true, false),
        (dead, false, false),
    ] {
        let mut world = cluster(true);
        let luns = [(lun(0), LunSeen { contents: contents.clone(), ..seen(true) })].into();
        world.propose(Command::NodeLunsSet { node: NODE, luns }).unwrap();
        let by = speaker(&world, NODE);
        let (volume, name, lun, fs) = (ON_LUN, "san".parse().unwrap(), lun(0), FsKind::Ext4);
        let uuid = uuid.clone();
        let create = Command::VolumeCreateOnLun { volume, name, lun, fs, uuid, adopt, by };
        let done = world.propose(create);
        assert_eq!(done.is_ok(), fine, "{contents:?} {adopt}: {done:?}");
        assert!(fine || matches!(done, Err(Refused::LunHolds { .. })));
    }
}

#[test]
fn nothing_lies_on_it_before_it_is_ready_and_none_of_it_while_it_goes() {
    let mut world = cluster(false);
    create(&mut world, NODE).unwrap();
    let mut request = create_request(10, "vm", VmSpec::new(1, Bytes::mib(128)));
    if let OpRequest::VmCreate { volume, .. } = &mut request {
        *volume = Some(ON_LUN);
    }
    assert!(matches!(world.begin(request.clone()), Err(Refused::Invalid(_))));
    let by = speaker(&world, NODE);
    world.propose(Command::VolumePrepared { volume: ON_LUN, epoch: 1, by }).unwrap();
    world.run(request);
    world.run(OpRequest::VmStart { vm: vm_id(10) });
    let maintenance = Command::VolumeMaintenance { volume: ON_LUN, on: true };
    let refused = world.propose(maintenance);
    assert!(matches!(refused, Err(Refused::InUse { .. })), "{refused:?}");
    // Another coordinator is a pause, and no more.
    world.propose(Command::VolumeMove { volume: ON_LUN, to: OTHER }).unwrap();
    let leave = Command::VolumeLeave { volume: ON_LUN, wipe: true };
    assert!(matches!(world.propose(leave), Err(Refused::InUse { .. })));
    let delete = Command::VolumeDelete { volume: ON_LUN };
    assert!(matches!(world.propose(delete), Err(Refused::Invalid(_))), "a share's verb");
}

#[test]
fn files_come_to_it_only_while_it_is_in_use_and_keep_it_so() {
    let place = VmPlace::Volume { volume: ON_LUN };
    let storage = Some(Box::new(StorageTarget { place, whole: Vec::new() }));
    let policy = MigratePolicy::default();
    for comes in [
        OpRequest::VmMoveStorage { vm: vm_id(10), to: place },
        OpRequest::VmMigrate { vm: vm_id(10), to: OTHER, policy, storage },
    ] {
        let mut world = ready(false);
        world.run(create_request(10, "vm", VmSpec::new(1, Bytes::mib(128))));
        world.run(OpRequest::VmStart { vm: vm_id(10) });
        let keep = |on| Command::VolumeMaintenance { volume: ON_LUN, on };
        world.propose(keep(true)).unwrap();
        let refused = world.begin(comes.clone());
        assert!(matches!(refused, Err(Refused::Invalid(_))), "{comes:?}: {refused:?}");
        world.propose(keep(false)).unwrap();
        world.begin(comes).unwrap();
        let refused = world.propose(keep(true));
        assert!(matches!(refused, Err(Refused::InUse { .. })), "{refused:?}");
    }
}

#[test]
fn a_coordinator_hands_it_over_by_giving_it_back_and_no_other_way() {
    let mut world = ready(true);
    assert!(claim(&mut world, OTHER).is_err(), "it is mounted by another node");
    assert!(give_back(&mut world, OTHER).is_err(), "it is not its own to give");
    world.propose(Command::VolumeMove { volume: ON_LUN, to: OTHER }).unwrap();
    assert_eq!(now(&world).holder, Some(NODE), "until it has unmounted it");
    give_back(&mut world, NODE).unwrap();
    assert!(claim(&mut world, THIRD).is_err(), "it is on its way to another one");
    claim(&mut world, OTHER).unwrap();
    let state = now(&world);
    assert_eq!((state.epoch, state.holder, state.wanted), (2, Some(OTHER), None));
    // A message of the epoch before.
    let by = speaker(&world, NODE);
    let late = world.propose(Command::VolumeGiveBack { volume: ON_LUN, epoch: 1, by });
    assert!(late.is_err());
    let late = world.propose(Command::VolumeClaim { volume: ON_LUN, epoch: 1, by });
    assert!(late.is_err());
}

#[test]
fn a_lost_coordinators_mount_must_be_proved_to_have_ended() {
    let lease_over = || FenceProof::LeaseOver { waited: Millis::from_secs(60) };
    for (fences, power, taken) in
        [(false, true, true), (false, false, false), (true, true, true), (true, false, true)]
    {
        let mut world = ready(fences);
        let terms = Some(crate::LeaseTerms { lease_ms: 1, watchdog_ms: 0 });
        world.propose(Command::NodeTerms { node: NODE, reign: 0, terms }).unwrap();
        let late = speaker(&world, NODE);
        let proof = if power { device() } else { lease_over() };
        fence(&mut world, NODE, proof).unwrap();
        // A lease that is over ends machines, not what the kernel has cached.
        assert_eq!(claim(&mut world, OTHER).is_ok(), taken, "{fences} {power}");
        let back = Command::VolumeGiveBack { volume: ON_LUN, epoch: 1, by: late };
        assert!(world.propose(back).is_err(), "a node that was fenced meanwhile speaks");
        assert_eq!(now(&world).epoch, if taken { 2 } else { 1 });
    }
    assert!(!ends_mounts(&FenceProof::Left, true));
}

#[test]
fn maintenance_keeps_everybody_off_and_a_node_with_volumes_does_not_go() {
    let mut world = ready(true);
    world.propose(Command::VolumeMaintenance { volume: ON_LUN, on: true }).unwrap();
    give_back(&mut world, NODE).unwrap();
    assert!(claim(&mut world, OTHER).is_err());
    world.propose(Command::VolumeMaintenance { volume: ON_LUN, on: false }).unwrap();
    claim(&mut world, OTHER).unwrap();
    assert_eq!(super::super::lun::held(&world.state, OTHER), ["san"]);
    world.propose(Command::VolumeLeave { volume: ON_LUN, wipe: false }).unwrap();
    let by = speaker(&world, OTHER);
    world.propose(Command::VolumeGone { volume: ON_LUN, epoch: 2, by }).unwrap();
    assert!(!world.state.volumes.contains_key(&ON_LUN));
}

/// Whose data plane may still write is not to find the LUN another's.
#[test]
fn a_lun_is_let_go_when_no_other_node_may_write_to_it_any_more() {
    let attach = |world: &mut World, attached| {
        let luns = [(lun(0), LunSeen { attached, ..seen(true) })].into();
        world.propose(Command::NodeLunsSet { node: OTHER, luns }).unwrap();
    };
    for power in [None, Some(false), Some(true)] {
        let mut world = ready(true);
        attach(&mut world, true);
        world.propose(Command::VolumeLeave { volume: ON_LUN, wipe: false }).unwrap();
        let by = speaker(&world, NODE);
        let gone = Command::VolumeGone { volume: ON_LUN, epoch: 1, by };
        let refused = world.propose(gone.clone());
        assert!(matches!(refused, Err(Refused::InUse { .. })), "{refused:?}");
        match power {
            None => attach(&mut world, false),
            Some(power) => {
                let terms = Some(crate::LeaseTerms { lease_ms: 1, watchdog_ms: 0 });
                world.propose(Command::NodeTerms { node: OTHER, reign: 0, terms }).unwrap();
                let over = FenceProof::LeaseOver { waited: Millis::from_secs(60) };
                fence(&mut world, OTHER, if power { device() } else { over }).unwrap();
            }
        }
        // The end of a lease ends machines, not what is on its way to a LUN that is open to everybody.
        assert_eq!(world.propose(gone).is_ok(), power != Some(false), "{power:?}");
    }
}

/// One step of anybody: which, of which node, and with which epoch behind the present one.
type Step = (u8, u8, u64);

fn command(world: &World, (what, who, behind): Step) -> Command {
    let node = NODES[usize::from(who) % 3];
    let record = world.state.node(node).unwrap();
    let by = Speaker { node, epoch: record.epoch.saturating_sub(behind / 2) };
    let (volume, epoch) = (ON_LUN, now(world).epoch.saturating_sub(behind % 2));
    match what {
        0..=2 => Command::VolumeClaim { volume, epoch, by },
        3..=4 => Command::VolumeGiveBack { volume, epoch, by },
        5 => Command::VolumeMove { volume, to: node },
        6 => Command::VolumeMaintenance { volume, on: who % 2 == 0 },
        7 => Command::NodeFenced { node, epoch: record.epoch, reign: 0, proof: device() },
        8 => Command::NodeFenced {
            node,
            epoch: record.epoch,
            reign: 0,
            proof: FenceProof::LeaseOver { waited: Millis::from_secs(60) },
        },
        9..=10 => Command::NodeBack { node, epoch: record.epoch },
        _ => Command::VolumePrepared { volume, epoch, by },
    }
}

proptest! {
    /// Whatever nodes, fencing and administrators do in whatever order.
    #[test]
    fn a_volume_has_one_coordinator_in_each_epoch(
        fences: bool,
        steps in proptest::collection::vec((0u8..12, 0u8..3, 0u64..4), 1..120)
            .prop_map(|steps: Vec<Step>| steps),
    ) {
        let mut world = ready(fences);
        for node in NODES {
            let terms = Some(crate::LeaseTerms { lease_ms: 1, watchdog_ms: 0 });
            world.propose(Command::NodeTerms { node, reign: 0, terms }).unwrap();
        }
        let mut holders = std::collections::BTreeMap::from([(1, NODE)]);
        for step in steps {
            let (before, nodes) = (now(&world), world.state.nodes.clone());
            let command = command(&world, step);
            let _ = world.propose(command.clone());
            let after = now(&world);
            prop_assert!(after.epoch == before.epoch || after.epoch == before.epoch + 1);
            if let Some(holder) = after.holder {
                prop_assert_eq!(*holders.entry(after.epoch).or_insert(holder), holder);
            }
            if after.holder == before.holder {
                continue;
            }
            match before.holder {
                // It was given up by itself, or its mounts are proved to have ended.
                Some(old) => {
                    let gave = matches!(command, Command::VolumeGiveBack { by, .. } if by.node == old);
                    let fenced = nodes.get(&old).unwrap().fenced.as_ref();
                    let proved = fenced.is_some_and(|it| ends_mounts(&it.proof, fences));
                    prop_assert!(gave && after.holder.is_none() || proved && after.epoch > before.epoch);
                }
                None => prop_assert!(after.epoch > before.epoch && !before.maintenance),
            }
            if let Some(new) = after.holder {
                prop_assert!(nodes.get(&new).unwrap().fenced.is_none());
            }
        }
        prop_assert_eq!(now(&world).phase, LunPhase::Ready);
    }
}
