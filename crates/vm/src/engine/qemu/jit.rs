//! The emulator's cache of translated code, and whether one more processor fits into it.
//!
//! QEMU divides the cache into regions. A processor that has filled its region takes the next free
//! one; when none is left, all are emptied. A *new* processor that finds no free region ends QEMU
//! with a failed assertion (seen with 10.0: `tcg_region_initial_alloc__locked`), and the guest with
//! it. So before a processor is added, QEMU is asked how full the cache is.

/// Size of the cache, in MiB. QEMU's own choice grows with the host and would be the largest part of
/// a small guest.
const CACHE_MIB: u32 = 256;

/// The same where processors may be added while the machine runs: a Debian that has booted has used
/// most of the smaller one.
const CACHE_HOTPLUG_MIB: u32 = 512;

/// The regions are made no smaller than this, in bytes.
const REGION_MIN: u64 = 2 << 20;

/// Most regions for each processor.
const REGIONS_PER_CPU: u64 = 8;

/// Regions that must be left beside those needed: the guest goes on between question and act.
const MARGIN: u64 = 1;

/// Size of the cache of a machine with so many processors at its start and at most.
pub(super) fn cache_mib(cpus: u32, cpus_max: u32) -> u32 {
    if cpus_max > cpus { CACHE_HOTPLUG_MIB } else { CACHE_MIB }
}

/// How many regions QEMU makes of a cache of `bytes`.
fn regions(bytes: u64, cpus_max: u32) -> u64 {
    let cpus = u64::from(cpus_max.max(1));
    if cpus == 1 {
        return 1;
    }
    let most = bytes / REGION_MIN;
    if most <= cpus { cpus } else { most.min(cpus * REGIONS_PER_CPU) }
}

/// Whether `more` processors fit beside `now`, by what QEMU tells of its cache (`x-query-jit`).
/// `None` if it does not tell what is needed.
pub(super) fn has_room(told: &str, cpus_max: u32, now: u32, more: u32) -> Option<bool> {
    let line = told.lines().find_map(|line| line.trim().strip_prefix("gen code size"))?;
    let (used, all) = line.trim().split_once('/')?;
    let (used, all): (u64, u64) = (used.trim().parse().ok()?, all.trim().parse().ok()?);
    let count = regions(all, cpus_max);
    // Each processor holds one that is not yet full; the rest of what is used is in full ones.
    let full = used.div_ceil((all / count).max(1));
    Some(full + u64::from(now) + u64::from(more) + MARGIN <= count)
}

#[cfg(test)]
mod tests {
    use super::has_room;
    use super::regions;

    fn told(used_mib: u64, all_mib: u64) -> String {
        format!(
            "Accelerator settings:\none-insn-per-tb: off\n\nTranslation buffer state:\n\
             gen code size       {}/{}\nTB count            1234\n",
            used_mib << 20,
            all_mib << 20
        )
    }

    #[test]
    fn regions_are_counted_as_qemu_does() {
        assert_eq!(regions(256 << 20, 1), 1);
        assert_eq!(regions(256 << 20, 2), 16);
        assert_eq!(regions(256 << 20, 64), 128);
        assert_eq!(regions(256 << 20, 200), 200);
    }

    #[test]
    fn a_processor_is_not_added_to_a_cache_that_is_nearly_full() {
        assert_eq!(has_room(&told(100, 256), 2, 1, 1), Some(true));
        assert_eq!(has_room(&told(240, 256), 2, 1, 1), Some(false));
        // Two are more than one.
        assert_eq!(has_room(&told(330, 512), 4, 1, 1), Some(true));
        assert_eq!(has_room(&told(450, 512), 4, 1, 3), Some(false));
    }

    #[test]
    fn another_qemu_may_tell_nothing() {
        for text in ["", "gen code size", "gen code size 1", "gen code size a/b"] {
            assert_eq!(has_room(text, 2, 1, 1), None, "{text}");
        }
    }
}
