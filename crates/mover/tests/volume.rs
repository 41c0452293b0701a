//! Disks of real QEMUs: mirror, session, TLS over a line that can break, session, the other QEMU's export.
#![allow(clippy::unwrap_used)]

#[path = "volume/disk.rs"]
mod disk;
#[path = "../../qemu/tests/world/mod.rs"]
mod machines;
mod world;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use disk::{Box, MIB, SIZE, image, img, key, noise, path};
use machines::{Binary, folder, qemu};
use sterna_mover::hash::Key;
use sterna_mover::link::{self, Options};
use sterna_mover::volume::source::Refused;
use sterna_mover::volume::{
    Error, Limits, Outcome, Pressure, Source, SourceEvent, Spill, Target, TargetEvent, Volume, Why, source,
    target,
};
use tokio::sync::watch;
use world::{Pair, eventually, options};

fn binaries() -> impl Iterator<Item = Binary> {
    [7, 10].into_iter().filter_map(qemu)
}

/// Both sides of a disk's way.
struct Way {
    folder: tempfile::TempDir,
    disks: [PathBuf; 2],
    here: Box,
    there: Box,
    source: Source,
    target: Target,
    relay: world::Relay,
    line: watch::Receiver<link::Progress>,
    _listener: sterna_mover::link::listen::Listener,
}

struct Setting {
    /// Raw, below both disks.
    base: Option<Vec<u8>>,
    /// What was written to the target's disk before.
    stale: Option<&'static str>,
    options: Options,
    memory_bytes: u64,
    key_there: Key,
}

impl Default for Setting {
    fn default() -> Self {
        Self { base: None, stale: None, options: options(), memory_bytes: 64 * MIB, key_there: key() }
    }
}

impl Way {
    async fn new(binary: &Binary, setting: Setting) -> Self {
        let folder = folder();
        let bases = setting.base.map(|content| {
            ["base-here", "base-there"].map(|name| {
                let base = folder.path().join(name);
                std::fs::write(&base, &content).unwrap();
                base
            })
        });
        let below = |at: usize| bases.as_ref().map(|bases| bases[at].as_path());
        let disks = [
            image(folder.path(), "here.qcow2", SIZE, below(0)),
            image(folder.path(), "there.qcow2", SIZE, below(1)),
        ];
        setting.stale.into_iter().for_each(|command| disk::write(&disks[1], command));
        let here = Box::source(binary, folder.path(), &disks[0]).await;
        let there = Box::target(binary, folder.path(), &disks[1]).await;
        let pair = Pair::new(setting.options).await;
        let line = pair.source.progress();
        let spill = Some(Spill { folder: folder.path().to_owned(), bytes: setting.memory_bytes });
        let journal = Limits { memory_bytes: setting.memory_bytes, spill };
        let sending = source::Options { volumes: vec![Volume { bytes: SIZE }], key: key(), journal };
        let source = Source::start(folder.path(), pair.source, sending).unwrap();
        let taking = target::Options { exports: vec![there.export().await], key: setting.key_there };
        let target = Target::start(pair.target, taking);
        Self { folder, disks, here, there, source, target, relay: pair.relay, line, _listener: pair.listener }
    }

    async fn mirror(&self) {
        self.here.mirror(&self.source.mirrors()[0]).await;
    }

    async fn ready(&self) {
        eventually("the mirror is ready", || self.here.is_ready()).await;
    }

    /// A file with these bytes for `write -s`.
    fn file(&self, name: &str, content: &[u8]) -> String {
        let file = self.folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        path(&file).to_owned()
    }

    async fn write_noise(&self, seed: u64, offset: u64, bytes: u64) {
        let file = self.file("noise", &noise(seed, bytes as usize));
        self.here.io(&format!("write -s {file} {offset} {bytes}")).await;
    }

    /// The end of a move: mirror, barrier, farewell, and the disks are the same.
    async fn finish_and_compare(mut self) {
        self.here.end_mirror().await;
        let digest = self.source.barrier().await.unwrap();
        self.source.finish().await.unwrap();
        let events: Vec<SourceEvent> = std::iter::from_fn(|| self.source.events.try_recv().ok()).collect();
        assert!(matches!(events[0], SourceEvent::Opened), "{events:?}");
        let mut flushed = Vec::new();
        loop {
            match self.target.events.recv().await.unwrap() {
                TargetEvent::Opened => {}
                TargetEvent::Flushed { digest } => flushed.push(digest),
                TargetEvent::Ended(outcome) => {
                    assert!(matches!(outcome, Outcome::Finished), "{outcome:?}");
                    break;
                }
            }
        }
        assert_eq!(flushed.last(), Some(&digest));
        self.compare();
    }

    fn compare(&mut self) {
        self.here.kill();
        self.there.kill();
        img(&["compare", "-f", "qcow2", "-F", "qcow2", path(&self.disks[0]), path(&self.disks[1])]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_written_all_the_while_arrives_as_it_is_at_the_barrier() {
    for binary in binaries() {
        // What the target has where the source has nothing must go.
        let setting = Setting { stale: Some("write -P 0x11 40M 2M"), ..Setting::default() };
        let way = Way::new(&binary, setting).await;
        way.write_noise(1, 3 * MIB, 8 * MIB).await;
        way.here.io("write -P 0x55 20M 16M").await;
        assert_eq!(way.source.finish().await, Err(Refused::NotSettled));
        way.mirror().await;
        for round in 0..40_u64 {
            let at = round * 7919 % 16_000 * 4096 / 4096 * 4096;
            way.here.io(&format!("write -P {} {at} 4k", round + 1)).await;
            way.here.io(&format!("write -P {} {} 512", round + 1, at + 9 * 512)).await;
            if round % 8 == 0 {
                way.here.io(&format!("write -z {} 300k", at / 2 / 512 * 512)).await;
            }
        }
        way.ready().await;
        let blocks = way.here.block_writes().await;
        assert_eq!(blocks, binary.version.major >= 10);
        for round in 0..40_u64 {
            let at = round * 104_729 % 16_000 * 4096;
            way.here.io(&format!("write -P {} {at} 4k", round + 99)).await;
        }
        let progress = way.source.progress();
        eprintln!("{}: {:?}", binary.version, *progress.borrow());
        way.finish_and_compare().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_disk_on_a_base_that_both_sides_have_only_the_changes_go() {
    for binary in binaries() {
        let base = noise(5, 32 * MIB as usize);
        let way = Way::new(&binary, Setting { base: Some(base), ..Setting::default() }).await;
        way.write_noise(6, 5 * MIB, MIB / 2).await;
        way.mirror().await;
        way.ready().await;
        let progress = way.source.progress();
        eventually("all has gone", || async { progress.borrow().is_caught_up() }).await;
        let sent = way.line.borrow().acked_bytes;
        eprintln!("{}: {sent} bytes, {:?}", binary.version, *progress.borrow());
        assert!(sent < 32 * MIB / 20, "{sent} of {}", 32 * MIB);
        assert!(progress.borrow().chunks_had >= 500, "{:?}", *progress.borrow());
        // Nor does the target's disk grow by what its base has.
        let grown = std::fs::metadata(&way.disks[1]).unwrap().blocks() * 512;
        assert!(grown < 4 * MIB, "{grown} bytes");
        way.finish_and_compare().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_writes_go_as_they_are_and_a_content_that_moved_within_the_disk_does_not_go() {
    let Some(binary) = qemu(10) else { return };
    let way = Way::new(&binary, Setting::default()).await;
    way.write_noise(1, 0, 8 * MIB).await;
    way.mirror().await;
    way.ready().await;
    assert!(way.here.block_writes().await);
    let progress = way.source.progress();
    let caught_up = || async { progress.borrow().is_caught_up() };
    eventually("all has gone", caught_up).await;
    let before = way.line.borrow().acked_bytes;
    for round in 0..60_u64 {
        way.write_noise(100 + round, round * 17 * 4096, 4096).await;
    }
    eventually("the small writes have gone", caught_up).await;
    let small = way.line.borrow().acked_bytes - before;
    assert!((60 * 4096..60 * 4096 * 3 / 2).contains(&small), "{small} bytes for 60 writes of 4 KiB");
    // A copy of what is at 6 MiB.
    let copy = &noise(1, 8 * MIB as usize)[6 * MIB as usize..][..MIB as usize / 2];
    let file = way.file("copy", copy);
    let before = way.line.borrow().acked_bytes;
    way.here.io(&format!("write -s {file} 32M 512k")).await;
    eventually("the copy has gone", caught_up).await;
    let copied = way.line.borrow().acked_bytes - before;
    assert!(copied < 32 << 10, "{copied} bytes for a copy");
    assert_eq!(way.target.progress().borrow().chunks_copied, 8);
    way.finish_and_compare().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_breaks_costs_time_only_and_no_write_waits_for_it() {
    for binary in binaries() {
        let (rate, rate_limit) = watch::channel(4 * MIB);
        let slow = Options { pace: link::Pace::limited(rate_limit), ..options() };
        let way = Way::new(&binary, Setting { options: slow, ..Setting::default() }).await;
        way.write_noise(1, 0, 12 * MIB).await;
        way.mirror().await;
        let line = way.line.clone();
        eventually("a part has gone", || async { line.borrow().acked_bytes > 2 * MIB }).await;
        way.relay.cut();
        eventually("the line is lost", || async { line.borrow().connected == 0 }).await;
        // The mirror goes on into the journal, and gets ready without the line.
        way.ready().await;
        way.here.block_writes().await;
        let began = Instant::now();
        for round in 0..20_u64 {
            way.write_noise(50 + round, round * 3 * 65_536, 4096).await;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "20 writes took {:?}", began.elapsed());
        let progress = way.source.progress();
        assert!(progress.borrow().lag() > Duration::ZERO && progress.borrow().journal_bytes > 8 * MIB);
        way.relay.mend();
        rate.send_replace(link::UNLIMITED);
        eventually("all has gone", || async { progress.borrow().is_caught_up() }).await;
        let resent = way.line.borrow().resent_bytes;
        assert!(resent <= 2 * MIB, "{resent} bytes went twice");
        way.finish_and_compare().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_slows_the_mirror_says_so_and_loses_nothing() {
    let Some(binary) = qemu(10) else { return };
    let (rate, rate_limit) = watch::channel(MIB);
    let slow = Options { pace: link::Pace::limited(rate_limit), ..options() };
    let setting = Setting { options: slow, memory_bytes: 4 * MIB, ..Setting::default() };
    let way = Way::new(&binary, setting).await;
    way.write_noise(1, 0, 24 * MIB).await;
    way.mirror().await;
    let mut progress = way.source.progress();
    let slowing = progress.wait_for(|now| matches!(now.pressure, Pressure::Slowing(_))).await.map(|now| *now);
    assert!(slowing.is_ok());
    let full = *progress.wait_for(|now| now.pressure == Pressure::Full).await.unwrap();
    // Half in memory, half in the file.
    assert_eq!((full.journal_bytes, full.spilled_bytes), (8 * MIB, 4 * MIB));
    assert!(!way.here.is_ready().await);
    rate.send_replace(link::UNLIMITED);
    way.ready().await;
    eventually("all has gone", || async { progress.borrow().is_caught_up() }).await;
    assert_eq!(progress.borrow().pressure, Pressure::None);
    way.finish_and_compare().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_ends_both_sides_with_the_reason_and_the_source_keeps_its_disk() {
    let Some(binary) = qemu(10) else { return };
    let mut way = Way::new(&binary, Setting::default()).await;
    way.write_noise(1, 0, 4 * MIB).await;
    way.mirror().await;
    way.ready().await;
    way.there.kill();
    way.write_noise(2, 0, 4 * MIB).await;
    let there = loop {
        match way.target.events.recv().await.unwrap() {
            TargetEvent::Ended(outcome) => break outcome,
            other => assert!(matches!(other, TargetEvent::Opened), "{other:?}"),
        }
    };
    assert!(matches!(there, Outcome::Failed(Error::Disk { index: 0, .. })), "{there:?}");
    assert!(matches!(way.source.events.recv().await, Some(SourceEvent::Opened)));
    let here = way.source.events.recv().await.unwrap();
    let SourceEvent::Ended(Outcome::Failed(Error::Peer { why, .. })) = here else { panic!("{here:?}") };
    assert_eq!(why, Why::Local);
    assert_eq!(way.source.barrier().await, Err(Refused::Ended));
    // The mirror notices with its next request, and the disk can be written as before.
    way.here.io("write -P 9 0 64k").await;
    eventually("the mirror is gone", || async { way.here.job().await.is_none() }).await;
    way.here.io("write -P 9 1M 64k").await;
    assert!(!way.source.mirrors()[0].socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sides_with_different_keys_never_agree_at_the_barrier() {
    let Some(binary) = qemu(10) else { return };
    let setting = Setting { key_there: Key([8; 32]), ..Setting::default() };
    let mut way = Way::new(&binary, setting).await;
    way.write_noise(1, 0, MIB).await;
    way.mirror().await;
    way.ready().await;
    way.here.end_mirror().await;
    assert_eq!(way.source.barrier().await, Err(Refused::Ended));
    let events: Vec<TargetEvent> =
        [way.target.events.recv().await, way.target.events.recv().await].into_iter().flatten().collect();
    assert!(matches!(events[1], TargetEvent::Ended(Outcome::Failed(Error::Differs))), "{events:?}");
}
