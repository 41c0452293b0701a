//! Pools of kind `nbd` with the real storage daemon: exports are made, shared, cut, adopted and ended.

#![allow(clippy::unwrap_used, reason = "a world that cannot be made fails the test")]

mod storage_world;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use sterna_agent::storage::{Error, Storage};
use sterna_base::units::Bytes;
use sterna_model::host::PoolSeen;
use sterna_model::image::Format;
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_model::volume::VolumeReport;
use sterna_qemu::config::{self, Source};
use sterna_wire::assignment::{Export, PoolAssignment, Purpose, VolumeAssignment};
use storage_world::{DEADLINE, World, disk, made, name, pool, qcow2, ready, run, text, until, volume};
use uuid::Uuid;

fn nbd_pool(world: &World) -> PoolAssignment {
    let path = world.path("san").to_str().unwrap().to_owned();
    pool("san", PoolKind::Nbd { host: name("a1"), path })
}

fn export(volume: &VolumeAssignment, vm: Uuid, epoch: u64) -> Export {
    Export {
        volume: volume.name.clone(),
        uid: volume.uid,
        format: volume.format,
        image: volume.image.clone(),
        vm,
        epoch,
    }
}

fn port(seen: &BTreeMap<Name, PoolSeen>) -> u16 {
    match &seen[&name("san")] {
        PoolSeen::Ready { port: Some(port), .. } => *port,
        other => panic!("not served: {other:?}"),
    }
}

/// The pool as every other host is told of it.
fn at(pool: &PoolAssignment, port: u16) -> PoolAssignment {
    PoolAssignment { server: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)), ..pool.clone() }
}

fn uri(source: &Source) -> String {
    match source {
        Source::NbdTcp { host, port, export } => format!("nbd://{host}:{port}/{export}"),
        other => panic!("{other:?} is no network disk"),
    }
}

fn io(uri: &str, command: &str) -> Output {
    run("qemu-io", &["-f", "raw", "-c", command, uri])
}

/// A client that stays connected, as a running VM does.
struct Client {
    process: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn open(uri: &str) -> Self {
        let mut process = Command::new("qemu-io")
            .args(["-f", "raw", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    /// Answers what was printed up to the word.
    fn does(&mut self, command: &str, word: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        let mut all = String::new();
        while !all.contains(word) {
            assert!(self.output.read_line(&mut all).unwrap() > 0, "ended without {word:?}: {all}");
        }
        all
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ends what the test started, also when it fails.
struct Ends<'a>(&'a World);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mark = format!("STERNA_NBD={}", self.0.path("a1-run/nbd/san").display());
        for pid in daemons(&mark) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn daemons(mark: &str) -> Vec<rustix::process::Pid> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
    })
    .filter_map(rustix::process::Pid::from_raw)
    .collect()
}

async fn a_volume(world: &World, storage: &Storage, pool: &PoolAssignment) -> VolumeAssignment {
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "8M", &[]), Format::Qcow2);
    let volume = volume(pool, Format::Qcow2, 16, Some(&image));
    assert_eq!(made(storage, &volume).await, ready(16));
    volume
}

async fn serve(storage: &Storage, pool: &mut PoolAssignment, exports: Vec<Export>) -> u16 {
    pool.exports = exports;
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        let seen = storage.ensure_pools(std::slice::from_ref(pool)).await;
        // The daemon talks to one client: one that has just gone may still be in its way.
        if matches!(seen[&name("san")], PoolSeen::Ready { .. }) || tokio::time::Instant::now() > until {
            return port(&seen);
        }
    }
}

#[tokio::test]
async fn an_old_epoch_can_write_no_more_once_its_export_is_cut() {
    let world = World::new();
    let _ends = Ends(&world);
    let storage = world.host("a1");
    let mut pool = nbd_pool(&world);
    serve(&storage, &mut pool, Vec::new()).await;
    let volume = a_volume(&world, &storage, &pool).await;
    let vm = Uuid::now_v7();
    let port = serve(&storage, &mut pool, vec![export(&volume, vm, 1)]).await;
    let (other_host, seen_from) = (world.host("b1"), [at(&pool, port)]);
    assert!(matches!(other_host.ensure_pools(&seen_from).await[&name("san")], PoolSeen::Ready { .. }));
    let opened = other_host.disk(&disk(&volume), vm, 1, &seen_from).await.unwrap();
    assert_eq!((opened.format, opened.backing.len()), (config::Format::Raw, 0));
    let old = uri(&opened.source);
    let mut client = Client::open(&old);
    client.does("read -P 0xab 0 64k", "read 65536/65536");
    client.does("write -P 1 1M 4k", "wrote 4096/4096");

    // During a migration both ends have the disk open, and see the same bytes.
    serve(&storage, &mut pool, vec![export(&volume, vm, 1), export(&volume, vm, 2)]).await;
    let new = uri(&storage.disk(&disk(&volume), vm, 2, &seen_from).await.unwrap().source);
    let mut target = Client::open(&new);
    assert!(!target.does("read -P 1 1M 4k", "read 4096/4096").contains("failed"));
    target.does("write -P 2 1M 4k", "wrote 4096/4096");
    assert!(!client.does("read -P 2 1M 4k", "read 4096/4096").contains("failed"));

    // The target owns the VM now.
    serve(&storage, &mut pool, vec![export(&volume, vm, 2)]).await;
    client.does("write -P 3 1M 4k", "failed");
    assert!(!io(&old, "read 0 4k").status.success(), "the old name is gone");
    assert!(!target.does("read -P 2 1M 4k", "read 4096/4096").contains("failed"));
    let gone = storage.disk(&disk(&volume), vm, 1, &seen_from).await;
    assert!(matches!(gone, Err(Error::NotYet { .. })), "{gone:?}");
}

#[tokio::test]
async fn the_next_agent_adopts_the_daemon_and_the_end_of_the_pool_ends_it() {
    let world = World::new();
    let _ends = Ends(&world);
    let first = world.host("a1");
    let mut pool = nbd_pool(&world);
    serve(&first, &mut pool, Vec::new()).await;
    let volume = a_volume(&world, &first, &pool).await;
    let vm = Uuid::now_v7();
    let port = serve(&first, &mut pool, vec![export(&volume, vm, 1)]).await;
    let seen_from = [at(&pool, port)];
    let mut client = Client::open(&uri(&first.disk(&disk(&volume), vm, 1, &seen_from).await.unwrap().source));
    client.does("write -P 1 1M 4k", "wrote 4096/4096");
    drop(first);

    let second = world.host("a1");
    assert_eq!(serve(&second, &mut pool, vec![export(&volume, vm, 1)]).await, port);
    assert!(!client.does("read -P 1 1M 4k", "read 4096/4096").contains("failed"), "the VM noticed nothing");

    // Its end is noticed; the next one serves under the same port.
    let mark = format!("STERNA_NBD={}", world.path("a1-run/nbd/san").display());
    let [daemon] = daemons(&mark)[..] else { panic!("not one daemon: {:?}", daemons(&mark)) };
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    let again = async {
        while second.disk(&disk(&volume), vm, 1, &seen_from).await.is_err() {
            second.ensure_pools(std::slice::from_ref(&pool)).await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.expect("served again");

    second.ensure_pools(&[]).await;
    assert!(daemons(&mark).is_empty());
    assert!(!world.path("a1-run/nbd/san").exists());
}

#[tokio::test]
async fn a_volume_grows_and_goes_only_when_nobody_has_its_export() {
    let world = World::new();
    let _ends = Ends(&world);
    let storage = world.host("a1");
    let mut pool = nbd_pool(&world);
    serve(&storage, &mut pool, Vec::new()).await;
    let mut volume = a_volume(&world, &storage, &pool).await;
    let vm = Uuid::now_v7();
    // An export of a volume that is not there yet does not keep back the other.
    let mut later = volume.clone();
    later.uid = Uuid::now_v7();
    let wanted = vec![export(&later, vm, 1), export(&volume, vm, 1)];
    let port = serve(&storage, &mut pool, wanted).await;
    let seen_from = [at(&pool, port)];
    assert!(storage.disk(&disk(&volume), vm, 1, &seen_from).await.is_ok());
    assert!(matches!(storage.disk(&disk(&later), vm, 1, &seen_from).await, Err(Error::NotYet { .. })));
    storage.ensure_volumes(&[volume.clone(), later.clone()]);
    until(&storage, later.uid, |report| *report == ready(16)).await;
    assert!(storage.disk(&disk(&later), vm, 1, &seen_from).await.is_ok(), "exported as soon as it is made");

    volume.size = Bytes::mib(32);
    let mut unwanted = later.clone();
    unwanted.purpose = Purpose::Remove;
    storage.ensure_volumes(&[volume.clone(), unwanted.clone()]);
    until(&storage, unwanted.uid, |report| matches!(report, VolumeReport::Failed { .. })).await;
    let old_size = run(
        "qemu-img",
        &[
            "info",
            "-U",
            "-f",
            "raw",
            &uri(&storage.disk(&disk(&volume), vm, 1, &seen_from).await.unwrap().source),
        ],
    );
    assert!(text(&old_size).contains("16 MiB"), "{}", text(&old_size));
    serve(&storage, &mut pool, Vec::new()).await;
    until(&storage, volume.uid, |report| *report == ready(32)).await;
    until(&storage, unwanted.uid, |report| *report == VolumeReport::Gone).await;
}

/// Both versions that Sterna runs on, where the older one is there as well.
#[tokio::test]
async fn the_daemon_of_qemu_7_2_serves_as_well() {
    let Some(program) = older_daemon() else {
        assert!(std::env::var_os("STERNA_REQUIRE_QEMU").is_none(), "STERNA_QEMU_72 names no QEMU");
        eprintln!("not run: STERNA_QEMU_72 is not set");
        return;
    };
    let mut world = World::new();
    world.storage_daemon = program;
    let _ends = Ends(&world);
    let storage = world.host("a1");
    let mut pool = nbd_pool(&world);
    serve(&storage, &mut pool, Vec::new()).await;
    let volume = a_volume(&world, &storage, &pool).await;
    let vm = Uuid::now_v7();
    let port = serve(&storage, &mut pool, vec![export(&volume, vm, 1)]).await;
    let disk_uri = uri(&storage.disk(&disk(&volume), vm, 1, &[at(&pool, port)]).await.unwrap().source);
    let mut client = Client::open(&disk_uri);
    client.does("write -P 1 1M 4k", "wrote 4096/4096");
    serve(&storage, &mut pool, Vec::new()).await;
    client.does("write -P 2 1M 4k", "failed");
}

/// Beside the `qemu-system-x86_64` of that version.
fn older_daemon() -> Option<std::path::PathBuf> {
    let system = std::path::PathBuf::from(std::env::var_os("STERNA_QEMU_72")?);
    let daemon = system.with_file_name("qemu-storage-daemon");
    daemon.exists().then_some(daemon)
}
