//! Networks between datacentres go through the encrypted tunnel, in a lab with real agents, a real line and a real guest.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_world::console::Console;
use lab_world::{Plot, SHARED, name, ok, ran, running_on, serving, sterna_lab, until};
use rustix::process::Signal;
use sterna_base::units::Span;
use sterna_client::Filter;
use sterna_lab::bench::world::{Process, World};
use sterna_lab::netns;
use sterna_lab::place::Host;
use sterna_lab::user;
use sterna_model::tunnel::TunnelSeen;

const PLOT: Plot = Plot { name: "e2e-tunnel", net: "10.97.0.0/16", port: 7746, datacentres: "a,b" };
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts on a datacentre's switch what goes out by its lines: segments in clear on any of their ports, and the tunnel.
const COUNTERS: &str = "table inet crossing
delete table inet crossing
table inet crossing {
  counter clear {}
  counter tunnel {}
  chain forward {
    type filter hook forward priority 0;
    oifname \"to-*\" udp dport { 4789, 14789 } counter name clear
    oifname \"to-*\" udp dport 51830 counter name tunnel
  }
}
";

fn count_from_now(world: &World) -> Result<()> {
    let space = world.lab.switch_space(world.lab.home());
    netns::run(Command::new("ip").args(["netns", "exec", &space, "nft", "-f", "-"]), COUNTERS).map(drop)
}

fn crossed(world: &World, counter: &str) -> Result<u64> {
    let space = world.lab.switch_space(world.lab.home());
    let list = ["netns", "exec", &space, "nft", "list", "counter", "inet", "crossing", counter];
    let text = netns::run(Command::new("ip").args(list), "")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|word| word.parse().ok()).with_context(|| format!("no figure in {text}"))
}

/// A datagram to the port of segments, past all of Sterna.
fn send_in_clear(world: &World, from: Host, to: Host) -> Result<()> {
    let address = world.lab.host_address(to);
    let inside = netns::inside(Some(&world.lab.host_space(from)), move || {
        std::net::UdpSocket::bind("0.0.0.0:0")?.send_to(b"here", (address, 4789))?;
        Ok(())
    })?;
    inside.join().unwrap()
}

/// Whether three packets come back that are as large as a guest's may be.
fn pings(world: &World, from: Host, to: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &world.lab.host_space(from)]);
    command.args(["ping", "-M", "do", "-s", "1322", "-i", "0.2", "-c", "3", "-W", "1", to]);
    ran(&mut command).code == 0
}

async fn with_tunnels(world: &World) -> Result<()> {
    until(PATIENCE, "every host to have an end of the tunnel", async || {
        let hosts = world.user.client.hosts().list(&Filter::default()).await?;
        let ends = hosts.iter().filter_map(|host| host.report.as_ref()?.tunnel.as_ref());
        Ok(ends.filter(|end| matches!(end, TunnelSeen::Ready { trouble: None, .. })).count() == hosts.len())
    })
    .await
}

/// The address of a host on the network that every lab begins with.
async fn on_network(world: &World, host: Host) -> Result<String> {
    let network = world.user.client.networks().get(&name("default")).await?;
    let hosts = network.decision.context("the network is not laid out")?.hosts;
    Ok(hosts.get(&name(&host.name())).context("the host is not on it")?.to_string())
}

#[test]
fn hosts_of_two_datacentres_are_on_one_network_and_nothing_crosses_in_clear() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        with_tunnels(world).await?;
        count_from_now(world)?;
        let hosts: Vec<_> = world.lab.hosts().collect();
        let (here, far) = (hosts[0], *hosts.last().unwrap());
        let to = on_network(world, far).await?;
        until(PATIENCE, "the other datacentre to answer", async || Ok(pings(world, here, &to))).await?;
        let (vm, host) = serving(world, SHARED).await?;
        let elsewhere = hosts.iter().find(|other| other.site != host.site).unwrap();
        world.guest_answers(*elsewhere, user::address(&vm)?).await?;
        ensure!(crossed(world, "tunnel")? > 3, "{}", crossed(world, "tunnel")?);
        ensure!(crossed(world, "clear")? == 0, "{} packets in clear", crossed(world, "clear")?);
        send_in_clear(world, here, far)?;
        ensure!(crossed(world, "clear")? == 1, "the counter counts");
        let shown = ok(world, &format!("host show {}", here.name()))?.data;
        ensure!(shown.contains("tunnel") && shown.contains("public_key"), "{shown}");
        Ok(())
    })
}

#[test]
fn after_a_cut_of_the_line_and_after_the_end_of_an_agent_the_network_is_whole() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        with_tunnels(world).await?;
        let hosts: Vec<_> = world.lab.hosts().collect();
        let (here, far) = (hosts[0], *hosts.last().unwrap());
        let to = on_network(world, far).await?;
        until(PATIENCE, "the other datacentre to answer", async || Ok(pings(world, here, &to))).await?;
        sterna_lab(&PLOT, "link --down");
        ensure!(!pings(world, here, &to), "the line is cut");
        sterna_lab(&PLOT, "link --up");
        until(PATIENCE, "the network after the cut", async || Ok(pings(world, here, &to))).await?;
        let agent = world.find(Process::Agent(here))?;
        agent.signal(Signal::KILL);
        ensure!(pings(world, here, &to), "the tunnel outlives its agent");
        until(PATIENCE, "another agent", async || {
            Ok(world.find(Process::Agent(here)).is_ok_and(|other| other.pid != agent.pid))
        })
        .await?;
        with_tunnels(world).await?;
        ensure!(pings(world, here, &to), "the next agent disturbs nothing");
        Ok(())
    })
}

/// The guest's DHCP client, which tells what it was given and by whom.
const CLIENT: &str = "udhcpc -f -i eth0 -s /etc/udhcpc.script -t 5 -T 1";

/// Waits until the client in the background has had so many leases; what it has told.
async fn leased(console: &mut Console, times: usize) -> Result<String> {
    let mut told = String::new();
    until(PATIENCE, &format!("lease number {times}"), async || {
        told = console.ask("cat /run/lease").await?;
        Ok(told.matches("lease of ").count() >= times)
    })
    .await?;
    Ok(told)
}

fn given_by(told: &str) -> Result<&str> {
    let newest = told.lines().rfind(|line| line.contains("lease of ")).context("no lease")?;
    let from = newest.split_once("obtained from ").context("from nobody")?.1;
    Ok(from.split(',').next().unwrap_or_default())
}

#[test]
fn a_guest_that_moved_to_another_datacentre_renews_its_lease_and_reaches_its_gateway() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        with_tunnels(world).await?;
        let host = |text: &str| world.lab.host(text).with_context(|| format!("no host {text}"));
        let (here, there) = (host("a1")?, host("b1")?);
        world.user.ensure_image(&name("tiny"), &lab_world::image()?).await?;
        let vm = running_on(world, "renews", here).await?;
        let address = user::address(&vm)?;
        world.guest_answers(here, address).await?;
        let mut console = Console::open(world, &vm).await?;
        console.ask(&format!("killall udhcpc; ({CLIENT} >/run/lease 2>&1 &)")).await?;
        let told = leased(&mut console, 1).await?;
        ensure!(given_by(&told)? == on_network(world, here).await?, "{told}");
        drop(console);
        world.user.move_to(&name("renews"), &name("b1"), Span::from_millis(1000)).await?;

        let mut console = Console::open(world, &vm).await?;
        let route = console.ask("ip route").await?;
        let gateway = route.split_once("default via ").context(route.clone())?.1;
        let gateway = gateway.split_whitespace().next().context("no gateway")?.to_owned();
        let ping = format!("ip neigh flush dev eth0; ping -c 3 -W 2 {gateway}");
        let answers = console.ask(&ping).await?;
        ensure!(answers.contains("3 packets received"), "before it renewed: {answers}");
        console.ask("killall -USR1 udhcpc").await?;
        // It asks where it was, where nobody answers it any more, and then everybody.
        let told = leased(&mut console, 2).await?;
        ensure!(told.matches(&format!("lease of {address} ")).count() == 2, "another address: {told}");
        // One that begins anew says who answers now.
        let told = console.ask(&format!("killall udhcpc; {CLIENT} -q -n 2>&1")).await?;
        ensure!(given_by(&told)? == on_network(world, there).await?, "{told}");
        ensure!(console.ask("ip route").await?.contains(&format!("default via {gateway} dev eth0")));
        let answers = console.ask(&ping).await?;
        ensure!(answers.contains("3 packets received"), "after it renewed: {answers}");
        for from in [here, there] {
            world.guest_answers(from, address).await.with_context(|| format!("from {}", from.name()))?;
        }
        Ok(())
    })
}
