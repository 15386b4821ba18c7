//! The jail against a hostile program in QEMU's place: everything it tries must fail.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use vm::engine::qemu::jail::JailPlan;
use vm::engine::qemu::jail::Launcher;
use vm::engine::qemu::jail::spawn;

/// The issue asks for forty.
const ATTEMPTS_MIN: usize = 40;

/// A control group of this test's own, removed at its end.
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")
            .expect("a cgroup v2 mount that we may write to");
        let line = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .expect("a cgroup v2 mount that we may write to");
        let top =
            Path::new(line.split(' ').nth(4).expect("a cgroup v2 mount that we may write to"));
        let group = top.join(format!("muster-jail-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&group).expect("a cgroup v2 mount that we may write to");
        Self(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

/// A process of the host, ended with the test.
struct Bystander(std::process::Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn table(text: &str) -> BTreeMap<String, String> {
    let rows = text.lines().filter_map(|line| line.split_once('\t'));
    rows.map(|(what, result)| (what.to_owned(), result.to_owned())).collect()
}

#[test]
fn a_hostile_program_fails_at_everything() {
    use std::os::unix::fs::PermissionsExt;

    let program = env!("CARGO_BIN_EXE_vm-jail");
    let dir = tempfile::tempdir().unwrap();
    // As open as they could be by mistake: the jail must not depend on their permissions.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let disk = dir.path().join("disk.img");
    std::fs::write(&disk, "secret").unwrap();
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o666)).unwrap();
    let socket = dir.path().join("api.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let name = format!("muster-jail-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    let mut bystander = Bystander(Command::new("sleep").arg("600").spawn().unwrap());
    let pid = bystander.0.id();
    let mut args = vec![
        "control".to_owned(),
        disk.display().to_string(),
        socket.display().to_string(),
        name,
        pid.to_string(),
    ];

    // Outside of the jail, as root: the attempts would succeed.
    let control = Command::new(program).args(&args).stderr(Stdio::inherit()).output().unwrap();
    let control = table(&String::from_utf8(control.stdout).unwrap());
    let done = control.values().filter(|result| *result == "DONE").count();
    assert!(done >= 15, "the attempts prove nothing: {control:#?}");

    "hostile".clone_into(&mut args[0]);
    let group = Group::make("hostile");
    let (mut read, write) = std::io::pipe().unwrap();
    let plan = JailPlan {
        program: program.into(),
        args,
        uid: 2_000_090_000,
        hostname: "cell".to_owned(),
        cgroup: group.0.clone(),
        show: Vec::new(),
        kvm: false,
        keep_fds: Vec::new(),
        output_fd: 20,
        threads_max: 100,
    };
    let launcher = Launcher { program: program.into(), args: Vec::new() };
    let jailed = spawn(&launcher, &plan, vec![(20, write.into())]).unwrap();
    assert!(jailed > 1);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    let results = table(&text);
    println!("{text}");
    assert!(results.contains_key("the end"), "it did not get to its end: {text}");
    let done: Vec<_> = results.iter().filter(|(_, result)| *result == "DONE").collect();
    assert!(done.is_empty(), "it could: {done:#?}");
    assert!(results.len() > ATTEMPTS_MIN, "only {} attempts", results.len());
    assert!(bystander.0.try_wait().unwrap().is_none(), "the bystander was killed");
    assert_eq!(std::fs::read(&disk).unwrap(), b"secret");
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let program = env!("CARGO_BIN_EXE_vm-jail");
    let group = Group::make("absent");
    let (_read, write) = std::io::pipe().unwrap();
    let plan = JailPlan {
        program: "/nonexistent/qemu".into(),
        args: Vec::new(),
        uid: 2_000_090_001,
        hostname: "cell".to_owned(),
        cgroup: group.0.clone(),
        show: Vec::new(),
        kvm: false,
        keep_fds: Vec::new(),
        output_fd: 20,
        threads_max: 10,
    };
    let launcher = Launcher { program: program.into(), args: Vec::new() };
    let error = spawn(&launcher, &plan, vec![(20, write.into())]).unwrap_err();
    assert_eq!(error.step, "exec", "{error}");
    let nobody = Launcher { program: "/nonexistent/launcher".into(), args: Vec::new() };
    assert!(spawn(&nobody, &plan, Vec::new()).is_err());
}

/// A plan for `sleep`, which does nothing for longer than a test takes.
fn sleeper(group: &Path) -> JailPlan {
    JailPlan {
        program: "/usr/bin/sleep".into(),
        args: vec!["600".to_owned()],
        uid: 2_000_090_002,
        hostname: "cell".to_owned(),
        cgroup: group.to_owned(),
        show: vec!["/etc/ld.so.cache".into()],
        kvm: false,
        keep_fds: Vec::new(),
        output_fd: 20,
        threads_max: 10,
    }
}

#[test]
fn the_program_is_in_its_group_from_the_first_and_sees_no_other() {
    let program = env!("CARGO_BIN_EXE_vm-jail");
    let launcher = Launcher { program: program.into(), args: Vec::new() };
    let group = Group::make("member");
    let (_read, write) = std::io::pipe().unwrap();
    let pid = spawn(&launcher, &sleeper(&group.0), vec![(20, write.into())]).unwrap();
    let inside = std::fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
    assert_eq!(inside.trim(), pid.to_string(), "it, and not its launcher");
    let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
    assert_ne!(space(&pid.to_string()), space("self"));
    // Seen from there, its own group is the top.
    let mounts = Command::new("nsenter")
        .args([format!("--target={pid}"), "--cgroup".to_owned()])
        .args(["cat", &format!("/proc/{pid}/cgroup")])
        .output()
        .unwrap();
    let seen = String::from_utf8(mounts.stdout).unwrap();
    assert!(seen.lines().any(|line| line == "0::/"), "{seen}");
}

#[test]
fn a_group_that_is_gone_takes_nobody_in() {
    let program = env!("CARGO_BIN_EXE_vm-jail");
    let launcher = Launcher { program: program.into(), args: Vec::new() };
    let gone = Group::make("gone").0.clone();
    assert!(!gone.exists());
    let (_read, write) = std::io::pipe().unwrap();
    let error = spawn(&launcher, &sleeper(&gone), vec![(20, write.into())]).unwrap_err();
    assert!(error.step.contains("control group"), "{error}");
}
