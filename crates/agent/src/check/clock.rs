//! Wall clock and time since boot. No decision about who may run a VM rests on the clock; certificates, logs and guests do.

use std::time::Duration;

use sterna_base::clock::boottime_ms;

use super::Finding;

/// More than this and times of two hosts' events can no longer be put in order by a person.
const AHEAD_MAX_MS: u64 = 1000;

/// A certificate that was just issued is "not yet valid" for a clock that is this far behind.
const AHEAD_REFUSED_MS: u64 = 5 * 60 * 1000;

/// A service that is still starting after a boot may take something that was free during the check.
const SETTLED: Duration = Duration::from_secs(60);

pub fn check(ahead_ms: Option<i64>) -> Vec<Finding> {
    let mut findings = vec![judge_sync(is_synchronised())];
    findings.extend(ahead_ms.map(judge_offset));
    findings.push(judge_uptime(Duration::from_millis(boottime_ms())));
    findings
}

/// What the kernel was told by a time service; `None` where it does not answer.
fn is_synchronised() -> Option<bool> {
    // SAFETY: `timex` is plain data for which all zeroes is a valid value; zero modes only read.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is valid for the length of the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

fn judge_sync(is_synchronised: Option<bool>) -> Finding {
    match is_synchronised {
        Some(true) => Finding::ok("clock", "kept by a time service"),
        Some(false) => Finding::warn(
            "clock",
            "not kept by a time service",
            "install chrony (apt install chrony), or systemd-timesyncd",
        ),
        None => {
            Finding::warn("clock", "the kernel does not say whether it is kept", "check it with: timedatectl")
        }
    }
}

fn judge_offset(ahead_ms: i64) -> Finding {
    let (off, what) = (ahead_ms.unsigned_abs(), "clock against the server's");
    let found = format!("{:.1} s {}", off as f64 / 1000.0, if ahead_ms < 0 { "behind" } else { "ahead" });
    let fix = "set both machines by the same time service";
    if off <= AHEAD_MAX_MS {
        Finding::ok(what, found)
    } else if off <= AHEAD_REFUSED_MS {
        Finding::warn(what, found, fix)
    } else {
        Finding::refuse(what, found, fix)
    }
}

fn judge_uptime(up: Duration) -> Finding {
    let (days, hours, minutes) = (up.as_secs() / 86_400, up.as_secs() / 3600 % 24, up.as_secs() / 60 % 60);
    let found = format!("{days} d {hours} h {minutes} min ago");
    if up < SETTLED {
        Finding::warn("boot", found, "check again in a minute, when all services have started")
    } else {
        Finding::ok("boot", found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_clock_is_judged_by_its_distance_in_either_direction() {
        for (ahead_ms, level) in [
            (0, Level::Ok),
            (-900, Level::Ok),
            (3_000, Level::Warn),
            (-299_000, Level::Warn),
            (400_000, Level::Refuse),
            (i64::MIN, Level::Refuse),
        ] {
            assert_eq!(judge_offset(ahead_ms).level, level, "{ahead_ms}");
        }
        assert!(judge_offset(-3_000).found.contains("3.0 s behind"));
    }

    #[test]
    fn an_unkept_clock_and_a_fresh_boot_are_told() {
        assert_eq!(judge_sync(Some(true)).level, Level::Ok);
        assert_eq!(judge_sync(Some(false)).level, Level::Warn);
        assert_eq!(judge_uptime(Duration::from_secs(30)).level, Level::Warn);
        assert_eq!(judge_uptime(Duration::from_secs(90_000)).found, "1 d 1 h 0 min ago");
    }
}
