//! Lines that are measured over real TLS connections, and those who ask for more.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use sterna_mover::frame::Kind;
use sterna_mover::link::listen::Listener;
use sterna_mover::link::{Ended, Link, Options, Refusal, SessionId};
use sterna_mover::probe::{self, BYTES_MAX, measure};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use world::{Authority, NAME, Narrow, SESSION};

struct Site {
    authority: Authority,
    listener: Listener,
}

impl Site {
    async fn new() -> Self {
        let authority = Authority::new();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Listener::new(tcp, authority.identity().acceptor().unwrap()).unwrap();
        Self { authority, listener }
    }

    fn answers(&self) -> JoinHandle<()> {
        tokio::spawn(probe::answer(self.listener.expect(SESSION, Options::default())))
    }

    fn dial(&self, at: std::net::SocketAddr) -> Link {
        self.dial_for(SESSION, at)
    }

    fn dial_for(&self, session: SessionId, at: std::net::SocketAddr) -> Link {
        Link::dial(session, at, self.authority.identity().dialer(NAME).unwrap(), Options::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_line_is_found_to_be_as_long_and_as_wide_as_it_is() {
    let site = Site::new().await;
    let line = Narrow::to(site.listener.address(), Duration::from_millis(20), 2_000_000).await;
    let answers = site.answers();
    let measured = measure(site.dial(line.address), None).await.unwrap();
    assert!((40..80).contains(&measured.round_trip.as_millis()), "{measured:?}");
    assert!((1_000_000..2_400_000).contains(&measured.bytes_per_s), "{measured:?}");
    answers.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wide_line_takes_all_noise_and_no_more() {
    let site = Site::new().await;
    let answers = site.answers();
    let link = site.dial(site.listener.address());
    let progress = link.progress();
    let measured = measure(link, None).await.unwrap();
    assert!(measured.bytes_per_s > 8_000_000, "{measured:?}");
    let acked = progress.borrow().acked_bytes as usize;
    assert!(acked <= BYTES_MAX + 100, "{acked}");
    // The same host may come again at once.
    answers.await.unwrap();
    let _answers = site.answers();
    measure(site.dial(site.listener.address()), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_expected_measures_nothing() {
    let site = Site::new().await;
    let at = site.listener.address();
    let answers = site.answers();
    let unknown = site.dial_for(SessionId([1; 16]), at);
    assert_eq!(measure(unknown, None).await, Err(Ended::Refused(Refusal::UnknownSession)));
    let first = site.dial(at);
    first.progress().wait_for(|progress| progress.connected > 0).await.unwrap();
    assert_eq!(measure(site.dial(at), None).await, Err(Ended::Refused(Refusal::OtherPeer)));
    measure(first, None).await.unwrap();
    answers.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_more_than_a_probe_is_left() {
    let noise = |bytes| Bytes::from(vec![0; bytes]);
    for (kind, payload, times) in [
        (Kind::Batch, noise(100), 1),
        (Kind::Message, noise(17), 1),
        (Kind::Message, noise(8), 65),
        (Kind::Probe, noise(1 << 20), 9),
    ] {
        let site = Site::new().await;
        let answers = site.answers();
        let mut link = site.dial(site.listener.address());
        for _ in 0..times {
            // It may be over before the last.
            let _ = link.sender.send(kind, payload.clone()).await;
        }
        answers.await.unwrap();
        while link.urgent.recv().await.is_ok() {}
    }
}
