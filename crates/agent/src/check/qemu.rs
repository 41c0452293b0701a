//! Whether QEMU runs guests here: asked for its version, then tried.

use std::path::Path;

use sterna_qemu::config::Accel;
use sterna_qemu::probe::{self, Choice};
use sterna_qemu::ram;
use sterna_qemu::version::Version;

use super::Finding;

/// The oldest version that live migration was tried with.
const OLDEST: Version = Version::new(7, 2, 0);

const INSTALL: &str = "install the packages qemu-system-x86 and qemu-utils";

pub async fn check(binary: &Path) -> Vec<Finding> {
    let version = match probe::inspect(binary, Accel::Tcg).await {
        Ok(inspection) => inspection.version,
        Err(error) => return vec![Finding::refuse("qemu", error_text(&error), INSTALL)],
    };
    let choice = probe::choose_accel(binary).await;
    judge(version, choice.map_err(|error| error_text(&error)))
}

fn error_text(error: &probe::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn judge(version: Version, choice: Result<Choice, String>) -> Vec<Finding> {
    let found = version.to_string();
    let mut findings = vec![if version < OLDEST {
        Finding::refuse("qemu", found, format!("install QEMU {OLDEST} or newer"))
    } else {
        Finding::ok("qemu", found)
    }];
    match choice {
        Ok(Choice { accel: Accel::Kvm, reason }) => findings.push(Finding::ok("guests", reason)),
        Ok(Choice { accel: Accel::Tcg, reason }) => {
            let fix = "load kvm_intel or kvm_amd and switch on virtualisation in the firmware; \
                       emulated guests are slow and not kept apart from the host";
            findings.push(Finding::warn("guests", reason, fix));
            findings.extend(judge_ram(version));
        }
        Err(why) => findings.push(Finding::refuse("guests", why, INSTALL)),
    }
    findings
}

/// A size that shows whether this version needs the adjustment.
const ROUND_KIB: u64 = 262_144;

fn judge_ram(version: Version) -> Option<Finding> {
    let safe = ram::safe_ram_kib(ROUND_KIB, version, Accel::Tcg);
    (safe != ROUND_KIB).then(|| {
        let found = format!("this QEMU loses memory writes when it moves emulated guests of round sizes; guests get {} KiB less", ROUND_KIB - safe);
        Finding::warn("memory sizes", found, "install QEMU 9.0 or newer (Debian: from backports)")
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn levels(version: Version, accel: Accel) -> Vec<(String, Level)> {
        let findings = judge(version, Ok(Choice { accel, reason: "tried".into() }));
        findings.into_iter().map(|finding| (finding.what, finding.level)).collect()
    }

    #[test]
    fn the_ram_rule_is_told_only_where_it_holds() {
        let old = Version::new(7, 2, 22);
        let told = |version, accel| levels(version, accel).iter().any(|(what, _)| what == "memory sizes");
        assert!(told(old, Accel::Tcg));
        assert!(!told(old, Accel::Kvm));
        assert!(!told(Version::new(10, 0, 2), Accel::Tcg));
    }

    #[test]
    fn too_old_a_qemu_and_one_that_runs_nothing_are_refused() {
        assert_eq!(levels(Version::new(6, 2, 0), Accel::Kvm)[0].1, Level::Refuse);
        assert_eq!(judge(Version::new(10, 0, 2), Err("no".into()))[1].level, Level::Refuse);
    }
}
