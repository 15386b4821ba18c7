//! Golden files, names that try to break out, and a reader of our own for the disc.

use std::collections::BTreeMap;

use model::MacAddr;
use model::NicId;
use model::StaticAddress;
use serde_json::Value;
use uuid::Uuid;

use super::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqf0FDd1Q8nU5F0JrTzjmGR1HnDkDOkqHfY0pXZ2h3c ops@desk";

fn nic(n: u8, name: &str) -> NicSpec {
    NicSpec {
        id: NicId::new(Uuid::from_u128(n.into())),
        name: name.parse().unwrap(),
        mac: MacAddr::from_bytes([0x52, 0x54, 0, 0xAB, 0, n]),
        network: "default".parse().unwrap(),
        address: None,
        link_up: true,
    }
}

fn build(config: &CloudInit, nics: &[NicSpec]) -> Result<Seed, CloudInitError> {
    let name = "web_01".parse().unwrap();
    let vm = VmId::new(Uuid::from_u128(42));
    Seed::build(SeedInput { vm, name: &name, config, nics })
}

fn full() -> CloudInit {
    CloudInit {
        hostname: None,
        user: Some("ops".parse().unwrap()),
        ssh_keys: vec![KEY.to_owned()],
        password_hash: Some("$6$salt$abcdefgh".to_owned()),
        addresses: BTreeMap::from([(
            "LAN".parse().unwrap(),
            StaticAddress {
                address: "192.168.1.20/24".to_owned(),
                gateway: Some([192, 168, 1, 1].into()),
                dns: vec![[9, 9, 9, 9].into()],
            },
        )]),
        user_data: None,
    }
}

fn json_of(seed: &Seed, name: &str) -> Value {
    let (_, bytes) = seed.files().into_iter().find(|(file, _)| *file == name).unwrap();
    let text = std::str::from_utf8(bytes).unwrap();
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap_or(text)).unwrap()
}

#[test]
fn the_files_say_what_was_configured() {
    let seed = build(&full(), &[nic(1, "net0"), nic(2, "lan")]).unwrap();
    let user = json_of(&seed, "user-data");
    assert_eq!(user["hostname"], "web-01");
    assert_eq!(user["users"][0]["name"], "ops");
    assert_eq!(user["users"][0]["ssh_authorized_keys"][0], KEY);
    assert_eq!(user["users"][0]["passwd"], "$6$salt$abcdefgh");
    assert_eq!(user["users"][0]["lock_passwd"], false);
    let network = json_of(&seed, "network-config");
    assert_eq!(network["version"], 2);
    assert_eq!(network["ethernets"]["eth0"]["dhcp4"], true);
    assert_eq!(network["ethernets"]["eth0"]["match"]["macaddress"], "52:54:00:ab:00:01");
    let lan = &network["ethernets"]["eth1"];
    assert_eq!(lan["addresses"][0], "192.168.1.20/24");
    assert_eq!(lan["routes"][0]["via"], "192.168.1.1");
    assert_eq!(lan["nameservers"]["addresses"][0], "9.9.9.9");
    let meta = json_of(&seed, "meta-data");
    assert_eq!(meta["instance-id"], seed.instance_id());
    assert_eq!(meta["local-hostname"], "web-01");
    assert!(seed.files()[2].1.starts_with(b"#cloud-config\n"));
}

#[test]
fn without_a_user_the_keys_are_the_default_users() {
    let config = CloudInit { user: None, addresses: BTreeMap::new(), ..full() };
    let user = json_of(&build(&config, &[]).unwrap(), "user-data");
    assert!(user.get("users").is_none());
    assert_eq!(user["ssh_authorized_keys"][0], KEY);
    assert_eq!(user["password"], "$6$salt$abcdefgh");
}

#[test]
fn raw_user_data_is_taken_as_it_is() {
    let raw = "#!/bin/sh\necho hi\n".to_owned();
    let config = CloudInit { user_data: Some(raw.clone()), ..CloudInit::default() };
    assert_eq!(build(&config, &[]).unwrap().files()[2].1, raw.as_bytes());
    let config = CloudInit { user_data: Some("x".repeat(2 << 20)), ..CloudInit::default() };
    assert_eq!(build(&config, &[]), Err(CloudInitError::TooLarge(2 << 20)));
}

#[test]
fn the_instance_changes_with_what_the_user_configured_and_with_nothing_else() {
    let base = build(&CloudInit::default(), &[nic(1, "net0")]).unwrap();
    let more_nics = build(&CloudInit::default(), &[nic(1, "net0"), nic(2, "net1")]).unwrap();
    assert_eq!(base.instance_id(), more_nics.instance_id());
    let config = CloudInit { ssh_keys: vec![KEY.into()], ..CloudInit::default() };
    assert_ne!(base.instance_id(), build(&config, &[]).unwrap().instance_id());
}

#[test]
fn bad_keys_hashes_and_adapters_are_refused() {
    let key = |key: &str| {
        let config = CloudInit { ssh_keys: vec![KEY.into(), key.into()], ..CloudInit::default() };
        build(&config, &[])
    };
    for bad in [
        "",
        "hello",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIJqf0FDd1Q8nU5F0JrTzjmGR1HnDkDOkqHfY0pXZ2h3c",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqf0FDd1Q8n",
    ] {
        let refused = key(bad);
        assert!(matches!(refused, Err(CloudInitError::BadKey { number: 2, .. })), "{bad}");
    }
    assert!(key(&format!("{KEY}\nssh-rsa x")).is_err());
    let config = CloudInit { password_hash: Some("secret".into()), ..CloudInit::default() };
    assert_eq!(build(&config, &[]), Err(CloudInitError::BadHash));
    let lan = "LAN".parse().unwrap();
    assert_eq!(build(&full(), &[]), Err(CloudInitError::UnknownNic(lan)));
}

#[test]
fn the_disc_is_the_same_byte_for_byte() {
    let seed = build(&full(), &[nic(1, "net0"), nic(2, "lan")]).unwrap();
    let disc = seed.iso();
    assert_eq!(disc, seed.iso());
    assert_eq!(disc.len() % 2048, 0);
    // Golden: a change of this hash is a change of every guest's disc. Look before you update it.
    assert_eq!(hex::encode(Sha256::digest(&disc)), GOLDEN);
}

const GOLDEN: &str = "0fb972a185f566c3379e46b695b8ffe50f9e7ca61898c0aa5c7c61376f9d08eb";

fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Reads the root directory of the descriptor in `sector`, names by `name_of(record)`.
fn read(disc: &[u8], sector: usize, name_of: fn(&[u8]) -> String) -> BTreeMap<String, Vec<u8>> {
    let descriptor = &disc[sector * 2048..][..2048];
    assert_eq!(&descriptor[1..6], b"CD001");
    assert_eq!(le32(descriptor, 80) * 2048, disc.len());
    let root = &descriptor[156..190];
    let mut directory = &disc[le32(root, 2) * 2048..][..le32(root, 10)];
    let mut files = BTreeMap::new();
    while directory[0] != 0 {
        let (record, rest) = directory.split_at(directory[0].into());
        directory = rest;
        // Both byte orders say the same.
        assert_eq!(
            record[2..6].iter().rev().collect::<Vec<_>>(),
            record[6..10].iter().collect::<Vec<_>>()
        );
        if record[25] & 2 == 0 {
            let data = disc[le32(record, 2) * 2048..][..le32(record, 10)].to_vec();
            files.insert(name_of(record), data);
        }
    }
    files
}

/// The NM entry of a record.
fn rock_ridge_name(record: &[u8]) -> String {
    let name_len = usize::from(record[32]);
    let mut area = &record[(33 + name_len).next_multiple_of(2)..];
    while area.len() > 4 {
        let (entry, rest) = area.split_at(area[2].into());
        if entry.starts_with(b"NM") {
            return String::from_utf8(entry[5..].to_vec()).unwrap();
        }
        area = rest;
    }
    panic!("no NM entry");
}

fn joliet_name(record: &[u8]) -> String {
    let name = &record[33..33 + usize::from(record[32])];
    let units: Vec<u16> =
        name.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]])).collect();
    String::from_utf16(&units).unwrap()
}

#[test]
fn both_trees_of_the_disc_show_the_same_files() {
    let config = CloudInit { user_data: Some("#!/bin/sh\n".repeat(1000)), ..CloudInit::default() };
    let seed = build(&config, &[nic(1, "net0")]).unwrap();
    let disc = seed.iso();
    let wanted: BTreeMap<String, Vec<u8>> =
        seed.files().into_iter().map(|(name, data)| (name.to_owned(), data.to_vec())).collect();
    assert_eq!(read(&disc, 16, rock_ridge_name), wanted);
    assert_eq!(read(&disc, 17, joliet_name), wanted);
    assert_eq!(&disc[16 * 2048 + 40..][..8], b"CIDATA  ");
    assert_eq!(&disc[18 * 2048..][..6], b"\xffCD001");
}

#[test]
fn the_disc_is_written_whole_and_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.iso");
    let seed = build(&full(), &[nic(1, "lan")]).unwrap();
    fs::write(dir.path().join("seed.iso.new"), "left by a crash").unwrap();
    seed.write_iso(&path).unwrap();
    seed.write_iso(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), seed.iso());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(seed.write_iso(&dir.path().join("missing/seed.iso")).is_err());
}
