//! `cargo xtask deb`: a Debian package of the binary and what a host needs around it.
//!
//! ```text
//! /usr/bin/muster                              stripped
//! /lib/systemd/system/muster.service           the daemon
//! /lib/systemd/system/muster-machines.service  the control group of all machines
//! /lib/systemd/system/muster-guard.service     stops machines whose lease has run out
//! /lib/systemd/system/muster-guests.service    shuts guests down with the host, and starts them again
//! /etc/muster/config.toml                      a conffile: the administrator's changes stay
//! /usr/share/man/man1, completions, doc        written by the binary itself
//! ```
//!
//! The tree is staged and packed by `dpkg-deb`; no debhelper, no root. What the maintainer scripts
//! promise stands in `packaging/debian`: an upgrade restarts the daemon under running machines
//! and leaves the guard's process alone, removal refuses while machines run and keeps their disks, and a purge deletes them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use crate::run::cmd;
use crate::run::quiet;
use crate::run::root;
use crate::run::show;
use crate::run::target;
use crate::web;

/// Options of `cargo xtask deb`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pack the development build, which is quicker to make; for tests.
    #[arg(long)]
    dev: bool,
    /// The package's revision: a higher one is an upgrade of the same version.
    #[arg(long, default_value_t = 1)]
    revision: u32,
}

/// Files that are copied as they are: from the repository, to the host, with their mode.
const FILES: &[(&str, &str, u32)] = &[
    ("packaging/config/config.toml", "etc/muster/config.toml", 0o644),
    ("packaging/systemd/muster.service", "lib/systemd/system/muster.service", 0o644),
    (
        "packaging/systemd/muster-machines.service",
        "lib/systemd/system/muster-machines.service",
        0o644,
    ),
    ("packaging/systemd/muster-guard.service", "lib/systemd/system/muster-guard.service", 0o644),
    ("packaging/systemd/muster-guests.service", "lib/systemd/system/muster-guests.service", 0o644),
    (
        "packaging/systemd/muster-witness.service",
        "lib/systemd/system/muster-witness.service",
        0o644,
    ),
    ("packaging/debian/copyright", "usr/share/doc/muster/copyright", 0o644),
    ("CHANGELOG.md", "usr/share/doc/muster/changelog", 0o644),
    ("packaging/debian/postinst", "DEBIAN/postinst", 0o755),
    ("packaging/debian/prerm", "DEBIAN/prerm", 0o755),
    ("packaging/debian/postrm", "DEBIAN/postrm", 0o755),
];

/// Completion scripts: shell, and the file it is looked for in.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/muster"),
    ("fish", "usr/share/fish/vendor_completions.d/muster.fish"),
    ("zsh", "usr/share/zsh/vendor-completions/_muster"),
];

/// What the daemon calls. The C library's version is added from the machine that links it.
const DEPENDS: &str = "libgcc-s1, qemu-system-x86 (>= 1:10), qemu-utils (>= 1:10), ovmf, nftables, \
                       iproute2, passwd, init-system-helpers (>= 1.54)";

/// Builds the package and says where it is.
pub(crate) fn run(args: &Args) -> Result<()> {
    let package = make(args.dev, args.revision)?;
    println!("{}", package.display());
    println!("install it with: apt install {}", package.display());
    Ok(())
}

/// Builds the package; where it is.
pub(crate) fn make(dev: bool, revision: u32) -> Result<PathBuf> {
    let binary = build(dev)?;
    let version = format!("{}-{revision}", version()?);
    let tree = target().join("deb/tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot clear {}", tree.display()))?;
    }
    stage(&binary, &tree)?;
    fs::write(tree.join("DEBIAN/conffiles"), "/etc/muster/config.toml\n")?;
    fs::write(tree.join("DEBIAN/control"), control(&version, &libc()?, installed_kib(&tree)?))?;
    let package = target().join(format!("deb/muster_{version}_amd64.deb"));
    let (from, to) = (tree.to_string_lossy(), package.to_string_lossy());
    quiet(cmd("dpkg-deb", ["--build", "--root-owner-group", "-Zzstd", &from, &to]))?;
    Ok(package)
}

fn build(dev: bool) -> Result<PathBuf> {
    if !dev {
        web::build().context("the package has the web console in it")?;
    }
    let mut command = cmd("cargo", ["build", "--locked", "--quiet", "--bin=muster"]);
    // For tests with the features that the whole workspace asks for: those are built already.
    command.args(if dev { ["--workspace"].as_slice() } else { &["--package=cli", "--release"] });
    command.current_dir(root());
    show(command)?;
    Ok(target().join(if dev { "debug" } else { "release" }).join("muster"))
}

fn stage(binary: &Path, tree: &Path) -> Result<()> {
    for (from, to, mode) in FILES {
        let bytes = fs::read(root().join(from)).with_context(|| format!("cannot read {from}"))?;
        put(tree, to, &bytes, *mode)?;
    }
    put(tree, "usr/bin/muster", &fs::read(binary)?, 0o755)?;
    let program = tree.join("usr/bin/muster").to_string_lossy().into_owned();
    quiet(cmd("strip", [program.as_str()]))?;
    for (shell, to) in COMPLETIONS {
        let script = quiet(cmd(&program, ["util", "completions", shell]))?;
        put(tree, to, script.as_bytes(), 0o644)?;
    }
    let manual = tree.join("usr/share/man/man1");
    quiet(cmd(&program, ["util", "man", &manual.to_string_lossy()]))?;
    // Without a time stamp in them, so that the same input gives the same package.
    for dir in [&manual, &tree.join("usr/share/doc/muster")] {
        let find = ["-type", "f", "!", "-name", "copyright", "-exec", "gzip", "-9n", "{}", "+"];
        let mut command = cmd("find", [&*dir.to_string_lossy()]);
        command.args(find);
        quiet(command)?;
    }
    Ok(())
}

fn put(tree: &Path, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let path = tree.join(to);
    let dir = path.parent().context("a file has a directory")?;
    fs::create_dir_all(dir)?;
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn control(version: &str, libc: &str, kib: u64) -> String {
    format!(
        "Package: muster\nVersion: {version}\nArchitecture: amd64\nSection: admin\n\
         Priority: optional\nMaintainer: Muster maintainers <muster@localhost>\n\
         Installed-Size: {kib}\nDepends: libc6 (>= {libc}), {DEPENDS}\n\
         Suggests: fence-agents, xfsprogs\n\
         Description: virtual machines that keep running\n \
         Muster runs virtual machines on Linux hosts with QEMU: their disks, networks, consoles\n \
         and guest services, by one daemon, one API and one command.\n"
    )
}

/// The workspace's version, which is also this program's.
fn version() -> Result<&'static str> {
    option_env!("CARGO_PKG_VERSION").context("cargo did not say the version")
}

/// The C library of this machine, upstream's version: an older one may lack symbols.
fn libc() -> Result<String> {
    let version = quiet(cmd("dpkg-query", ["-W", "-f", "${Version}", "libc6"]))?;
    Ok(version.split(['-', '+']).next().unwrap_or_default().to_owned())
}

fn installed_kib(tree: &Path) -> Result<u64> {
    let said = quiet(cmd("du", ["-sk", &*tree.to_string_lossy()]))?;
    let kib = said.split_whitespace().next().unwrap_or_default();
    kib.parse().with_context(|| format!("du said {said}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::FILES;
    use super::control;
    use crate::run::cmd;
    use crate::run::quiet;
    use crate::run::root;

    #[test]
    fn the_control_file_has_what_dpkg_asks_for() {
        let text = control("0.1.0-1", "2.36", 12);
        for field in ["Package: muster\n", "Version: 0.1.0-1\n", "libc6 (>= 2.36), libgcc-s1"] {
            assert!(text.contains(field), "{text}");
        }
        assert!(text.contains("qemu-system-x86 (>= 1:10)") && text.ends_with('\n'));
        assert!(text.lines().all(|line| line.contains(": ") || line.starts_with(' ')), "{text}");
    }

    fn text(path: &str) -> String {
        std::fs::read_to_string(root().join("packaging").join(path)).expect("a file of the package")
    }

    /// The values of a unit's setting, in all its lines.
    fn values(unit: &str, key: &str) -> Vec<String> {
        let text = text(&format!("systemd/{unit}"));
        let lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    }

    /// It is there before the first machine and after the last one, and neither the daemon's end nor
    /// a person ends it by the way.
    #[test]
    fn the_guard_outlives_daemon_and_machines() {
        let guard = |key: &str| values("muster-guard.service", key);
        for later in ["muster-machines.service", "muster.service"] {
            assert!(guard("Before").contains(&later.to_owned()), "{later}");
        }
        for tie in ["Requires", "BindsTo", "PartOf", "After", "Requisite", "PropagatesStopTo"] {
            assert_eq!(
                guard(tie),
                Vec::<String>::new(),
                "{tie} would end or delay it with another"
            );
        }
        assert_eq!(guard("RefuseManualStop"), ["yes"]);
        assert_eq!(guard("RuntimeDirectoryPreserve"), ["yes"], "its state outlives it");
        let daemon = |key: &str| values("muster.service", key);
        let name = "muster-guard.service".to_owned();
        assert!(daemon("Wants").contains(&name) && daemon("After").contains(&name));
        assert!(!daemon("Requires").contains(&name), "a host alone needs none");
        // Both look at the same groups.
        let group = |unit: &str| {
            values(unit, "ExecStart").into_iter().skip_while(|it| it != "--control-group").nth(1)
        };
        assert_eq!(group("muster-guard.service"), group("muster.service"));
        assert!(group("muster.service").is_some());
    }

    /// Before the daemon ends, and not with it: a restart of the daemon stops no machine.
    #[test]
    fn guests_are_asked_while_the_daemon_answers() {
        let guests = |key: &str| values("muster-guests.service", key);
        assert_eq!(guests("After"), ["muster.service"]);
        for tie in ["Requires", "BindsTo", "PartOf", "Requisite"] {
            assert_eq!(guests(tie), Vec::<String>::new(), "{tie} would end it with the daemon");
        }
        assert_eq!(guests("RemainAfterExit"), ["yes"], "or there is nothing to stop");
        assert!(guests("ExecStop").ends_with(&["stop-machines".to_owned()]));
        assert!(guests("ExecStart").contains(&"start-machines".to_owned()));
        let postinst = text("debian/postinst");
        assert!(!postinst.contains("restart muster-guests"), "{postinst}");
        let prerm = text("debian/prerm");
        let at = |what: &str| prerm.find(what).expect(what);
        assert!(at("exit 1") < at("stop muster-guests"), "a refused removal stops nothing");
        assert!(at("stop muster-guests") < at("stop muster.service"));
    }

    #[test]
    fn an_upgrade_reloads_the_guard_and_a_removal_ends_it_after_the_machines() {
        let postinst = text("debian/postinst");
        assert!(postinst.contains("systemctl reload muster-guard.service"), "{postinst}");
        assert!(!postinst.contains("restart muster-guard"), "{postinst}");
        let prerm = text("debian/prerm");
        let at = |what: &str| prerm.find(what).expect(what);
        assert!(at("restart muster-machines") < at("--signal=TERM muster-guard"));
        assert!(at("--signal=TERM muster-guard") < at("daemon --clear"));
    }

    /// It serves other hosts' clusters: a package that is installed for its daemon starts none.
    #[test]
    fn a_witness_is_started_by_hand_and_tells_its_token_to_root_only() {
        let witness = |key: &str| values("muster-witness.service", key);
        assert!(witness("ExecStart").contains(&"--token-file".to_owned()), "not in the journal");
        assert_eq!(
            (witness("DynamicUser"), witness("UMask")),
            (vec!["yes".into()], vec!["0077".into()])
        );
        let postinst = text("debian/postinst");
        assert!(postinst.contains("try-restart muster-witness.service"), "{postinst}");
        assert!(!postinst.contains("enable muster-witness"), "{postinst}");
        assert!(text("debian/prerm").contains("stop muster-witness.service"));
        assert!(text("debian/postrm").contains("/var/lib/private/muster-witness"));
    }

    #[test]
    fn all_files_exist_and_scripts_parse() {
        for (from, to, mode) in FILES {
            let path = root().join(from);
            assert!(Path::new(&path).exists(), "{from}");
            if to.starts_with("DEBIAN/") {
                assert_eq!(*mode, 0o755);
                quiet(cmd("sh", ["-n", &path.to_string_lossy()])).expect("a valid script");
            }
        }
    }
}
