//! Looking a file system over while nobody has it mounted: reads only.

use std::path::Path;

use model::FsKind;
use model::VolumeKind;
use model::VolumeRecord;

use super::probe;
use super::programs::WORK_SECONDS;
use super::programs::run;
use super::reserve;

/// Most of what a checker says that is passed on.
const WORDS_MAX: usize = 4_000;

/// Checks a volume that is in maintenance and that nobody holds. What the checker said, and whether all
/// is well. Blocks for as long as it takes, with a limit.
///
/// # Errors
/// It could not be checked.
pub(crate) fn check(
    volume: &VolumeRecord,
    device: &Path,
    epoch: u64,
) -> Result<(bool, String), String> {
    let VolumeKind::Lun { fs, uuid, fences, .. } = &volume.kind else {
        return Err("it lies on no LUN".to_owned());
    };
    if *fences {
        reserve::take(device, epoch, false)?;
    }
    let checked = look(*fs, uuid, device);
    if *fences {
        reserve::give(device)?;
    }
    checked
}

fn look(fs: FsKind, uuid: &str, device: &Path) -> Result<(bool, String), String> {
    if probe::is_in_use(device) {
        return Err("its LUN is in use on this host".to_owned());
    }
    let found = probe::contents(device);
    if found != (model::LunContents::Volume { fs, uuid: uuid.to_owned() }) {
        return Err(format!("its LUN holds {}", found.words()));
    }
    let (program, args): (_, &[&str]) = match fs {
        FsKind::Ext4 => ("e2fsck", &["-f", "-n"]),
        FsKind::Xfs => ("xfs_repair", &["-n"]),
    };
    let device = device.display().to_string();
    let ended = run(WORK_SECONDS, program, args.iter().copied().chain([device.as_str()]))?;
    let said: String = match ended.out.trim() {
        "" => ended.words,
        said => said.chars().take(WORDS_MAX).collect(),
    };
    match ended.code {
        0 => Ok((true, said)),
        124 | 137 => Err(format!("{program} did not end within {WORK_SECONDS} s")),
        127 => Err(format!("there is no program {program}; install e2fsprogs and xfsprogs")),
        _ => Ok((false, said)),
    }
}
