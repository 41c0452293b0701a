//! Labs on this machine: namespaces, the line between the datacentres, and what is left after an end of any kind.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_lab::probe::{Outcome, Probes, Stop};
use world::{World, eventually, host};

/// Tests that measure do so one after the other: the machine may have two CPUs.
static MEASURING: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MEASURING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine that is busy with other things spoils a measurement, never improves it: the best of three counts.
fn nearest(expected: f64, measure: impl Fn() -> f64) -> f64 {
    let mut nearest = measure();
    for _ in 0..2 {
        if (nearest / expected - 1.0).abs() < 0.03 {
            break;
        }
        let again = measure();
        nearest = if (again - expected).abs() < (nearest - expected).abs() { again } else { nearest };
    }
    nearest
}

/// What a client on `from` sees of `to` for a while.
fn probe(world: &World, from: &str, to: &str, seconds: f64) -> Outcome {
    let lab = world.lab();
    let probes =
        Probes::start(Some(&lab.host_space(host(from))), Some(lab.host_address(host(to))), None).unwrap();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    probes.finish().unwrap()
}

#[test]
fn hosts_reach_each_other_and_the_line_has_its_delay() {
    let _alone = alone();
    let world = World::up('a', 201);
    let round_trip_ms = |from: &str, to: &str| {
        let echo = world.echo(host(to));
        let seen = probe(&world, from, to, 1.0).udp.unwrap();
        drop(echo);
        assert_eq!(seen.sent, seen.received, "{from} to {to}");
        seen.round_trip_median_ms
    };
    let near = nearest(0.1, || round_trip_ms("a1", "a2"));
    assert!(near < 1.0, "in one datacentre: {near} ms");
    let far = nearest(20.0, || round_trip_ms("a1", "b2"));
    world.expect(&["link", "--delay", "40ms"]);
    let farther = nearest(80.0, || round_trip_ms("b1", "a2"));
    println!("round trips: {near:.3} ms; 2 x 10 ms: {far:.3} ms; 2 x 40 ms: {farther:.3} ms");
    assert!((far / 20.0 - 1.0).abs() < 0.03 && (farther / 80.0 - 1.0).abs() < 0.03, "{far} ms, {farther} ms");
}

#[test]
fn the_line_has_its_rate_and_counts() {
    let _alone = alone();
    let world = World::up('b', 202);
    world.expect(&["link", "--rate", "50Mbit", "--queue", "1MiB", "--delay", "5ms"]);
    let flood = Flood::start(&world);
    let receiver = world.socket(host("b1"), 9000);
    let mut datagram = [0; 2000];
    eventually("the flood arrives", || receiver.recv(&mut datagram).is_ok());
    let rate = nearest(50.0, || received_mbit_s(&receiver));
    drop(flood);
    println!("rate {rate:.2} Mbit/s of 50");
    assert!((rate / 50.0 - 1.0).abs() < 0.03, "{rate} Mbit/s");
    let link = world.json(&["link"]);
    assert!(link["a_to_b"]["dropped_queue"].as_u64().unwrap() > 1000, "{link}");
    assert!(link["a_to_b"]["bytes"].as_u64().unwrap() > 50_000_000 / 8 * 2, "{link}");
    assert!(link["b_to_a"]["bytes"].as_u64().unwrap() < 10_000, "{link}");
}

/// Twice what the line of that test takes: datagrams of 1400 bytes, one each 112 us.
struct Flood {
    stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(world: &World) -> Self {
        let (sender, to) = (world.socket(host("a1"), 9000), world.address(host("b1"), 9000));
        let stop = Stop::default();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), 0);
            while !stopped.is_stopped() {
                let due = (began.elapsed().as_secs_f64() / 112e-6) as u64;
                while sent < due {
                    let _ = sender.send_to(&[0; 1400], to);
                    sent += 1;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.stop();
        let _ = self.thread.take().unwrap().join();
    }
}

/// What arrives in two seconds, as the line counts it: with Ethernet, IP and UDP headers.
fn received_mbit_s(receiver: &UdpSocket) -> f64 {
    let mut datagram = [0; 2000];
    let (began, mut bytes) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        bytes += receiver.recv(&mut datagram).map_or(0, |length| length + 14 + 20 + 8);
    }
    bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e6
}

#[test]
fn a_cut_line_is_silent_and_a_bad_one_loses_its_share() {
    let _alone = alone();
    let world = World::up('c', 203);
    let echo = world.echo(host("b1"));
    let lab = world.lab();
    world.expect(&["link", "--delay", "1ms"]);
    let space = lab.host_space(host("a1"));
    let probes = Probes::start(Some(&space), Some(lab.host_address(host("b1"))), None).unwrap();
    eventually("echoes", || probes.echoed() > Some(50));
    world.expect(&["link", "--down"]);
    let cut = Instant::now();
    let dropped = || world.json(&["link"])["a_to_b"]["dropped_down"].as_u64().unwrap();
    eventually("frames are dropped", || dropped() > 60);
    world.expect(&["link", "--up"]);
    let silence = cut.elapsed();
    let before = probes.echoed();
    eventually("echoes again", || probes.echoed() > before.map(|count| count + 50));
    let seen = probes.finish().unwrap().udp.unwrap();
    let off = (seen.gap_ms - silence.as_secs_f64() * 1000.0).abs();
    println!("cut for {silence:?}, seen {:.1} ms", seen.gap_ms);
    assert!(off < 60.0, "cut for {silence:?}: {seen:?}");
    world.expect(&["link", "--loss", "20%"]);
    let seen = probe(&world, "a1", "b1", 3.0).udp.unwrap();
    drop(echo);
    // Both directions lose a fifth: 64 % come back; 600 datagrams have a standard deviation of 2 %.
    let share = seen.received as f64 / seen.sent as f64;
    println!("{:.1}% of {} came back, 64% expected", share * 100.0, seen.sent);
    assert!((share - 0.64).abs() < 0.08, "{seen:?}");
}

#[test]
fn the_relay_is_back_at_once_after_its_end_with_the_same_settings() {
    let _alone = alone();
    let world = World::up('d', 204);
    world.expect(&["link", "--delay", "3ms", "--rate", "none"]);
    let relay = || {
        let members = sterna_lab::member::all(&world.lab_dir());
        members.into_iter().find(|member| member.role == "wan-a-b" && !member.is_supervisor())
    };
    let first = relay().unwrap();
    first.signal(rustix::process::Signal::KILL);
    let killed = Instant::now();
    eventually("another relay", || relay().is_some_and(|other| other.pid != first.pid));
    let took = killed.elapsed();
    println!("restarted after {took:?}");
    assert!(took < Duration::from_millis(200), "{took:?}");
    let lab = world.lab();
    let socket = lab.wan_socket(lab.pair(None).unwrap());
    eventually("it answers", || sterna_lab::wan::ask(&socket, &sterna_lab::wan::Order::Show).is_ok());
    let settings = &world.json(&["link"])["settings"];
    assert_eq!((settings["delay_us"].as_u64(), settings["rate_bits"].as_u64()), (Some(3000), None));
}

#[test]
fn up_again_changes_nothing() {
    let world = World::up('e', 205);
    let (before, links) = (world.json(&["status"]), world.left());
    world.expect(&["up", "--network-only"]);
    let after = world.json(&["status"]);
    assert_eq!(before["processes"], after["processes"]);
    assert_eq!(links, world.left());
    let other = world.command(&["up", "--network-only"]).args(["--host-cpus", "-1"]).output().unwrap();
    assert!(!other.status.success());
}

#[test]
fn addresses_in_use_are_refused_in_one_sentence() {
    let first = World::up('f', 206);
    let second = World::new('g', 206);
    let output = second.run(&["up", "--network-only"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    let last = error.lines().last().unwrap();
    assert!(last.contains("10.206.0.0/16 is in use") && last.contains("--net"), "{error}");
    assert!(second.left().is_empty(), "{:?}", second.left());
    drop(first);
}

#[test]
fn down_removes_a_lab_that_was_killed_in_any_step_of_its_start() {
    for delay_ms in [0, 5, 15, 30, 60, 100, 150, 250] {
        let world = World::new('h', 207);
        let mut up = world.command(&["up", "--network-only"]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        up.kill().unwrap();
        up.wait().unwrap();
        // Every second time it is first taken up again.
        if delay_ms % 2 == 0 {
            world.expect(&["up", "--network-only"]);
            assert!(world.json(&["status"])["lines"]["a-b"].is_object());
        }
        drop(world);
    }
}

#[test]
fn down_finds_processes_whose_starters_were_killed() {
    let world = World::up('i', 208);
    let lab = world.lab();
    // One in a namespace that lost its mark, one outside that has it, and no supervisor.
    let inside = Command::new("ip")
        .args(["netns", "exec", &lab.host_space(host("a1")), "sleep", "1000"])
        .stdin(Stdio::null())
        .spawn();
    let mut inside = inside.unwrap();
    let outside = Command::new("sleep")
        .arg("1000")
        .env("STERNA_LAB_MEMBER", format!("{}:server", lab.dir.display()))
        .spawn();
    let mut outside = outside.unwrap();
    sterna_lab::member::supervisor(&lab.dir, "wan-a-b").unwrap().signal(rustix::process::Signal::KILL);
    // A mount in its folders, as a storage pool may make one.
    let mount = lab.dir.join("shared-a");
    assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).status().unwrap().success());
    world.expect(&["down"]);
    assert!(!inside.wait().unwrap().success() && !outside.wait().unwrap().success());
    assert_eq!(world.left(), Vec::<String>::new());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&mount.display().to_string()));
}

#[test]
fn a_host_gets_no_more_cpu_than_its_quota() {
    let _alone = alone();
    let world = World::up('j', 209);
    let lab = world.lab();
    let Some(dir) = sterna_lab::cgroup::ensure(&lab, "a1", 0.25).unwrap() else {
        println!("not run: this machine has no CPU quotas");
        return;
    };
    let mut supervisor = Command::new(env!("CARGO_BIN_EXE_sterna-lab"))
        .args(["supervise", "--cgroup"])
        .arg(&dir)
        .args(["--", "sh", "-c", "while :; do :; done"])
        .env("STERNA_LAB_MEMBER", format!("{}:a1", lab.dir.display()))
        .spawn()
        .unwrap();
    let burner =
        || sterna_lab::member::all(&lab.dir).into_iter().find(|member| member.line.starts_with("sh -c"));
    eventually("it burns", || burner().is_some());
    let pid = burner().unwrap().pid;
    // utime and stime, in ticks of 10 ms, are the 12th and 13th fields after the name.
    let used_ms = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().map(str::to_owned).collect();
        10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
    };
    let (began, before) = (Instant::now(), used_ms());
    eventually("half a second of CPU", || used_ms() >= before + 500);
    let share = 500.0 / began.elapsed().as_secs_f64() / 1000.0;
    println!("used {share:.2} of a CPU, quota 0.25");
    assert!(share < 0.30, "{share}");
    world.expect(&["down"]);
    assert!(supervisor.wait().is_ok() && !dir.exists());
}
