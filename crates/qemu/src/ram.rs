//! RAM sizes that survive a live migration.
//!
//! Under TCG, QEMU before 9.0 forgets to flush its TLB when it collects the dirty bitmap in whole words:
//! writes that follow are not seen, and the target gets old pages (56 to 64 wrong pages in each of three
//! plain QEMU 7.2 migrations). The word-wise path is taken only when the RAM block is a multiple of 64
//! pages, 256 KiB; a size that is not takes the slow, right path (no wrong page in three of three). The guest
//! of `tests/handover.rs`, which writes 200 pages over and over, loses 139 of them with 16384 KiB on 7.2.22,
//! each time, and none with 16376 KiB.

use crate::config::Accel;
use crate::version::Version;

/// Sizes that are multiples of this take the wrong path.
const DIRTY_WORD_KIB: u64 = 256;

/// What is taken off a size to make it safe: two pages, so that a guest hardly notices.
const STEP_KIB: u64 = 8;

/// The first version that collects the dirty bitmap rightly under TCG.
const FIXED_IN: Version = Version::new(9, 0, 0);

/// Live migration of this RAM size would corrupt the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "QEMU {version} under TCG loses memory writes while it migrates {kib} KiB of RAM (a multiple of 256 KiB); \
     use {safe_kib} KiB, or QEMU 9.0 or newer"
)]
pub struct UnsafeRam {
    pub kib: u64,
    pub safe_kib: u64,
    pub version: Version,
}

/// Whether this size is migrated rightly by this QEMU under this accelerator.
pub fn check(kib: u64, version: Version, accel: Accel) -> Result<(), UnsafeRam> {
    let safe_kib = safe_ram_kib(kib, version, accel);
    if safe_kib == kib { Ok(()) } else { Err(UnsafeRam { kib, safe_kib, version }) }
}

/// The largest size not above `kib` that is migrated rightly.
///
/// A VM must get the size that is safe for every host it may visit: ask with the oldest version in use.
pub fn safe_ram_kib(kib: u64, version: Version, accel: Accel) -> u64 {
    if accel == Accel::Tcg && version < FIXED_IN && kib.is_multiple_of(DIRTY_WORD_KIB) {
        kib.saturating_sub(STEP_KIB)
    } else {
        kib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version::new(7, 2, 22);
    const NEW: Version = Version::new(10, 0, 2);

    #[test]
    fn only_old_qemu_under_tcg_needs_an_odd_size() {
        assert_eq!(safe_ram_kib(524_288, OLD, Accel::Tcg), 524_280);
        assert_eq!(safe_ram_kib(524_280, OLD, Accel::Tcg), 524_280);
        assert_eq!(safe_ram_kib(524_288, OLD, Accel::Kvm), 524_288);
        assert_eq!(safe_ram_kib(524_288, NEW, Accel::Tcg), 524_288);
        assert_eq!(safe_ram_kib(524_288, Version::new(8, 2, 10), Accel::Tcg), 524_280);
    }

    #[test]
    fn the_refusal_names_a_size_that_passes() {
        let refused = check(262_144, OLD, Accel::Tcg).unwrap_err();
        assert_eq!(refused.safe_kib, 262_136);
        assert_eq!(check(refused.safe_kib, OLD, Accel::Tcg), Ok(()));
    }
}
