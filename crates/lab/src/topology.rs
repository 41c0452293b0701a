//! Namespaces, devices and routes of a lab. Made step by step, each only if it is missing; removed by name.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::netns::{self, ip_batch};
use crate::place::{Host, Lab, Pair, Site, overlaps};
use crate::wan;

const MTU: u32 = 1500;
/// The bridge in each switch namespace.
const SWITCH: &str = "sw0";

#[derive(Deserialize)]
struct Route {
    dst: String,
    #[serde(default)]
    dev: String,
}

/// Refuses when someone else uses the lab's addresses.
pub fn check_free(lab: &Lab) -> Result<()> {
    let text = netns::run(Command::new("ip").args(["-json", "-4", "route", "show"]), "")?;
    let routes: Vec<Route> = serde_json::from_str(text.trim()).or_else(|error| {
        // Without routes `ip` prints nothing at all.
        if text.trim().is_empty() { Ok(Vec::new()) } else { Err(error) }
    })?;
    let own = lab.root_device();
    let other = routes.iter().find(|route| route.dev != own && overlaps(lab.net, &route.dst));
    ensure!(
        other.is_none(),
        "{} is in use on this machine (route {} on {}); choose another net with --net, such as 10.92.0.0/16",
        lab.cidr(),
        other.map_or("", |route| &route.dst),
        other.map_or("", |route| &route.dev)
    );
    Ok(())
}

pub fn ensure_switch(lab: &Lab, site: Site) -> Result<()> {
    let space = lab.switch_space(site);
    ensure_space(&space)?;
    if !has_device(&space, SWITCH)? {
        ip_batch(
            Some(&space),
            &[format!(
                "link add name {SWITCH} mtu {MTU} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            )],
        )?;
    }
    ip_batch(
        Some(&space),
        &[
            format!("address replace {}/24 dev {SWITCH}", lab.switch_address(site)),
            format!("link set dev {SWITCH} addrgenmode none up"),
        ],
    )?;
    for (pair, other) in lab.pairs().filter_map(|pair| Some((pair, pair.across(site)?))) {
        ensure_line(lab, pair, site, other)?;
    }
    forward(&space)
}

/// This site's end of a line, and the way to the other site by it alone.
fn ensure_line(lab: &Lab, pair: Pair, site: Site, other: Site) -> Result<()> {
    let (space, tap) = (lab.switch_space(site), wan::device(other));
    if !has_device(&space, &tap)? {
        ip_batch(Some(&space), &[format!("tuntap add dev {tap} mode tap")])?;
    }
    let (own, across) = (lab.wan_address(pair, site), lab.wan_address(pair, other));
    ip_batch(
        Some(&space),
        &[
            format!("address replace {own}/30 dev {tap}"),
            format!("link set dev {tap} mtu {MTU} addrgenmode none up"),
            format!("route replace {} via {across} dev {tap} onlink", lab.site_cidr(other)),
        ],
    )
}

pub fn ensure_host(lab: &Lab, host: Host) -> Result<()> {
    let (space, switch) = (lab.host_space(host), lab.switch_space(host.site));
    ensure_space(&space)?;
    join(&switch, &host.name(), Some(&space), "eth0")?;
    ip_batch(
        Some(&space),
        &[
            format!("address replace {}/24 dev eth0", lab.host_address(host)),
            "link set dev eth0 up".to_owned(),
            format!("route replace default via {}", lab.switch_address(host.site)),
        ],
    )
}

/// Pulls a host's cable out of its switch, or puts it back.
pub fn cable(lab: &Lab, host: Host, is_in: bool) -> Result<()> {
    let state = if is_in { "up" } else { "down" };
    ip_batch(Some(&lab.switch_space(host.site)), &[format!("link set dev {} {state}", host.name())])
}

/// The machine itself joins the first datacentre: the server's address.
pub fn ensure_root(lab: &Lab) -> Result<()> {
    let device = lab.root_device();
    join(&lab.switch_space(lab.home()), "root", None, &device)?;
    ip_batch(
        None,
        &[
            format!("address replace {}/24 dev {device}", lab.root_address()),
            format!("link set dev {device} addrgenmode none up"),
            format!("route replace {} via {} dev {device}", lab.cidr(), lab.switch_address(lab.home())),
        ],
    )
}

/// Removes all of it; what is not there counts as removed. The processes in the namespaces have ended already.
pub fn remove(lab: &Lab) -> Result<()> {
    if device_exists(None, &lab.root_device())? {
        ip_batch(None, &[format!("link del dev {}", lab.root_device())])?;
    }
    for space in lab.spaces() {
        if netns::exists(&space) {
            netns::run(Command::new("ip").args(["netns", "del", &space]), "")?;
        }
    }
    Ok(())
}

/// A port `port` of a switch, whose other end is `device` in `space` (`None`: the root's).
fn join(switch: &str, port: &str, space: Option<&str>, device: &str) -> Result<()> {
    if !device_exists(space, device)? {
        // Made in the namespace where the other end is wanted: that of process 1 for the root.
        let place = space.unwrap_or("1");
        ip_batch(
            Some(switch),
            &[format!("link add name {port} mtu {MTU} type veth peer name {device} mtu {MTU} netns {place}")],
        )?;
    }
    ip_batch(Some(switch), &[format!("link set dev {port} addrgenmode none master {SWITCH} up")])
}

fn ensure_space(space: &str) -> Result<()> {
    if !netns::exists(space) {
        netns::run(Command::new("ip").args(["netns", "add", space]), "")?;
    }
    ip_batch(Some(space), &["link set dev lo up".to_owned()])
}

fn has_device(space: &str, device: &str) -> Result<bool> {
    device_exists(Some(space), device)
}

fn device_exists(space: Option<&str>, device: &str) -> Result<bool> {
    let mut command = Command::new("ip");
    if let Some(space) = space {
        command.args(["-n", space]);
    }
    let text = netns::run(command.args(["-oneline", "link", "show"]), "")?;
    // Lines are `NUMBER: NAME@PEER: <...`.
    let mut names = text.lines().filter_map(|line| line.split([':', '@']).nth(1));
    Ok(names.any(|name| name.trim() == device))
}

/// Turns a namespace into a router.
fn forward(space: &str) -> Result<()> {
    let set = netns::inside(Some(space), || {
        let path = Path::new("/proc/sys/net/ipv4/ip_forward");
        std::fs::write(path, "1").context("turn forwarding on")
    })?;
    set.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
