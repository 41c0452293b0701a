//! Ports that must be free here, the firewall, and the way to the server.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::Finding;
use crate::config::TUNNEL_PORT;

/// VXLAN (RFC 7348).
const VXLAN_PORT: u16 = 4789;
/// Network block devices; the next ones are taken where this is in use.
const NBD_PORT: u16 = 10_809;

/// A far datacentre answers within half a second.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const NFT_DEADLINE: Duration = Duration::from_secs(10);

/// Fewer ports than this for incoming migrations may run out beside what else the machine does.
const MIGRATION_PORTS_MIN: u32 = 1000;

pub fn check_ports() -> Vec<Finding> {
    let any = Ipv4Addr::UNSPECIFIED;
    let vxlan = UdpSocket::bind((any, VXLAN_PORT)).map(drop).map_err(|error| error.kind());
    let nbd = TcpListener::bind((any, NBD_PORT)).map(drop).map_err(|error| error.kind());
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    vec![judge_vxlan_port(vxlan), judge_nbd_port(nbd), judge_migration_ports(&range)]
}

fn judge_vxlan_port(bound: Result<(), ErrorKind>) -> Finding {
    let what = format!("port {VXLAN_PORT}/udp");
    match bound {
        Ok(()) => Finding::ok(what, "free for overlay networks"),
        Err(ErrorKind::AddrInUse) => Finding::warn(
            what,
            "in use",
            "fine if other VXLAN devices have it; a program that has it must go: ss -ulpn",
        ),
        Err(kind) => Finding::warn(what, kind.to_string(), "look at the machine's addresses: ip address"),
    }
}

fn judge_nbd_port(bound: Result<(), ErrorKind>) -> Finding {
    let what = format!("port {NBD_PORT}/tcp");
    match bound {
        Ok(()) => Finding::ok(what, "free for storage"),
        Err(ErrorKind::AddrInUse) => Finding::ok(what, "in use; storage is served on the next free one"),
        Err(kind) => Finding::warn(what, kind.to_string(), "look at the machine's addresses: ip address"),
    }
}

/// A target of a migration listens on any port of this range.
fn judge_migration_ports(range: &str) -> Finding {
    let what = "ports for migrations";
    let mut numbers = range.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) if last.saturating_sub(first) >= MIGRATION_PORTS_MIN => {
            Finding::ok(what, format!("{first} to {last}/tcp"))
        }
        _ => Finding::warn(
            what,
            format!("the range is {:?}", range.trim()),
            "widen it: sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"",
        ),
    }
}

pub async fn check_firewall() -> Vec<Finding> {
    let mut command = Command::new("nft");
    command.args(["-j", "list", "chains"]).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(NFT_DEADLINE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            judge_firewall(&serde_json::from_slice(&output.stdout).unwrap_or_default())
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            vec![Finding::warn("firewall", said, "run it as root on a kernel with nf_tables")]
        }
        // A missing program is told among the programs.
        Ok(Err(_)) => Vec::new(),
        Err(_) => vec![Finding::warn("firewall", "nft does not answer", "look at it with: nft list chains")],
    }
}

fn judge_firewall(chains: &Value) -> Vec<Finding> {
    let entries = chains["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let drops = |hook: &str| {
        entries
            .iter()
            .map(|entry| &entry["chain"])
            .find(|chain| chain["hook"] == hook && chain["policy"] == "drop")
    };
    let place = |chain: &Value| {
        let word = |field: &str| chain[field].as_str().unwrap_or("?").to_owned();
        format!("chain {} of table {} {}", word("name"), word("family"), word("table"))
    };
    let mut findings = Vec::new();
    if let Some(chain) = drops("input") {
        let fix = format!(
            "allow, from the other hosts: {VXLAN_PORT}/udp, {TUNNEL_PORT}/udp, {NBD_PORT}-{}/tcp, and tcp of the range for migrations",
            NBD_PORT + 99
        );
        findings.push(Finding::warn(
            "firewall",
            format!("{} drops what it does not know", place(chain)),
            fix,
        ));
    }
    if let Some(chain) = drops("forward") {
        let fix = "allow what comes from or goes to devices whose names start with `sterna-`";
        findings.push(Finding::warn(
            "firewall",
            format!("{} drops what it does not know", place(chain)),
            fix,
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("firewall", "drops nothing by default"));
    }
    findings
}

pub async fn check_server(server: Option<&str>) -> Option<Finding> {
    let server = server?;
    let started = Instant::now();
    let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(server)).await;
    let what = format!("server {server}");
    let fix = "start the server, open its port, or correct the address";
    Some(match connected {
        Ok(Ok(stream)) => {
            let at: Option<SocketAddr> = stream.peer_addr().ok();
            let place = at.map_or_else(String::new, |at| format!(" at {at}"));
            Finding::ok(what, format!("answers{place} after {} ms", started.elapsed().as_millis()))
        }
        Ok(Err(error)) => Finding::refuse(what, error.to_string(), fix),
        Err(_) => Finding::refuse(what, format!("no answer within {} s", CONNECT_DEADLINE.as_secs()), fix),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;

    #[test]
    fn a_dropping_policy_is_told_with_its_place() {
        let chain = |hook: &str, policy: &str| {
            json!({ "chain": { "family": "ip", "table": "filter", "name": hook.to_uppercase(),
                               "hook": hook, "policy": policy } })
        };
        let docker =
            json!({ "nftables": [{ "metainfo": {} }, chain("input", "accept"), chain("forward", "drop")] });
        let [finding] = &judge_firewall(&docker)[..] else { panic!("one finding") };
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.found.starts_with("chain FORWARD of table ip filter"));
        let closed = json!({ "nftables": [chain("input", "drop")] });
        assert!(judge_firewall(&closed)[0].fix.as_ref().unwrap().contains("4789/udp, 51830/udp"));
        assert_eq!(judge_firewall(&json!({}))[0].level, Level::Ok);
    }

    #[test]
    fn ports_are_judged_by_what_binding_said() {
        assert_eq!(judge_vxlan_port(Ok(())).level, Level::Ok);
        assert_eq!(judge_vxlan_port(Err(ErrorKind::AddrInUse)).level, Level::Warn);
        assert_eq!(judge_nbd_port(Err(ErrorKind::AddrInUse)).level, Level::Ok);
        assert_eq!(judge_migration_ports("32768\t60999\n").level, Level::Ok);
        assert_eq!(judge_migration_ports("32768 32800").level, Level::Warn);
        assert_eq!(judge_migration_ports("").level, Level::Warn);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_refused() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(check_server(Some(&address)).await.unwrap().level, Level::Ok);
        drop(listener);
        assert_eq!(check_server(Some(&address)).await.unwrap().level, Level::Refuse);
        assert!(check_server(None).await.is_none());
    }
}
