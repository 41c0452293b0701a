//! Frames over real TLS connections that break.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::{Duration, Instant};

use bytes::Bytes;
use sterna_mover::frame::Kind;
use sterna_mover::link::{Ended, Link, Options, Pace, Refusal, SessionId};
use tokio::sync::watch;
use world::{Authority, NAME, Pair, SESSION, eventually, options};

fn payload(number: u32) -> Bytes {
    let mut bytes = vec![number as u8; 20_000 + number as usize % 7000];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    Bytes::from(bytes)
}

const FRAMES: u32 = 600;

async fn send_all(link: &Link) {
    for number in 0..FRAMES {
        link.sender.send(Kind::Batch, payload(number)).await.unwrap();
    }
}

async fn recv_all(link: &mut Link) {
    for number in 0..FRAMES {
        assert_eq!(link.data.recv().await.unwrap().payload, payload(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_once_and_in_order_over_several_streams_and_both_sides_part() {
    let Pair { source, mut target, listener: _listener, relay: _relay, .. } = Pair::new(options()).await;
    tokio::join!(send_all(&source), recv_all(&mut target));
    target.sender.send(Kind::Message, Bytes::from_static(b"seen")).await.unwrap();
    let mut source = source;
    assert_eq!(source.urgent.recv().await.unwrap().payload, "seen");
    source.sender.finish().await.unwrap();
    assert_eq!(target.data.recv().await, Err(Ended::Finished));
    let progress = *source.progress().borrow();
    assert_eq!((progress.resent_bytes, progress.queued_bytes), (0, 0));
    assert!(progress.round_trip.is_some() && progress.rate.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_breaks_again_and_again_costs_only_what_was_not_acknowledged() {
    let Pair { source, mut target, relay, listener: _listener, .. } = Pair::new(options()).await;
    let progress = source.progress();
    let cuts = async {
        for round in 1..=3_u64 {
            eventually("some more came", || async { progress.borrow().acked_bytes > round * 2_000_000 })
                .await;
            relay.cut();
            // What the kernel had taken already may still be acknowledged; then nothing moves any more.
            eventually("all is lost", || async { progress.borrow().connected == 0 }).await;
            relay.mend();
        }
    };
    tokio::join!(send_all(&source), recv_all(&mut target), cuts);
    let progress = *progress.borrow();
    assert!(progress.lost > 3, "{progress:?}");
    // Three times a window at the very most.
    assert!(progress.resent_bytes <= 3 * progress.window_bytes.max(2 << 20), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_and_so_the_writer_waits_with_little_under_way() {
    let Pair { source, mut target, listener: _listener, relay: _relay, .. } = Pair::new(options()).await;
    let progress = source.progress();
    let sender = source.sender.clone();
    let writer = tokio::spawn(async move {
        for number in 0..FRAMES {
            sender.send(Kind::Batch, payload(number)).await.unwrap();
        }
    });
    eventually("the window is full", || async { source.sender.fill() > 0.9 }).await;
    // Messages overtake.
    source.sender.send(Kind::Message, Bytes::from_static(b"urgent")).await.unwrap();
    assert_eq!(target.urgent.recv().await.unwrap().payload, "urgent");
    let queued = *progress.borrow();
    assert!(queued.queued_bytes <= queued.window_bytes && !writer.is_finished(), "{queued:?}");
    recv_all(&mut target).await;
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_limit_holds_and_can_be_lifted_while_bytes_flow() {
    let (limit, rate_limit) = watch::channel(2_000_000);
    let Pair { source, mut target, listener: _listener, relay: _relay, .. } =
        Pair::new(Options { pace: Pace::limited(rate_limit), ..options() }).await;
    let begun = Instant::now();
    let lift = async {
        eventually("a part came", || async { source.progress().borrow().acked_bytes > 2_000_000 }).await;
        let took = begun.elapsed();
        limit.send_replace(u64::MAX);
        took
    };
    let (_, (), took) = tokio::join!(send_all(&source), recv_all(&mut target), lift);
    assert!(took >= Duration::from_millis(900), "2 MB at 2 MB/s in {took:?}");
    // The other 12 MB would have taken 6 s.
    assert!(begun.elapsed() < took + Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away_with_the_reason() {
    let pair = Pair::new(options()).await;
    let address = pair.listener.address();
    let dial = |session, identity: sterna_mover::link::tls::Identity| {
        Link::dial(session, address, identity.dialer(NAME).unwrap(), options())
    };
    let mut unknown = dial(SessionId([1; 16]), pair.authority.identity());
    assert_eq!(unknown.data.recv().await, Err(Ended::Refused(Refusal::UnknownSession)));
    eventually("the first joined", || async { pair.source.progress().borrow().connected == 4 }).await;
    let mut other = dial(SESSION, pair.authority.identity());
    assert_eq!(other.data.recv().await, Err(Ended::Refused(Refusal::OtherPeer)));
    // A certificate of another CA does not even get an answer, and the session is not disturbed.
    let foreign = dial(SESSION, Authority::new().identity());
    pair.source.sender.send(Kind::Batch, payload(1)).await.unwrap();
    let mut target = pair.target;
    assert_eq!(target.data.recv().await.unwrap().payload, payload(1));
    assert_eq!(foreign.progress().borrow().connected, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_is_dropped_ends_what_waits_on_it() {
    let Pair { source, target, listener: _listener, relay: _relay, .. } = Pair::new(options()).await;
    let sender = target.sender.clone();
    let mut source = source;
    eventually("joined", || async { source.progress().borrow().connected > 0 }).await;
    drop(target);
    assert_eq!(sender.send(Kind::Message, Bytes::new()).await, Err(Ended::Stopped));
    assert_eq!(source.urgent.recv().await, Err(Ended::Refused(Refusal::UnknownSession)));
}
