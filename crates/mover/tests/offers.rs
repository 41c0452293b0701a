//! Pages that the target has of another guest are not sent, without any QEMU: a hand-made stream through both sessions.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::{Duration, Instant};

use sterna_mover::checkpoint::{HostKey, Limits, Shelf};
use sterna_mover::codec::{Keeper, Settings};
use sterna_mover::hash::{Key, PAGE_BYTES, Page};
use sterna_mover::link;
use sterna_mover::session::source::{self, SourceEvent};
use sterna_mover::session::target::{self, Offering, Offers, TargetEvent};
use sterna_mover::session::{Outcome, Shared, Source, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use world::{Pair, options};

const PAGES: u32 = 600;
/// What a QEMU says when it has everything.
const SHUT: &[u8] = &[0, 1, 0, 4, 0, 0, 0, 0];

fn settings() -> Settings {
    Settings { key: Key([7; 32]), store_bytes: 1 << 20, pages_max: 1 << 12 }
}

/// No compression makes it smaller.
fn page(seed: u32) -> Page {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

/// A guest of these pages, as QEMU would send it.
fn stream(seeds: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut bytes = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    bytes.extend((0x40_0000_u64 | 0x04).to_be_bytes());
    bytes.extend(b"\x06pc.ram\0\0\0\0\0\x40\0\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x03\0\0\0\x02");
    for (at, seed) in seeds.enumerate() {
        let flags = if at == 0 { 0x08 } else { 0x28 };
        bytes.extend(((at as u64 * PAGE_BYTES as u64) | flags).to_be_bytes());
        if at == 0 {
            bytes.extend(b"\x06pc.ram");
        }
        bytes.extend(page(seed));
    }
    bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    bytes.extend(b"\x04\0\0\0\x05\x03cpu state of a processor\0\0\x06\0\0\0\x08{\"a\": 1}");
    bytes
}

/// What went over the line, payload and more, in both directions, and how often a connection was lost.
async fn carried(bytes: &[u8], offers: Option<Offering>, timing: link::Options) -> (u64, u64) {
    carried_with(bytes, (offers, None), None, timing).await
}

/// The target keeps what passes, or has kept something.
async fn carried_with(
    bytes: &[u8],
    (offers, checkpoint): (Option<Offering>, Option<Shared>),
    keeper: Option<Box<dyn Keeper>>,
    timing: link::Options,
) -> (u64, u64) {
    let pair = Pair::new(timing).await;
    let (links, forwarded) = (pair.target.progress(), std::sync::Arc::clone(&pair.relay.forwarded));
    let (mut from, source_qemu) = UnixStream::pair().unwrap();
    let (mut to, target_qemu) = UnixStream::pair().unwrap();
    let Settings { store_bytes, pages_max, .. } = settings();
    let most = target::Bounds { store_bytes, pages_max };
    let taking = target::Options { most, checkpoint, offers, keeper };
    let sending = source::Options { settings: settings(), checkpoint: None, keeper: None };
    let mut source = Source::start(source_qemu, pair.source, sending).unwrap();
    let mut target = Target::start(target_qemu, pair.target, taking);
    let mut arrived = vec![0; bytes.len()];
    let granted = async {
        while !matches!(source.events.recv().await.unwrap(), SourceEvent::TailHeld(_)) {}
        source.grant().await.unwrap();
    };
    let (written, read, ()) = tokio::join!(from.write_all(bytes), to.read_exact(&mut arrived), granted);
    written.unwrap();
    read.unwrap();
    assert!(arrived == bytes, "another stream came out");
    to.write_all(SHUT).await.unwrap();
    while !matches!(target.events.recv().await.unwrap(), TargetEvent::Loaded { code: 0, is_granted: true }) {}
    while !matches!(source.events.recv().await.unwrap(), SourceEvent::Loaded { code: 0 }) {}
    let (wire, lost) = (forwarded.load(std::sync::atomic::Ordering::Relaxed), links.borrow().lost);
    source.commit().await.unwrap();
    let ended = target.events.recv().await.unwrap();
    assert!(matches!(ended, TargetEvent::Ended(Outcome::Committed)), "{ended:?}");
    (wire, lost)
}

/// Offers pages of another guest, named under the key that the source comes with.
fn offering(seeds: impl Iterator<Item = u32> + Send + 'static, takes: Duration) -> Option<Offering> {
    Some(Box::new(move |key| {
        let began = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { bytes_each: 1 << 26, bytes: 1 << 26, age: Duration::from_secs(60) };
        let shelf = Shelf::open(folder.path(), HostKey([1; 32]), limits).unwrap();
        let mut scratch = shelf.scratch(key, target::OFFERED_MAX).unwrap();
        for seed in seeds {
            assert!(scratch.take(&page(seed)).unwrap());
        }
        let (contents, hashes) = scratch.finish().unwrap();
        std::thread::sleep(takes.saturating_sub(began.elapsed()));
        Some(Offers { pages: Box::new(contents), hashes })
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_another_guest_has_at_the_target_are_not_sent() {
    let bytes = stream(0..PAGES);
    let (alone, _) = carried(&bytes, None, options()).await;
    assert!(alone > bytes.len() as u64, "{alone} of {}", bytes.len());
    // It has all but the last 60, and others that the guest has not.
    let others = offering(1000..1500, Duration::ZERO);
    let (none, _) = carried(&bytes, others, options()).await;
    assert!(none > bytes.len() as u64);
    let (helped, _) =
        carried(&bytes, offering((60..PAGES).chain(1000..1100), Duration::ZERO), options()).await;
    assert!(helped < alone / 6, "{helped} of {alone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_comes_back_by_another_way_is_known_by_its_contents() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_each: 1 << 26, bytes: 1 << 26, age: Duration::from_secs(60) };
    let shelf = Shelf::open(folder.path(), HostKey([1; 32]), limits).unwrap();
    let vm = [9; 16];
    let keeper = || Some(Box::new(shelf.begin(vm).unwrap()) as Box<dyn Keeper>);
    let kept = || shelf.newest(vm).unwrap().map(|found| Shared { id: found.id(), pages: Box::new(found) });
    let bytes = stream(0..PAGES);
    let (first, _) = carried_with(&bytes, (None, None), keeper(), options()).await;
    assert!(kept().is_some());
    // The source has no checkpoint, as one that got the guest from a third host. A tenth was written since.
    let changed = stream((1000..1000 + PAGES / 10).chain(PAGES / 10..PAGES));
    let (again, _) = carried_with(&changed, (None, kept()), None, options()).await;
    assert!(again < first / 6, "{again} of {first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_that_take_long_to_make_cost_no_connection() {
    let timing = options();
    let takes = timing.silence * 4;
    let began = Instant::now();
    let (_, lost) = carried(&stream(0..20), offering(0..20, takes), timing).await;
    assert!(began.elapsed() >= takes);
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offering_that_fails_costs_bytes_only() {
    let bytes = stream(0..50);
    carried(&bytes, Some(Box::new(|_| None)), options()).await;
    carried(&bytes, Some(Box::new(|_| panic!("on purpose"))), options()).await;
    // What it claims to have is something else.
    let lies: Offering = Box::new(|key| {
        let mut offers = offering(100..150, Duration::ZERO).unwrap()(key).unwrap();
        let names = (0..50).map(|seed| sterna_mover::hash::PageHash::of(key, &page(seed)));
        offers.hashes = names.collect();
        Some(offers)
    });
    carried(&bytes, Some(lies), options()).await;
}
