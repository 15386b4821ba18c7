//! What is kept of changes of settings, and that nothing secret is.

use super::NODE;
use super::World;
use super::create_request;
use super::nic;
use super::vm_id;
use crate::Bytes;
use crate::CHANGES_MAX;
use crate::CloudInit;
use crate::Command;
use crate::OpRequest;
use crate::SettingsChange;
use crate::VmChange;
use crate::VmId;
use crate::VmSpec;

impl World {
    fn set(&mut self, vm: VmId, change: VmChange) {
        self.run(OpRequest::VmSet { vm, change: Box::new(change), if_revision: None });
    }

    fn changes(&self, vm: VmId) -> Vec<SettingsChange> {
        self.state.history.get(&vm).map(|changes| changes.to_vec()).unwrap_or_default()
    }

    fn words(&self, vm: VmId) -> Vec<(String, Option<String>, Option<String>)> {
        let changes = self.changes(vm);
        let fields = changes.last().map(SettingsChange::fields).unwrap_or_default();
        fields.into_iter().map(|it| (it.field, it.old, it.new)).collect()
    }
}

fn row(field: &str, old: &str, new: &str) -> (String, Option<String>, Option<String>) {
    let told = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    (field.to_owned(), told(old), told(new))
}

#[test]
fn each_change_is_kept_with_what_it_was_and_who_made_it() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    world.run(OpRequest::VmStart { vm });
    world.run(OpRequest::VmOff { vm });
    assert_eq!(world.changes(vm), [], "neither its creation nor its power is a change of settings");
    world.set(vm, VmChange { memory: Some(Bytes::mib(256)), ..VmChange::default() });
    let change = world.changes(vm).pop().unwrap();
    assert_eq!(change.by, "test");
    assert_eq!(change.revision, world.vm(1).revision);
    assert!(world.state.op(change.op.unwrap()).is_ok());
    let most = row("most memory", "128 MiB", "256 MiB");
    assert_eq!(world.words(vm), [row("memory", "128 MiB", "256 MiB"), most]);
    // What changes nothing is no change.
    world.set(vm, VmChange { memory: Some(Bytes::mib(256)), ..VmChange::default() });
    assert_eq!(world.changes(vm).len(), 1);
    world.set(vm, VmChange { cpu_cap_percent: Some(50), ..VmChange::default() });
    assert_eq!(world.words(vm), [row("processor cap", "no limit", "50 %")]);
    let request = OpRequest::VmSet {
        vm,
        change: Box::new(VmChange { cpus: Some(2), ..VmChange::default() }),
        if_revision: None,
    };
    let op = world.begin(request).unwrap();
    world.finish(op, super::failure()).unwrap();
    assert_eq!(world.changes(vm).len(), 2, "a change that failed changed nothing");
}

#[test]
fn what_was_before_sets_it_back_as_it_was() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    let first = world.vm(1);
    world.set(
        vm,
        VmChange {
            name: Some("b".parse().unwrap()),
            cpus: Some(4),
            cpu_cap_percent: Some(150),
            memory: Some(Bytes::mib(512)),
            balloon: Some(Bytes::mib(256)),
            tags: Some(vec!["x".parse().unwrap()]),
            description: Some("two\nlines".to_owned()),
            ha: crate::HaChange { enabled: Some(false), ..crate::HaChange::default() },
            migration: crate::MigrateChange {
                bandwidth: Some(Bytes::mib(20)),
                ..crate::MigrateChange::default()
            },
            ..VmChange::default()
        },
    );
    assert_ne!(world.vm(1).spec, first.spec);
    let back = world.changes(vm)[0].back().unwrap();
    world.set(vm, back.clone());
    assert_eq!((world.vm(1).spec, world.vm(1).name), (first.spec, first.name));
    // And there again: the way back stands in the history as every change.
    let there = world.changes(vm)[1].back().unwrap();
    assert_eq!(there.cpus, Some(4));
    assert_eq!(there.cpu_cap_percent, Some(150));
    assert_eq!(back.cpu_cap_percent, Some(0));
}

#[test]
fn what_may_be_secret_is_told_of_and_never_kept() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    for word in ["hunter2", "hunter3"] {
        let change = VmChange {
            keys: [("token".to_owned(), word.to_owned())].into(),
            cloud_init: Some(CloudInit {
                password_hash: Some(format!("$6${word}")),
                user_data: Some(format!("#cloud-config {word}")),
                ..CloudInit::default()
            }),
            ..VmChange::default()
        };
        world.set(vm, change);
    }
    let kept = serde_json::to_string(&world.state.history).unwrap();
    assert!(!kept.contains("hunter"), "{kept}");
    let change = world.changes(vm).pop().unwrap();
    let fields: Vec<_> = change.fields().into_iter().map(|it| (it.field, it.withheld)).collect();
    let expected = ["key token", "first-boot configuration"].map(|field| (field.to_owned(), true));
    assert_eq!(fields, expected);
    assert_eq!(change.back(), None);
}

#[test]
fn adapters_and_disks_are_told_of() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    world.run(OpRequest::NicAdd { vm, nic: nic(7) });
    let name = world.vm(1).spec.nics[0].name.clone();
    let address = world.vm(1).spec.nics[0].address.unwrap().to_string();
    let (network, at) = (format!("adapter {name}: network"), format!("adapter {name}: address"));
    let cable = format!("adapter {name}: cable");
    let added = [row(&network, "", "nat"), row(&at, "", &address), row(&cable, "", "in")];
    assert_eq!(world.words(vm), added);
    let change = crate::NicChange { link_up: Some(false), ..crate::NicChange::default() };
    world.run(OpRequest::NicSet { vm, nic: nic(7).id, change });
    assert_eq!(world.words(vm), [row(&cable, "in", "out")]);
    world.run(OpRequest::NicRemove { vm, nic: nic(7).id });
    let gone = [row(&network, "nat", ""), row(&at, &address, ""), row(&cable, "out", "")];
    assert_eq!(world.words(vm), gone);
    assert_eq!(world.changes(vm).last().unwrap().back(), None);
}

#[test]
fn the_oldest_changes_make_room_and_nothing_is_kept_of_what_is_gone() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    for weight in 1..=60 {
        world.set(vm, VmChange { cpu_weight: Some(weight), ..VmChange::default() });
    }
    let changes = world.changes(vm);
    assert_eq!(changes.len(), CHANGES_MAX);
    assert_eq!(changes[0].after.cpu_weight, Some(11));
    assert_eq!(changes[49].after.cpu_weight, Some(60));
    // Long texts make room, too, but what was just done is kept.
    for letter in ["x", "y", "z"].into_iter().cycle().take(40) {
        let text = letter.repeat(1_000);
        world.set(vm, VmChange { description: Some(text), ..VmChange::default() });
    }
    let kept = serde_json::to_string(&world.state.history).unwrap().len();
    assert!(kept < 64 * 1024, "{kept}");
    assert!(world.changes(vm).len() > 10);
    world.run(OpRequest::VmDelete { vm });
    assert!(!world.changes(vm).is_empty(), "it can come back");
    let name = Some("c".parse().unwrap());
    world.propose(Command::VmUndelete { vm, name }).unwrap();
    assert_eq!(world.words(vm), [row("name", "a", "c")]);
    world.run(OpRequest::VmDelete { vm });
    world.run(OpRequest::VmPurge { vm });
    assert!(world.state.history.is_empty());
    let request = create_request(2, "d", VmSpec::new(1, Bytes::mib(128)));
    world.run(request);
    assert_eq!(world.changes(vm_id(2)), []);
    assert_eq!(world.vm(2).owner, NODE);
}

/// A setting that the API gains must stand in the history: each has its row.
#[test]
fn every_setting_has_words() {
    let mut world = World::new();
    let vm = world.create(1, "a");
    let all = crate::history::said(world.state.vm(vm).unwrap());
    let json = serde_json::to_value(&all).unwrap();
    let leaves: usize = json
        .as_object()
        .unwrap()
        .values()
        .map(|value| value.as_object().map_or(1, serde_json::Map::len))
        .sum();
    let rows = crate::history::rows(&all);
    assert_eq!(rows.iter().filter(|(_, value)| value.is_some()).count(), leaves);
    assert_eq!(rows.len(), leaves);
}

#[test]
fn a_certificate_stands_for_one_token_and_never_for_a_node() {
    let mut world = World::new();
    let mut next = 100;
    let mut make = |world: &mut World, name: &str, key: &str| {
        next += 1;
        world.propose(Command::TokenCreate {
            token: crate::TokenId::new(uuid::Uuid::from_u128(next)),
            name: name.parse().unwrap(),
            role: crate::Role::Administrator,
            digest: format!("{next:064x}"),
            expires: None,
            certificate: Some(key.to_owned()),
        })
    };
    let key = "a".repeat(64);
    assert!(make(&mut world, "short", "abc").is_err());
    make(&mut world, "anna", &key).unwrap();
    assert!(make(&mut world, "bert", &key).is_err());
    let node = "b".repeat(64);
    let mut record = crate::NodeRecord::clone(world.state.node(NODE).unwrap());
    record.key = Some(node.clone());
    world.state.nodes.insert(NODE, std::sync::Arc::new(record));
    let refused = make(&mut world, "bert", &node).unwrap_err().to_string();
    assert!(refused.contains("certificate of node h1"), "{refused}");
}
