//! What a target's disk gets from sources that need no QEMU: pre-seeds, long lines, and how two sides part.
#![allow(clippy::unwrap_used)]

#[path = "volume/disk.rs"]
mod disk;
#[path = "../../qemu/tests/world/mod.rs"]
mod machines;
#[path = "volume/slow.rs"]
mod slow;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use disk::{Box, MIB, SIZE, image, img, key, noise, path};
use machines::{Binary, folder, qemu};
use sterna_mover::link::{self, Options};
use sterna_mover::volume::preseed::{Files, Preseed};
use sterna_mover::volume::source::Refused;
use sterna_mover::volume::{
    Error, Limits, Outcome, Source, SourceEvent, Target, TargetEvent, Volume, Why, source, target,
};
use tokio::sync::watch;
use world::{Pair, options};

/// A target's disk alone, for sources that need no QEMU.
struct Lonely {
    folder: tempfile::TempDir,
    disk: PathBuf,
    there: Box,
    exports: Vec<target::Export>,
}

impl Lonely {
    async fn new(binary: &Binary) -> Self {
        let folder = folder();
        let disk = image(folder.path(), "there.qcow2", SIZE, None);
        let there = Box::target(binary, folder.path(), &disk).await;
        let exports = vec![there.export().await];
        Self { folder, disk, there, exports }
    }

    fn target(&self, link: link::Link) -> Target {
        Target::start(link, target::Options { exports: self.exports.clone(), key: key() })
    }
}

fn sending(bytes: u64) -> source::Options {
    let journal = Limits { memory_bytes: 4 * MIB, spill: None };
    source::Options { volumes: vec![Volume { bytes }], key: key(), journal }
}

async fn target_ended(target: &mut Target) -> Outcome {
    loop {
        if let TargetEvent::Ended(outcome) = target.events.recv().await.unwrap() {
            return outcome;
        }
    }
}

async fn source_ended(source: &mut Source) -> Outcome {
    loop {
        if let SourceEvent::Ended(outcome) = source.events.recv().await.unwrap() {
            return outcome;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sides_that_do_not_fit_part_with_a_reason() {
    let Some(binary) = qemu(10) else { return };
    let lonely = Lonely::new(&binary).await;
    let Pair { source, target, listener: _listener, relay: _relay, .. } = Pair::new(options()).await;
    let mut target = lonely.target(target);
    let mut source = Source::start(lonely.folder.path(), source, sending(SIZE + 512)).unwrap();
    let ended = target_ended(&mut target).await;
    assert!(matches!(ended, Outcome::Failed(Error::TooSmall { index: 0, .. })), "{ended:?}");
    let ended = source_ended(&mut source).await;
    assert!(matches!(ended, Outcome::Failed(Error::Peer { why: Why::Protocol, .. })), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_is_refused_before_anything_is_made() {
    let folder = folder();
    let refuse = async |options: source::Options| {
        let pair = Pair::new(world::options()).await;
        Source::start(folder.path(), pair.source, options).unwrap_err()
    };
    let error = refuse(sending(SIZE + 1)).await;
    assert!(matches!(error, Error::Size { index: 0, bytes } if bytes == SIZE + 1), "{error:?}");
    let error = refuse(source::Options { volumes: vec![], ..sending(SIZE) }).await;
    assert!(matches!(error, Error::Count(0)), "{error:?}");
    let journal = Limits { memory_bytes: 1, spill: None };
    let error = refuse(source::Options { journal, ..sending(SIZE) }).await;
    assert!(matches!(error, Error::Room { bytes: 1 }), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_may_give_up_and_after_a_barrier_either_may_end_it() {
    let Some(binary) = qemu(10) else { return };
    for step in 0..3 {
        let lonely = Lonely::new(&binary).await;
        let Pair { source, target, listener: _listener, relay: _relay, .. } = Pair::new(options()).await;
        let mut target = lonely.target(target);
        let mut source = Source::start(lonely.folder.path(), source, sending(SIZE)).unwrap();
        assert_eq!(target.release(), Err(Refused::NotSettled));
        match step {
            0 => source.abort(),
            1 => target.abort(),
            _ => {
                source.barrier().await.unwrap();
                target.release().unwrap();
            }
        }
        let (here, there) = (source_ended(&mut source).await, target_ended(&mut target).await);
        let is_told = |end: &Outcome| matches!(end, Outcome::Failed(Error::Peer { why: Why::Aborted, .. }));
        match step {
            0 => assert!(matches!(here, Outcome::Aborted) && is_told(&there), "{here:?} {there:?}"),
            1 => assert!(is_told(&here) && matches!(there, Outcome::Aborted), "{here:?} {there:?}"),
            _ => assert!(
                matches!((&here, &there), (Outcome::Finished, Outcome::Finished)),
                "{here:?} {there:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_seeded_before_hardly_costs_anything_when_it_moves() {
    let Some(binary) = qemu(10) else { return };
    let mut lonely = Lonely::new(&binary).await;
    // Four pieces, each with a hole behind it.
    let raw = lonely.folder.path().join("raw");
    let file = std::fs::File::create(&raw).unwrap();
    file.set_len(SIZE).unwrap();
    for piece in 0..4_u64 {
        let content = noise(piece, MIB as usize);
        std::os::unix::fs::FileExt::write_all_at(&file, &content, piece * 5 * MIB + 512).unwrap();
    }
    let mut sent = Vec::new();
    for _ in 0..2 {
        let Pair { source, target, listener: _listener, relay: _relay, .. } = Pair::new(options()).await;
        let mut target = lonely.target(target);
        let line = source.progress();
        let content = Files(vec![std::fs::File::open(&raw).unwrap()]);
        Preseed::start(source, sending(SIZE), content).unwrap().run().await.unwrap();
        assert!(matches!(target_ended(&mut target).await, Outcome::Finished));
        sent.push(line.borrow().acked_bytes);
    }
    assert!(sent[0] > 4 * MIB && sent[0] < 5 * MIB && sent[1] < 64 << 10, "{sent:?}");
    lonely.there.kill();
    img(&["compare", "-f", "raw", "-F", "qcow2", path(&raw), path(&lonely.disk)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_disks_go_in_one_session_and_what_one_has_another_gets_from_it() {
    let Some(binary) = qemu(10) else { return };
    let mut lonely = [Lonely::new(&binary).await, Lonely::new(&binary).await];
    // The second begins as the first does: by then that is written, as the journal holds no more than half of it.
    let (first, second) = (noise(1, 8 * MIB as usize), noise(2, 3 * MIB as usize));
    let second = [&first[..2 * MIB as usize], &second].concat();
    let raw = ["first", "second"].map(|name| lonely[0].folder.path().join(name));
    std::fs::write(&raw[0], &first).unwrap();
    std::fs::write(&raw[1], &second).unwrap();
    let volumes = vec![Volume { bytes: 8 * MIB }, Volume { bytes: 5 * MIB }];
    let options = source::Options { volumes, ..sending(MIB) };
    let Pair { source, target, listener: _listener, relay: _relay, .. } = Pair::new(world::options()).await;
    let exports = lonely.iter().flat_map(|lonely| lonely.exports.clone()).collect();
    let mut target = Target::start(target, target::Options { exports, key: key() });
    let line = source.progress();
    let content = Files(raw.iter().map(|raw| std::fs::File::open(raw).unwrap()).collect());
    Preseed::start(source, options, content).unwrap().run().await.unwrap();
    assert!(matches!(target_ended(&mut target).await, Outcome::Finished));
    assert_eq!(target.progress().borrow().chunks_copied, 32);
    let sent = line.borrow().acked_bytes;
    assert!((11 * MIB..12 * MIB).contains(&sent), "{sent}");
    for (lonely, raw) in lonely.iter_mut().zip(&raw) {
        lonely.there.kill();
        // Behind the end of the shorter one must be nothing but zeros.
        img(&["compare", "-f", "raw", "-F", "qcow2", path(raw), path(&lonely.disk)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_line_is_kept_full() {
    let Some(binary) = qemu(10) else { return };
    let lonely = Lonely::new(&binary).await;
    let raw = lonely.folder.path().join("raw");
    std::fs::write(&raw, noise(1, 32 * MIB as usize)).unwrap();
    let authority = world::Authority::new();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = link::listen::Listener::new(tcp, authority.identity().acceptor().unwrap()).unwrap();
    let far = slow::far_from(listener.address(), Duration::from_millis(150)).await;
    let mut took = Vec::new();
    for round in 0..2_u8 {
        let session = link::SessionId([round; 16]);
        let line = Options { pace: link::Pace::limited(watch::channel(6 * MIB).1), ..Options::default() };
        let mut target = lonely.target(listener.expect(session, line.clone()));
        let dialer = authority.identity().dialer(world::NAME).unwrap();
        let source = link::Link::dial(session, far, dialer, line);
        let content = Files(vec![std::fs::File::open(&raw).unwrap()]);
        let began = Instant::now();
        let options =
            source::Options { journal: Limits { memory_bytes: 64 * MIB, spill: None }, ..sending(32 * MIB) };
        Preseed::start(source, options, content).unwrap().run().await.unwrap();
        took.push(began.elapsed());
        assert!(matches!(target_ended(&mut target).await, Outcome::Finished));
    }
    // 32 MiB at 6 MiB/s, and half a second to connect, as long to find out how much the line holds, and to part.
    assert!(took[0] < Duration::from_secs(9), "{took:?}");
    // The second time only names go: as if the line were 10 times as wide.
    assert!(took[1] < Duration::from_secs(4), "{took:?}");
    eprintln!("{took:?}");
}
