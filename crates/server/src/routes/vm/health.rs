//! What may be asked of a VM's checks: each refusal names the check and the field.

use std::fmt::Display;

use sterna_base::units::Span;
use sterna_model::error::Code;
use sterna_model::health::{
    CHECKS_MAX, FAILURES_MAX, HealthCheck, INTERVAL_MAX, INTERVAL_MIN, PROBE_TEXT_MAX, Probe,
};
use sterna_model::network::NetworkKind;
use sterna_model::vm::VmSpec;
use sterna_plan::View;

use crate::error::{Answer, Refusal, refuse};

/// The shortest time in which an answer may have to come.
const TIMEOUT_MIN: Span = Span::from_millis(100);

/// Limits, and that each check has something to ask. `view`: networks, which say whether an address will be known.
pub fn checks(view: &View, spec: &VmSpec) -> Answer<()> {
    if spec.checks.len() > CHECKS_MAX {
        let message = format!("checks: {} are too many", spec.checks.len());
        return Err(refuse(Code::Invalid, message).hint(format!("at most {CHECKS_MAX}")));
    }
    for (index, check) in spec.checks.iter().enumerate() {
        times(index, check)?;
        probe(index, &check.probe)?;
        if check.probe.needs_address() && !has_address(view, spec) {
            let message = format!(
                "checks[{index}].probe: {} needs an address of the VM, and none of its NICs gets one",
                check.probe.words()
            );
            let hint = "add a NIC on an overlay network, or ask through the guest agent with `exec`";
            return Err(refuse(Code::Invalid, message).hint(hint));
        }
    }
    Ok(())
}

fn invalid(index: usize, field: &str, what: impl Display, hint: impl Into<String>) -> Refusal {
    refuse(Code::Invalid, format!("checks[{index}].{field}: {what}")).hint(hint)
}

fn times(index: usize, check: &HealthCheck) -> Answer<()> {
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&check.interval) {
        let what = format!("{} is not allowed", check.interval);
        return Err(invalid(index, "interval", what, format!("use {INTERVAL_MIN} to {INTERVAL_MAX}")));
    }
    if !(TIMEOUT_MIN..=check.interval).contains(&check.timeout) {
        let what = format!("{} is not allowed", check.timeout);
        let hint = format!("use {TIMEOUT_MIN} to the interval, {}", check.interval);
        return Err(invalid(index, "timeout", what, hint));
    }
    if !(1..=FAILURES_MAX).contains(&check.failures) {
        let what = format!("{} is not allowed", check.failures);
        return Err(invalid(index, "failures", what, format!("use 1 to {FAILURES_MAX}")));
    }
    Ok(())
}

fn probe(index: usize, probe: &Probe) -> Answer<()> {
    match probe {
        Probe::Tcp { port: 0 } | Probe::Http { port: 0, .. } => {
            Err(invalid(index, "probe.port", "0 is no port", "use 1 to 65535"))
        }
        Probe::Tcp { .. } => Ok(()),
        Probe::Http { path, .. } => {
            // It is written into a request as it is.
            let is_plain = path.chars().all(|c| c.is_ascii_graphic());
            if path.starts_with('/') && is_plain && path.len() <= PROBE_TEXT_MAX {
                return Ok(());
            }
            let hint = format!(
                "begin with `/`; printable ASCII without blanks, at most {PROBE_TEXT_MAX} characters"
            );
            Err(invalid(index, "probe.path", "it is no path of a request", hint))
        }
        Probe::Exec { command } => {
            let length: usize = command.iter().map(String::len).sum();
            if !command.first().is_some_and(|program| program.starts_with('/')) {
                let what = "the program's full path comes first";
                return Err(invalid(index, "probe.command", what, "for example [\"/usr/bin/true\"]"));
            }
            if length > PROBE_TEXT_MAX || command.iter().any(|word| word.contains('\0')) {
                let hint = format!("at most {PROBE_TEXT_MAX} characters, and no NUL");
                return Err(invalid(index, "probe.command", "it cannot be run", hint));
            }
            Ok(())
        }
    }
}

/// Only an overlay hands out addresses, and its hosts reach them.
fn has_address(view: &View, spec: &VmSpec) -> bool {
    spec.nics.iter().any(|nic| {
        let network = view.networks.get(&nic.network).and_then(|entry| entry.spec.as_ref());
        network.is_some_and(|row| matches!(row.value.spec.kind, NetworkKind::Overlay { .. }))
    })
}
