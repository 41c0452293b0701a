//! A small place: a switch, hosts and guests as network namespaces. Gone when dropped, also after a panic.

#![allow(dead_code)] // Not every file of tests needs all of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sterna_agent::config::TUNNEL_PORT;
use sterna_agent::network::{Networks, Tap, TunnelSettings};
use sterna_model::meta::Name;
use sterna_model::tunnel::TunnelSeen;
use sterna_wire::assignment::{Lease, NetworkAssignment, NetworkKind, Tunnel};
use uuid::Uuid;

const RUN_AS: u32 = 64711;
const PORT: u16 = 7777;

pub struct Place {
    pub prefix: String,
    pub hosts: Vec<Host>,
    _dir: tempfile::TempDir,
}

pub struct Host {
    space: String,
    pub dir: std::path::PathBuf,
    pub address: Ipv4Addr,
    agent: Option<(tokio::runtime::Runtime, Arc<Networks>)>,
}

pub struct Guest {
    space: String,
    mac: String,
    address: Ipv4Addr,
}

impl Place {
    pub fn new(name: &str, hosts: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(&format!("chmod 755 {}", dir.path().display()));
        let prefix = format!("snt{}{name}", std::process::id());
        let mut place = Self { prefix: prefix.clone(), hosts: Vec::new(), _dir: dir };
        let switch = format!("{prefix}-sw");
        sh(&format!(
            "ip netns add {switch}; ip -n {switch} link add sw0 type bridge; ip -n {switch} link set sw0 up;
            ip -n {switch} address add 10.77.0.254/24 dev sw0"
        ));
        for number in 1..=hosts {
            let space = format!("{prefix}-h{number}");
            let address = Ipv4Addr::new(10, 77, 0, number);
            sh(&format!(
                "ip netns add {space}; ip -n {space} link set lo up;
                ip -n {space} link add eth0 type veth peer name p{number} netns {switch};
                ip -n {switch} link set p{number} master sw0 up;
                ip -n {space} address add {address}/24 dev eth0; ip -n {space} link set eth0 up;
                ip -n {space} route add default via 10.77.0.254;
                ip netns exec {space} sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'"
            ));
            let dir = place._dir.path().join(format!("h{number}"));
            std::fs::create_dir_all(&dir).unwrap();
            let mut host = Host { space, dir, address, agent: None };
            host.start_agent();
            place.hosts.push(host);
        }
        place
    }

    pub fn at_switch(&self, script: &str) -> String {
        sh_in(&format!("{}-sw", self.prefix), script)
    }

    /// A guest on a port of the host's segment bridge; it has no address yet.
    pub fn guest(&self, host: usize, lease: &Lease) -> Guest {
        let space = format!("{}-g{}", self.prefix, lease.hostname);
        sh(&format!("ip netns add {space}"));
        let guest = Guest { space, mac: lease.mac.to_string(), address: lease.address };
        guest.attach(&self.hosts[host], 0);
        sh(&format!("ip -n {} link set eth0 up", guest.space));
        guest
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hosts.clear();
        let script = format!(
            "for s in $(ip netns list | grep -o '^{}-[^ ]*'); do
                for d in $(ip -n $s -br link | grep -o '^sterna-w[0-9a-f]*'); do rm -f /run/wireguard/$d.sock; done;
                for p in $(ip netns pids $s); do [ $p = {} ] || kill -9 $p; done; ip netns del $s; done",
            self.prefix,
            std::process::id()
        );
        let _ = Command::new("sh").args(["-c", &script]).status();
    }
}

impl Host {
    fn start_agent(&mut self) {
        let space = self.space.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || enter(&space))
            .enable_all()
            .build()
            .unwrap();
        let tunnel =
            TunnelSettings { key: self.dir.join("tunnel.key"), endpoint: (self.address, TUNNEL_PORT).into() };
        let networks = Networks::new(&self.dir, self.address.into(), RUN_AS).with_tunnel(tunnel);
        self.agent = Some((runtime, Arc::new(networks)));
    }

    /// As after kill -9: nothing is told to end.
    pub fn restart_agent(&mut self) {
        if let Some((runtime, _)) = self.agent.take() {
            runtime.shutdown_background();
        }
        self.start_agent();
    }

    fn run<F, T>(&self, work: impl FnOnce(Arc<Networks>) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let (runtime, networks) = self.agent.as_ref().unwrap();
        runtime.block_on(runtime.spawn(work(Arc::clone(networks)))).unwrap()
    }

    pub fn try_ensure(&self, wanted: Vec<NetworkAssignment>) -> BTreeMap<String, String> {
        let failed = self.run(|networks| async move { networks.ensure(&wanted, None).await.unwrap() });
        failed.into_iter().map(|(name, error)| (name.to_string(), error.to_string())).collect()
    }

    pub fn ensure(&self, wanted: Vec<NetworkAssignment>) {
        assert_eq!(self.try_ensure(wanted), BTreeMap::new());
    }

    /// As when time has passed: the machine is looked at again.
    pub fn recheck(&self, wanted: Vec<NetworkAssignment>) {
        self.run(|networks| async move { networks.recheck().await });
        self.ensure(wanted);
    }

    /// The same with an end of the tunnel.
    pub fn ensure_far(&self, wanted: Vec<NetworkAssignment>, tunnel: Tunnel) {
        let work =
            |networks: Arc<Networks>| async move { networks.ensure(&wanted, Some(&tunnel)).await.unwrap() };
        assert!(self.run(work).is_empty());
    }

    /// What this host says of its end of the tunnel.
    pub fn tunnel(&self) -> TunnelSeen {
        self.run(|networks| async move { networks.observe_tunnel().await.unwrap() });
        self.run(|networks| async move { networks.tunnel_seen() }).unwrap()
    }

    pub fn tap(&self, vm: Uuid, index: usize, network: &str) -> Result<String, String> {
        let network = Name::new(network).unwrap();
        self.run(move |networks| async move { networks.tap(vm, index, &network).await })
            .map_err(|error| error.to_string())
    }

    pub fn taps(&self) -> Vec<Tap> {
        self.run(|networks| async move { networks.list_taps().await.unwrap() })
    }

    pub fn remove_tap(&self, name: &str) {
        let name = name.to_owned();
        self.run(move |networks| async move { networks.remove_tap(&name).await.unwrap() });
    }

    pub fn leave(&self) {
        self.run(|networks| async move { networks.leave().await.unwrap() });
    }

    pub fn sh(&self, script: &str) -> String {
        sh_in(&self.space, script)
    }

    /// Number and name of each device.
    pub fn links(&self) -> String {
        self.sh("ip -o link show | cut -d: -f1,2")
    }

    /// Processes of dnsmasq on this host.
    pub fn servers(&self) -> Vec<i32> {
        self.processes("dnsmasq")
    }

    pub fn processes(&self, program: &str) -> Vec<i32> {
        let script = format!(
            "for p in $(ip netns pids {}); do [ $(cat /proc/$p/comm) = {program} ] && echo $p; done; true",
            self.space
        );
        sh(&script).lines().map(|line| line.parse().unwrap()).collect()
    }

    pub fn pings(&self, to: &str) -> bool {
        self.pings_with(to, &[])
    }

    pub fn pings_with(&self, to: &str, options: &[&str]) -> bool {
        pings(&self.space, to, options)
    }

    /// Devices behind which this host's segment bridge sees a MAC.
    pub fn forwarding_of(&self, mac: &str) -> Vec<String> {
        let shown = self.sh(&format!("bridge fdb show | grep -i ^{mac} | grep master"));
        shown.lines().map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect()
    }

    pub fn send_steadily(&self, to: &str) -> Sender {
        let stop = Arc::new(AtomicBool::new(false));
        let (space, to, stopped) = (self.space.clone(), to.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            enter(&space);
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let _ = socket.send_to(b"here", (to.as_str(), PORT));
                thread::sleep(Duration::from_millis(2));
            }
        });
        Sender { stop, thread: Some(thread) }
    }
}

impl Guest {
    fn attach(&self, host: &Host, number: usize) {
        // Unique among the ports of a host: from the guest's MAC.
        let port = format!("g{}-{number}", &self.mac[15..]);
        sh(&format!(
            "ip -n {h} link add {port} type veth peer name eth{number} netns {g};
            ip -n {g} link set eth{number} address {mac};
            ip -n {h} link set {port} mtu 1350 master sterna-b64 up",
            h = host.space,
            g = self.space,
            mac = self.mac
        ));
    }

    /// Gives the guest its address by hand, and prepares a second place for it.
    pub fn also_at(&self, place: &Place, host: usize) {
        self.attach(&place.hosts[host], 1);
        sh(&format!("ip -n {} address add {}/24 dev eth0", self.space, self.address));
        // Each place answers for the address that it has itself.
        sh_in(&self.space, "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore");
    }

    /// The first place falls deaf and dumb but its port stays, as that of a paused QEMU; the second has the guest's
    /// MAC and address and announces itself.
    pub fn move_to_second(&self) {
        let (g, a) = (&self.space, self.address);
        sh(&format!(
            "ip -n {g} link set eth0 address 5a:ff:ff:ff:ff:ff; ip -n {g} address flush dev eth0;
            ip -n {g} address add {a}/24 dev eth1; ip -n {g} link set eth1 up"
        ));
        eventually("link is up", || sh(&format!("ip -n {g} -br link show eth1")).contains(" UP "));
        sh_in(&self.space, &format!("busybox arping -U -c 1 -w 1 -I eth1 {a} >/dev/null; true"));
    }

    /// What the client said when it was bound: address, router, MTU. Asks `tries` times.
    pub fn dhcp(&self, tries: u32) -> Option<String> {
        let script = format!(
            r#"f=$(mktemp); printf '#!/bin/sh\n[ "$1" = bound ] || exit 0
                ip address replace $ip/$mask dev $interface; ip route replace default via $router
                ip link set $interface mtu $mtu; echo bound $ip $router $mtu\n' >$f; chmod +x $f
            busybox udhcpc -f -q -n -i eth0 -t {tries} -T 1 -A 1 -s $f 2>/dev/null; rm $f"#
        );
        sh_in(&self.space, &script).lines().find(|line| line.starts_with("bound")).map(str::to_owned)
    }

    pub fn pings(&self, to: &str) -> bool {
        pings(&self.space, to, &[])
    }

    pub fn pings_with(&self, to: &str, options: &[&str]) -> bool {
        pings(&self.space, to, options)
    }

    pub fn listen(&self) -> Arrivals {
        let times = Arc::new(Mutex::new(Vec::new()));
        let (space, noted) = (self.space.clone(), Arc::clone(&times));
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            enter(&space);
            let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            ready.send(()).unwrap();
            while socket.recv(&mut [0; 16]).is_ok() {
                noted.lock().unwrap().push(Instant::now());
            }
        });
        is_ready.recv().unwrap();
        Arrivals(times)
    }
}

pub struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

pub struct Arrivals(Arc<Mutex<Vec<Instant>>>);

impl Arrivals {
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn longest_silence(&self) -> Duration {
        self.0.lock().unwrap().windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

pub fn lease(mac: &str, last: u8, hostname: &str) -> Lease {
    Lease {
        mac: mac.parse().unwrap(),
        address: Ipv4Addr::new(10, 64, 0, last),
        hostname: hostname.parse().unwrap(),
    }
}

/// The segment `lan` as host number `host` is told of it.
pub fn overlay(place: &Place, host: usize, leases: &[Lease]) -> Vec<NetworkAssignment> {
    let others = place.hosts.iter().enumerate().filter(|(number, _)| *number != host);
    let peers: Vec<_> = others.map(|(_, other)| other.address.to_string()).collect();
    let mut wanted = overlay_with(&peers.iter().map(String::as_str).collect::<Vec<_>>(), host as u8 + 2);
    if let NetworkKind::Overlay { leases: own, .. } = &mut wanted[0].kind {
        *own = leases.to_vec();
    }
    wanted
}

pub fn overlay_with(peers: &[&str], last: u8) -> Vec<NetworkAssignment> {
    let kind = NetworkKind::Overlay {
        vni: 100,
        cidr: "10.64.0.0/24".parse().unwrap(),
        host_address: Ipv4Addr::new(10, 64, 0, last),
        peers: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
        far: Vec::new(),
        leases: Vec::new(),
    };
    vec![NetworkAssignment { name: Name::new("lan").unwrap(), kind }]
}

pub fn kill(pid: i32) {
    sh(&format!("kill -9 {pid}"));
}

/// Polls until `condition` holds; fails after 10 s.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn pings(space: &str, to: &str, options: &[&str]) -> bool {
    let options = options.join(" ");
    // The first packet may be the one that resolves the address.
    sh_in(space, &format!("busybox ping -c 3 -W 1 {options} {to} | grep received; true"))
        .contains(" 3 packets received")
}

fn enter(space: &str) {
    let file = File::open(format!("/run/netns/{space}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

fn sh_in(space: &str, script: &str) -> String {
    output(Command::new("ip").args(["netns", "exec", space, "sh", "-c", script]), script)
}

fn sh(script: &str) -> String {
    output(Command::new("sh").args(["-ec", script]), script)
}

fn output(command: &mut Command, script: &str) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || script.contains("udhcpc"), "{script}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
