//! Whether this machine can have an end of the encrypted tunnel. Only clusters of several datacentres need one.

use std::time::Duration;

use super::kernel::{in_scratch_network, try_ip};
use super::{Finding, programs, within};

const DEADLINE: Duration = Duration::from_secs(10);
const TRIAL: [&str; 5] = ["link", "add", "check5", "type", "wireguard"];
const TOOLS: &str = "wireguard-tools";
const USERSPACE: &str = "wireguard-go";

pub async fn check() -> Finding {
    let tried = within(DEADLINE, || in_scratch_network(|| try_ip(&TRIAL))).await;
    judge(matches!(tried, Some(Ok(None))), programs::is_there)
}

fn judge(has_kernel: bool, is_there: impl Fn(&str) -> bool) -> Finding {
    let lacks_tools = !is_there("wg");
    let lacks_carrier = !has_kernel && !is_there(USERSPACE);
    let packages: Vec<_> =
        [lacks_tools.then_some(TOOLS), lacks_carrier.then_some(USERSPACE)].into_iter().flatten().collect();
    if packages.is_empty() {
        let carrier = if has_kernel { "the kernel's WireGuard" } else { USERSPACE };
        return Finding::ok("tunnel", carrier);
    }
    let found = "unavailable: networks reach no other datacentre";
    Finding::warn("tunnel", found, format!("apt install {}", packages.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_no_more() {
        let judged = |has_kernel: bool, there: &[&str]| judge(has_kernel, |program| there.contains(&program));
        for (has_kernel, there, fix) in [
            (true, &["wg"][..], None),
            (false, &["wg", "wireguard-go"], None),
            (false, &["wg"], Some("apt install wireguard-go")),
            (true, &[], Some("apt install wireguard-tools")),
            (false, &[], Some("apt install wireguard-tools wireguard-go")),
        ] {
            let finding = judged(has_kernel, there);
            assert_eq!(finding.fix.as_deref(), fix, "{has_kernel} {there:?}");
            assert_eq!(finding.level == Level::Ok, fix.is_none());
        }
    }
}
