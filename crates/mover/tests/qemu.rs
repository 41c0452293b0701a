//! Real guests move through the pair: source QEMU, session, TLS over a line that can break, session, target QEMU.
#![allow(clippy::unwrap_used)]

#[path = "../../qemu/tests/world/mod.rs"]
mod machines;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use machines::{Binary, Qemu, folder, machine, qemu};
use sterna_mover::checkpoint::{HostKey, Limits, Shelf};
use sterna_mover::codec::{Keeper, Settings};
use sterna_mover::hash::Key;
use sterna_mover::session::source::{self, SourceEvent};
use sterna_mover::session::target::{self, TargetEvent};
use sterna_mover::session::{Error, Outcome, Refused, Shared, Source, Target};
use sterna_qemu::boot;
use sterna_qemu::config::Config;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters, Status};
use tokio::net::UnixListener;
use world::{Pair, eventually, options};

const VM: [u8; 16] = [5; 16];
/// Far below what a guest needs, so that the copying does not end by itself.
const CRAWL: u64 = 300_000;
const FAST: u64 = 1 << 30;

fn settings() -> Settings {
    Settings::for_guest(Key([7; 32]), 16 << 20, 32 << 20)
}

/// One guest on one disk, on its way.
struct Way {
    folder: tempfile::TempDir,
    binary: Binary,
    disk: PathBuf,
    source: Qemu,
    target: Qemu,
    pair: Option<Pair>,
}

/// Both sessions of a migration that has begun.
struct Moving {
    source: Source,
    target: Target,
    pair: world::Relay,
    link: tokio::sync::watch::Receiver<sterna_mover::link::Progress>,
    _listener: sterna_mover::link::listen::Listener,
}

/// What each side has of earlier visits.
#[derive(Default)]
struct Kept {
    checkpoint: Option<Shared>,
    keeper: Option<Box<dyn Keeper>>,
}

impl Kept {
    fn on(shelf: &Shelf) -> Self {
        let checkpoint = shelf.newest(VM).unwrap();
        let shared = checkpoint.map(|found| Shared { id: found.id(), pages: Box::new(found) });
        Self { checkpoint: shared, keeper: Some(Box::new(shelf.begin(VM).unwrap())) }
    }
}

impl Way {
    async fn new(binary: &Binary) -> Self {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::dirtier(500, 2_000), 1 << 20).unwrap();
        let source = Qemu::start(binary, &machine(binary, folder.path(), "source", &disk)).await.unwrap();
        source.lives().await;
        let target = waiting(binary, &folder, "target", &disk).await;
        Self { folder, binary: binary.clone(), disk, source, target, pair: Some(Pair::new(options()).await) }
    }

    async fn begin(&mut self, rate: u64, (here, there): (Kept, Kept)) -> Moving {
        use Capability::{Events, ReturnPath};
        self.source.qmp.set_migration_capabilities(&[Events, ReturnPath], &[]).await.unwrap();
        let parameters = Parameters { max_bandwidth: Some(rate), ..Parameters::default() };
        self.source.qmp.set_migration_parameters(&parameters).await.unwrap();
        let out = self.folder.path().join("out");
        let _ = std::fs::remove_file(&out);
        let listener = UnixListener::bind(&out).unwrap();
        self.source.qmp.migrate(&Address::Unix(out)).await.unwrap();
        let (from, _) = listener.accept().await.unwrap();
        let to = Target::connect(&self.folder.path().join("in")).await.unwrap();
        let Pair { listener, relay, source, target, .. } = self.pair.take().unwrap();
        let link = source.progress();
        let sending =
            source::Options { settings: settings(), checkpoint: here.checkpoint, keeper: here.keeper };
        let Settings { store_bytes, pages_max, .. } = settings();
        let taking = target::Options {
            most: target::Bounds { store_bytes, pages_max },
            checkpoint: there.checkpoint,
            offers: None,
            keeper: there.keeper,
        };
        let source = Source::start(from, source, sending).unwrap();
        let mut target = Target::start(to, target, taking);
        let opened = target.events.recv().await.unwrap();
        assert!(matches!(&opened, TargetEvent::Opened(key) if *key == settings().key), "{opened:?}");
        Moving { source, target, pair: relay, link, _listener: listener }
    }

    /// The target becomes the source, and a new QEMU waits where the guest came from.
    async fn turn(mut self, name: &str) -> Self {
        self.source.kill();
        let target = waiting(&self.binary, &self.folder, name, &self.disk).await;
        Self { source: self.target, target, pair: Some(Pair::new(options()).await), ..self }
    }

    async fn source_is(&self, status: Status) {
        eventually(&format!("source is {status}"), || async {
            self.source.qmp.query_migrate().await.unwrap().status == status
        })
        .await;
    }

    async fn memory(&self, vm: &Qemu) -> Vec<u8> {
        let file = self.folder.path().join("memory");
        vm.qmp.pmemsave(0, 16_376 << 10, &file).await.unwrap();
        std::fs::read(file).unwrap()
    }

    async fn guest_moves_on(&self) {
        self.target.qmp.cont().await.unwrap();
        self.target.lives().await;
    }
}

async fn waiting(binary: &Binary, folder: &tempfile::TempDir, name: &str, disk: &std::path::Path) -> Qemu {
    use Capability::{Events, LateBlockActivate, ReturnPath};
    let config = Config { paused: true, incoming: true, ..machine(binary, folder.path(), name, disk) };
    let target = Qemu::start(binary, &config).await.unwrap();
    target.qmp.set_migration_capabilities(&[Events, ReturnPath, LateBlockActivate], &[]).await.unwrap();
    let quiet = Parameters { announce_rounds: Some(0), ..Parameters::default() };
    target.qmp.set_migration_parameters(&quiet).await.unwrap();
    let path = folder.path().join("in");
    let _ = std::fs::remove_file(&path);
    target.qmp.migrate_incoming(&Address::Unix(path)).await.unwrap();
    target
}

impl Moving {
    async fn held(&mut self) -> sterna_mover::codec::encoder::Held {
        loop {
            match self.source.events.recv().await.unwrap() {
                SourceEvent::Opened { .. } => {}
                SourceEvent::TailHeld(held) => return held,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn granted_and_loaded(&mut self, length: u64) {
        self.source.grant().await.unwrap();
        let granted = self.target.events.recv().await.unwrap();
        assert!(matches!(granted, TargetEvent::Granted(end) if end.length == length), "{granted:?}");
        let loaded = self.target.events.recv().await.unwrap();
        assert!(matches!(loaded, TargetEvent::Loaded { code: 0, is_granted: true }), "{loaded:?}");
        let loaded = self.source.events.recv().await.unwrap();
        assert!(matches!(loaded, SourceEvent::Loaded { code: 0 }), "{loaded:?}");
    }

    async fn committed(&mut self) {
        self.source.commit().await.unwrap();
        let ended = self.source.events.recv().await.unwrap();
        assert!(matches!(ended, SourceEvent::Ended(Outcome::Committed)), "{ended:?}");
        let ended = self.target.events.recv().await.unwrap();
        assert!(matches!(ended, TargetEvent::Ended(Outcome::Committed)), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves_and_each_step_of_the_commit_holds_what_it_promises() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut way = Way::new(&binary).await;
        let mut moving = way.begin(FAST, Default::default()).await;
        assert_eq!(moving.source.commit().await, Err(Refused::NotGranted));
        let held = moving.held().await;
        assert!(held.is_certain, "{held:?}");
        // All but the end is there, and so nothing is there.
        assert_ne!(way.target.qmp.query_migrate().await.unwrap().status, Status::Completed);
        moving.granted_and_loaded(held.length).await;
        assert_eq!(moving.source.abort().await, Err(Refused::PastGrant));
        // The target is complete; the source does not know, and neither of them runs.
        assert!(!way.source.is_running().await && !way.target.is_running().await);
        assert_ne!(way.source.qmp.query_migrate().await.unwrap().status, Status::Completed);
        assert!(way.memory(&way.source).await == way.memory(&way.target).await, "memory differs");
        moving.committed().await;
        way.source_is(Status::Completed).await;
        way.guest_moves_on().await;
        let (sent, got) = (moving.source.progress(), moving.target.progress());
        let (sent, got) = (sent.borrow().counters, got.borrow().counters);
        assert_eq!((sent.bytes_stream, sent.pages_zero), (got.bytes_stream, got.pages_zero));
        assert!(sent.pages_zero > 0 && sent.pages_literal > 0, "{sent:?}");
        eprintln!("{}: {sent:?}", binary.version);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_before_the_grant_gives_the_guest_back() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut way = Way::new(&binary).await;
        let mut moving = way.begin(FAST, Default::default()).await;
        moving.held().await;
        moving.source.abort().await.unwrap();
        eventually("the source runs again", || async { way.source.is_running().await }).await;
        way.source.lives().await;
        let ended = moving.target.events.recv().await.unwrap();
        assert!(matches!(ended, TargetEvent::Ended(Outcome::Failed(Error::Peer(_)))), "{ended:?}");
        assert_eq!(moving.source.grant().await, Err(Refused::Ended));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_guest_comes_back_only_when_it_is_reclaimed() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut way = Way::new(&binary).await;
        let mut moving = way.begin(FAST, Default::default()).await;
        let held = moving.held().await;
        moving.granted_and_loaded(held.length).await;
        // Even the death of the other side changes nothing by itself.
        way.target.kill();
        // What its host would do with a session whose QEMU is gone.
        drop(moving.target);
        let doubt = moving.source.events.recv().await.unwrap();
        assert!(matches!(doubt, SourceEvent::InDoubt(_)), "{doubt:?}");
        assert_eq!(moving.source.abort().await, Err(Refused::PastGrant));
        let ran = tokio::time::timeout(Duration::from_millis(300), async {
            way.source.lives().await;
        });
        assert!(ran.await.is_err(), "the source ran after a grant");
        moving.source.reclaim().await.unwrap();
        eventually("the source runs again", || async { way.source.is_running().await }).await;
        way.source.lives().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_breaks_while_memory_flows_costs_time_only() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut way = Way::new(&binary).await;
        let mut moving = way.begin(CRAWL, Default::default()).await;
        for round in 1..=2_u64 {
            let link = moving.link.clone();
            eventually("memory flows", || async { link.borrow().acked_bytes > round * 10_000 }).await;
            moving.pair.cut();
            eventually("the line is lost", || async { link.borrow().connected == 0 }).await;
            assert!(way.source.is_running().await);
            moving.pair.mend();
        }
        let fast = Parameters { max_bandwidth: Some(FAST), ..Parameters::default() };
        way.source.qmp.set_migration_parameters(&fast).await.unwrap();
        let held = moving.held().await;
        moving.granted_and_loaded(held.length).await;
        assert!(way.memory(&way.source).await == way.memory(&way.target).await, "memory differs");
        moving.committed().await;
        way.guest_moves_on().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_costs_a_fraction_because_both_sides_remember() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let limits = Limits { bytes_each: 1 << 26, bytes: 1 << 26, age: Duration::from_secs(3600) };
        let folders = [folder(), folder()];
        let shelves =
            [0, 1].map(|at| Shelf::open(folders[at].path(), HostKey([at as u8; 32]), limits).unwrap());
        let mut way = Way::new(&binary).await;
        let mut wire = Vec::new();
        for (from, to, next) in [(0, 1, "third"), (1, 0, "fourth"), (0, 1, "fifth")] {
            let kept = (Kept::on(&shelves[from]), Kept::on(&shelves[to]));
            let mut moving = way.begin(FAST, kept).await;
            let held = moving.held().await;
            moving.granted_and_loaded(held.length).await;
            moving.committed().await;
            way.guest_moves_on().await;
            let counters = moving.source.progress().borrow().counters;
            eprintln!("{}: {counters:?}", binary.version);
            wire.push(counters.bytes_batches);
            let ids = [0, 1].map(|at| shelves[at].newest(VM).unwrap().map(|checkpoint| checkpoint.id()));
            assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
            drop(moving);
            way = way.turn(next).await;
        }
        // What remains is device state, and the pages that the guest never ceases to write.
        assert!(wire[1] * 2 < wire[0] && wire[2] * 2 < wire[0], "{wire:?}");
    }
}
