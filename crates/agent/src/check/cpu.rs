//! The processor: whether it can run guests by itself, and whether this machine is a guest as well.

use std::collections::BTreeSet;

use super::Finding;

pub fn check() -> Vec<Finding> {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => judge(&text),
        Err(error) => vec![Finding::warn("cpu", format!("/proc/cpuinfo: {error}"), "mount /proc")],
    }
}

fn judge(cpuinfo: &str) -> Vec<Finding> {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let model = field("model name").unwrap_or("unknown");
    let flags: BTreeSet<&str> = field("flags").unwrap_or_default().split_whitespace().collect();
    let found = format!("{count} x {model}");
    let virtualisation = if !flags.contains("lm") {
        Finding::refuse("cpu", format!("{found}, no 64-bit mode"), "use an x86-64 machine")
    } else if flags.contains("vmx") || flags.contains("svm") {
        Finding::ok("cpu", format!("{found}, with virtualisation"))
    } else {
        let fix = "switch on VT-x or AMD-V in the firmware (on a VM: nested virtualisation)";
        Finding::warn("cpu", format!("{found}, without virtualisation: guests are emulated, slowly"), fix)
    };
    let mut findings = vec![virtualisation];
    if flags.contains("hypervisor") {
        // Its clocks stop with it when it is paused, and nobody inside can notice.
        let fix = "use a physical machine for anything that others depend on";
        findings.push(Finding::warn("machine", "is itself a virtual machine", fix));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn levels(flags: &str) -> Vec<Level> {
        let text = format!("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n");
        judge(&text).into_iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn processors_are_judged_by_their_flags() {
        assert_eq!(levels("fpu lm vmx"), [Level::Ok]);
        assert_eq!(levels("fpu lm svm hypervisor"), [Level::Ok, Level::Warn]);
        assert_eq!(levels("fpu lm"), [Level::Warn]);
        assert_eq!(levels("fpu"), [Level::Refuse]);
    }
}
